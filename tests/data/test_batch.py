"""Views: what workers hand over becomes floats, and a geometry is replayed on maps that are made later."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from tests.data.test_augmentation import cuts
from tutelage.data.augmentation import Geometry, take_image, take_map, take_valid
from tutelage.data.batch import Geometries, RawBatch, RawView, warp
from tutelage.data.colour import PLAIN

SIZE = (24, 32)


def record(source: tuple[int, int], seed: int = 0, size: tuple[int, int] = SIZE) -> Geometry:
    draw = np.random.default_rng(seed)
    factor = draw.uniform(0.5, 2.0)
    scaled = tuple(max(round(length * factor), 1) for length in source)
    offset = tuple(int(draw.integers(max(s - c, 0) + 1)) for s, c in zip(scaled, size, strict=True))
    return Geometry.crop(source, scaled, offset, size, bool(draw.integers(2)))


def label_of(source: tuple[int, int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 19, source, dtype=np.uint8)


@given(cuts())
@settings(max_examples=150, deadline=None)
def test_a_replayed_label_is_the_loaders(cut) -> None:
    label = label_of(cut[0])
    geometry = Geometry.crop(*cut)
    replayed = warp(torch.from_numpy(label).long()[None], Geometries.stack([geometry]), fill=255)
    np.testing.assert_array_equal(replayed[0].numpy(), take_map(label, geometry))


def test_a_batch_of_geometries() -> None:
    source = (40, 50)
    records = [record(source, seed) for seed in range(6)]
    labels = np.stack([label_of(source, seed) for seed in range(6)])
    together = Geometries.stack(records)
    replayed = warp(torch.from_numpy(labels).long(), together, fill=255)
    assert replayed.dtype == torch.int64
    for i, geometry in enumerate(records):
        np.testing.assert_array_equal(replayed[i].numpy(), take_map(labels[i], geometry))
    part = warp(torch.from_numpy(labels[2:4]).long(), together[2:4], fill=255)
    torch.testing.assert_close(part, replayed[2:4], rtol=0, atol=0)


def brute_force(values: np.ndarray, geometry: Geometry, grid: tuple[int, int], fill: int) -> np.ndarray:
    """Nearest, pixel by pixel: centre of the grid's pixel → view → source → map."""
    result = np.full(grid, fill, values.dtype)
    for i in range(grid[0]):
        for j in range(grid[1]):
            view = np.array([(j + 0.5) * geometry.size[1] / grid[1], (i + 0.5) * geometry.size[0] / grid[0], 1.0])
            x, y = geometry.matrix @ view
            if 0 <= x < geometry.source[1] and 0 <= y < geometry.source[0]:
                row = int(y * values.shape[0] / geometry.source[0])
                column = int(x * values.shape[1] / geometry.source[1])
                result[i, j] = values[min(row, values.shape[0] - 1), min(column, values.shape[1] - 1)]
    return result


@pytest.mark.parametrize("grid", [(24, 32), (6, 8), (7, 5), (48, 64)])
@pytest.mark.parametrize("resolution", [(40, 50), (10, 13), (80, 100), (7, 3)])
def test_other_grids_and_resolutions(grid: tuple[int, int], resolution: tuple[int, int]) -> None:
    for seed in range(4):
        geometry = record((40, 50), seed)
        values = label_of(resolution, seed)
        replayed = warp(torch.from_numpy(values).long()[None], Geometries.stack([geometry]), grid, fill=255)
        np.testing.assert_array_equal(replayed[0].numpy(), brute_force(values, geometry, grid, 255))


@pytest.mark.parametrize("length", [3, 7, 21, 300])
def test_borders_of_coarse_maps_are_exact(length: int) -> None:
    """A map of every third pixel: source pixel i belongs to entry i // 3, also where 1/3 is rounded."""
    source = (1, 3 * length)
    geometry = Geometries.stack([Geometry.crop(source, source, (0, 0), source, False)])
    replayed = warp(torch.arange(length)[None, None].float(), geometry)
    np.testing.assert_array_equal(replayed[0, 0].numpy(), np.arange(3 * length) // 3)


def test_maps_with_channels() -> None:
    geometry = Geometries.stack([record((40, 50), seed) for seed in (1, 2)])
    planes = torch.rand(2, 5, 40, 50)
    for mode in ("nearest", "bilinear"):
        together = warp(planes, geometry, mode=mode, fill=-1.0)
        assert together.shape == (2, 5, *SIZE)
        for k in range(5):
            torch.testing.assert_close(together[:, k], warp(planes[:, k], geometry, mode=mode, fill=-1.0))


def test_bilinear_identity() -> None:
    planes = torch.rand(2, 3, 17, 23)
    geometry = Geometries.stack([Geometry.crop((17, 23), (17, 23), (0, 0), (17, 23), False)] * 2)
    torch.testing.assert_close(warp(planes, geometry, mode="bilinear"), planes, rtol=0, atol=2e-6)
    mirrored = Geometries.stack([Geometry.crop((17, 23), (17, 23), (0, 0), (17, 23), True)] * 2)
    torch.testing.assert_close(warp(planes, mirrored, mode="bilinear"), planes.flip(-1), rtol=0, atol=2e-6)


@pytest.mark.parametrize("seed", range(5))
def test_bilinear_reads_a_ramp_at_the_right_place(seed: int) -> None:
    geometry = record((40, 50), seed)
    y, x = np.mgrid[:40, :50] + 0.5
    ramps = torch.from_numpy(np.stack([x, y])[None])
    result = warp(ramps, Geometries.stack([geometry]), mode="bilinear", fill=np.nan)[0].numpy()
    columns = geometry.matrix[0, 0] * (np.arange(SIZE[1]) + 0.5) + geometry.matrix[0, 2]
    rows = geometry.matrix[1, 1] * (np.arange(SIZE[0]) + 0.5) + geometry.matrix[1, 2]
    expected = np.stack(np.broadcast_arrays(columns.clip(0.5, 49.5), rows.clip(0.5, 39.5)[:, None]))
    valid = take_valid(geometry)
    np.testing.assert_array_equal(np.isnan(result).any(0), ~valid)
    np.testing.assert_allclose(result[:, valid], expected[:, valid], atol=1e-9)


def test_bilinear_agrees_with_the_loader_where_nothing_is_reduced() -> None:
    image = np.kron(label_of((8, 10)), np.ones((5, 5), np.uint8))[..., None].repeat(3, 2) * 10
    geometry = Geometry.crop((40, 50), (60, 75), (11, 20), SIZE, True)
    warped = warp(torch.from_numpy(image).permute(2, 0, 1)[None].float(), Geometries.stack([geometry]), mode="bilinear")
    assert np.abs(warped[0].permute(1, 2, 0).numpy() - take_image(image, geometry)).max() < 1.5


def test_unknown_mode() -> None:
    geometry = Geometries.stack([record((4, 4))])
    with pytest.raises(ValueError, match="'cubic'"):
        warp(torch.rand(1, 4, 4), geometry, mode="cubic")


def test_rendering() -> None:
    records = [record((40, 50), seed) for seed in range(2)]
    images = torch.randint(0, 256, (2, *SIZE, 3), dtype=torch.uint8)
    maps = {
        "label": torch.randint(0, 19, (2, *SIZE), dtype=torch.uint8),
        "confidence": torch.full((2, *SIZE), 51, dtype=torch.uint8),
    }
    valid = torch.ones(2, *SIZE, dtype=torch.bool)
    raw = RawBatch(
        {"shared": RawView(images.clone(), valid, maps, Geometries.stack(records))},
        {"weak": ("shared", np.array([PLAIN] * 2)), "dark": ("shared", np.array([(0.5, *PLAIN[1:])] * 2))},
        torch.tensor([4, 5]),
        ("a", "b"),
    )
    batch = raw.render(torch.device("cpu"))
    assert len(batch) == 2
    assert batch.samples == ("a", "b")
    torch.testing.assert_close(batch["weak"].image, images.permute(0, 3, 1, 2) / 255.0)
    torch.testing.assert_close(batch["dark"].image, images.permute(0, 3, 1, 2) / 510.0)
    assert batch["weak"].label.dtype == torch.int64
    torch.testing.assert_close(batch["dark"].label, maps["label"].long())
    torch.testing.assert_close(batch["weak"].maps["confidence"], torch.full((2, *SIZE), 0.2))
    assert batch["weak"].geometry.matrix.dtype == torch.float64
    assert batch["weak"].geometry.size == SIZE
    torch.testing.assert_close(raw.cuts["shared"].image_BHW3, images)  # rendering leaves the bytes alone
