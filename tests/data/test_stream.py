"""Streams: position decides everything, whoever prepares the batch."""

from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.errors import raises_code
from tutelage.data.augmentation import AugmentSettings
from tutelage.data.batch import Batch, warp
from tutelage.data.dataset import Classes, Dataset, Sample
from tutelage.data.labels import identity
from tutelage.data.settings import ColourSettings, ViewSettings
from tutelage.data.stream import SHARED, LoaderSettings, Stream

CPU = torch.device("cpu")
JITTER = ColourSettings(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, grey=0.2, blur=0.5)
VIEWS = {"weak": ViewSettings(), "strong": ViewSettings(colour=JITTER)}
CROP = AugmentSettings(crop=(16, 16), scale=(0.5, 2.0), flip=0.5)


def make(folder: Path, count: int = 7, size: tuple[int, int] = (20, 28), name: str = "data") -> Dataset:
    draw = np.random.default_rng(count)
    folder.mkdir(exist_ok=True)
    samples = []
    for i in range(count):
        image, label = folder / f"{name}{i}.png", folder / f"{name}{i}_mask.png"
        Image.fromarray(draw.integers(0, 256, (*size, 3), dtype=np.uint8)).save(image)
        Image.fromarray(draw.integers(0, 5, size, dtype=np.uint8)).save(label)
        samples.append(Sample(f"{name}{i}", image, label))
    return Dataset(name, tuple(samples), Classes(tuple("abcde")), identity(5))


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return make(tmp_path / "data")


def stream(dataset: Dataset, **changes) -> Stream:
    return Stream(
        **{"name": "s", "datasets": [dataset], "seed": 1, "batch": 4, "views": VIEWS, "augment": CROP, **changes}
    )


def take(
    made: Stream, first: int = 0, steps: int = 4, accumulate: int = 1, rank: int = 0, world: int = 1
) -> list[Batch]:
    return list(made.batches(first, steps, accumulate, rank, world, CPU))


def assert_equal(ours: Batch, theirs: Batch, tolerance: float = 0.0) -> None:
    assert ours.samples == theirs.samples
    torch.testing.assert_close(ours.positions, theirs.positions)
    assert ours.views.keys() == theirs.views.keys()
    for name in ours.views:
        a, b = ours[name], theirs[name]
        torch.testing.assert_close(a.image, b.image, rtol=0, atol=tolerance)
        torch.testing.assert_close(a.valid, b.valid)
        assert a.maps.keys() == b.maps.keys()
        for key in a.maps:
            torch.testing.assert_close(a.maps[key], b.maps[key], rtol=0, atol=0)
        torch.testing.assert_close(a.geometry.matrix, b.geometry.matrix, rtol=0, atol=0)
        torch.testing.assert_close(a.geometry.source, b.geometry.source)


def joined(batches: list[Batch]) -> Batch:
    def views(name: str):
        parts = [batch[name] for batch in batches]
        return replace(
            parts[0],
            image=torch.cat([p.image for p in parts]),
            valid=torch.cat([p.valid for p in parts]),
            maps={key: torch.cat([p.maps[key] for p in parts]) for key in parts[0].maps},
            geometry=replace(
                parts[0].geometry,
                matrix=torch.cat([p.geometry.matrix for p in parts]),
                source=torch.cat([p.geometry.source for p in parts]),
            ),
        )

    return Batch(
        {name: views(name) for name in batches[0].views},
        torch.cat([batch.positions for batch in batches]),
        tuple(sample for batch in batches for sample in batch.samples),
    )


# ---------------------------------------------------------------- position decides everything


def test_a_batch_is_a_function_of_its_position(dataset: Dataset) -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = take(stream(dataset))
    torch.testing.assert_close(torch.get_rng_state(), state)
    torch.manual_seed(7)
    for ours, theirs in zip(first, take(stream(dataset)), strict=True):
        assert_equal(ours, theirs)
    made = stream(dataset)
    for position in (9, 2, 9, 0):  # in any order, as often as one likes
        item, again = made.load(position), stream(dataset).load(position)
        assert item["sample"] == again["sample"]
        np.testing.assert_array_equal(item["cuts"][SHARED][0], again["cuts"][SHARED][0])
    for other in (stream(dataset, seed=2), stream(dataset, name="t")):
        assert not torch.equal(take(other)[0]["weak"].image, first[0]["weak"].image)


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(dataset: Dataset, workers: int) -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    by_workers = take(stream(dataset, loader=LoaderSettings(workers=workers)))
    torch.testing.assert_close(torch.get_rng_state(), state)
    for ours, theirs in zip(by_workers, take(stream(dataset)), strict=True):
        assert_equal(ours, theirs)


@pytest.mark.parametrize("ahead", [1, 5, 50])
def test_preparing_ahead_changes_nothing(dataset: Dataset, ahead: int) -> None:
    for ours, theirs in zip(
        take(stream(dataset, loader=LoaderSettings(ahead=ahead))), take(stream(dataset)), strict=True
    ):
        assert_equal(ours, theirs)


@pytest.mark.parametrize("workers", [0, 2])
def test_resuming_equals_the_tail(dataset: Dataset, workers: int) -> None:
    whole = take(stream(dataset), 0, 5, accumulate=2)
    resumed = take(stream(dataset, loader=LoaderSettings(workers=workers)), 3, 5, accumulate=2)
    assert len(whole) == 10
    for ours, theirs in zip(resumed, whole[6:], strict=True):
        assert_equal(ours, theirs)
    assert take(stream(dataset), 5, 5) == []


@pytest.mark.parametrize(("accumulate", "world"), [(2, 1), (1, 2), (2, 2), (1, 4), (4, 1)])
def test_ranks_and_micro_batches_share_out_the_global_batch(dataset: Dataset, accumulate: int, world: int) -> None:
    whole = take(stream(dataset), steps=3)
    per_rank = [take(stream(dataset), 0, 3, accumulate, rank, world) for rank in range(world)]
    for step in range(3):
        parts = [per_rank[rank][step * accumulate + micro] for micro in range(accumulate) for rank in range(world)]
        assert all(len(part) == 4 // (accumulate * world) for part in parts)
        # The bytes are equal; colours are sums whose order may depend on the size of the batch.
        assert_equal(joined(parts), whole[step], tolerance=2e-6)


def test_a_batch_that_cannot_be_dealt_out(dataset: Dataset) -> None:
    with raises_code("batch-size", "3 micro-batches x 1", "got 4") as error:
        take(stream(dataset), accumulate=3)
    assert "3" in error.value.remedy


def test_each_round_visits_every_sample_once(dataset: Dataset) -> None:
    made = stream(dataset)
    rounds = [[made.sample_at(p)[1] for p in range(r * 7, (r + 1) * 7)] for r in range(10)]
    assert all(sorted(order) == list(range(7)) for order in rounds)
    assert len({tuple(order) for order in rounds}) > 7
    names = [name for batch in take(made, steps=7) for name in batch.samples]
    assert Counter(names) == {f"data:data{i}": 4 for i in range(7)}


def test_pooled_and_repeated_datasets(dataset: Dataset, tmp_path: Path) -> None:
    few = make(tmp_path / "few", count=2, name="few")
    made = stream(dataset, datasets=[dataset, few], repeat=[1, 3])
    assert len(made) == 13
    seen = Counter(made.sample_at(p) for p in range(13))
    assert seen == {**{(0, i): 1 for i in range(7)}, **{(1, i): 3 for i in range(2)}}
    with raises_code("invalid-value", "1", "2"):
        stream(dataset, datasets=[dataset, few], repeat=[1])
    with raises_code("dataset-empty", "'s'"):
        stream(dataset.subset([]))


def test_pooled_data_sets_that_are_seen_equally_often(dataset: Dataset, tmp_path: Path) -> None:
    """7 and 2 images: the two come four times (3.5 rounded to the even), 7 beside 8; an empty one does no harm."""
    few = make(tmp_path / "few", count=2, name="few")
    made = stream(dataset, datasets=[few, dataset, few.subset([])], repeat="equal")
    seen = Counter(made.sample_at(p) for p in range(len(made)))
    assert seen == {**{(0, i): 4 for i in range(2)}, **{(1, i): 1 for i in range(7)}}
    alone = stream(dataset, repeat="equal")
    assert [alone.sample_at(p) for p in range(20)] == [stream(dataset).sample_at(p) for p in range(20)]


def test_streams_may_share_draws(dataset: Dataset, tmp_path: Path) -> None:
    twin = make(tmp_path / "twin", name="twin")
    ours = take(stream(dataset))
    shared = take(stream(twin, name="t", draws_of="s"))
    apart = take(stream(twin, name="t"))
    for a, b in zip(ours, shared, strict=True):
        assert [name.removeprefix("data:data") for name in a.samples] == [
            name.removeprefix("twin:twin") for name in b.samples
        ]
        torch.testing.assert_close(a["weak"].geometry.matrix, b["weak"].geometry.matrix, rtol=0, atol=0)
    assert any(
        not torch.equal(a["weak"].geometry.matrix, b["weak"].geometry.matrix) for a, b in zip(ours, apart, strict=True)
    )
    same_images = take(stream(dataset, name="t", draws_of="s"))
    torch.testing.assert_close(same_images[0]["strong"].image, ours[0]["strong"].image, rtol=0, atol=0)


# ---------------------------------------------------------------- views


def test_views_of_one_geometry(dataset: Dataset) -> None:
    for batch in take(stream(dataset)):
        weak, strong = batch["weak"], batch["strong"]
        assert weak.label is strong.label
        assert weak.image.shape == (4, 3, 16, 16)
        assert weak.image.is_contiguous(memory_format=torch.channels_last)
        assert not torch.equal(weak.image, strong.image)
        assert ((weak.label == 255) == ~weak.valid).all()
        labels = torch.stack([torch.from_numpy(dataset.label(int(name[-1]))).long() for name in batch.samples])
        torch.testing.assert_close(warp(labels, weak.geometry, fill=255), weak.label)


def test_views_of_their_own_geometry(dataset: Dataset) -> None:
    views = {**VIEWS, "whole": ViewSettings(augment=AugmentSettings(resize=(10, 14)))}
    for with_whole, without in zip(take(stream(dataset, views=views)), take(stream(dataset)), strict=True):
        assert with_whole["whole"].image.shape == (4, 3, 10, 14)
        assert with_whole["whole"].label.shape == (4, 10, 14)
        assert with_whole["whole"].valid.all()
        # Another view takes nothing away from the draws of these.
        torch.testing.assert_close(with_whole["strong"].image, without["strong"].image, rtol=0, atol=0)
    two = {"a": ViewSettings(augment=CROP), "b": ViewSettings(augment=CROP)}
    batch = take(stream(dataset, views=two))[0]
    assert not torch.equal(batch["a"].geometry.matrix, batch["b"].geometry.matrix)


def test_whole_images_of_one_size(dataset: Dataset) -> None:
    batch = take(stream(dataset, augment=AugmentSettings()))[0]
    for i, name in enumerate(batch.samples):
        expected = torch.tensor(dataset.image(int(name[-1]))).permute(2, 0, 1) / 255.0
        torch.testing.assert_close(batch["weak"].image[i], expected)


@pytest.mark.parametrize("workers", [0, 1])
def test_whole_images_of_different_sizes(dataset: Dataset, tmp_path: Path, workers: int) -> None:
    other = make(tmp_path / "other", size=(10, 12), name="other")
    loader = LoaderSettings(workers=workers)
    with raises_code("size-mismatch", "'s'") as error:
        take(stream(dataset, datasets=[dataset, other], augment=AugmentSettings(), loader=loader))
    assert "augment.crop" in error.value.remedy
    one_by_one = take(stream(dataset, datasets=[dataset, other], augment=AugmentSettings(), batch=1), steps=14)
    assert {tuple(batch["weak"].image.shape[2:]) for batch in one_by_one} == {(20, 28), (10, 12)}


def test_confidence_maps(dataset: Dataset) -> None:
    pseudo = replace(dataset, samples=tuple(replace(s, confidence=s.label) for s in dataset.samples))
    view = take(stream(pseudo))[0]["weak"]
    known = view.valid
    torch.testing.assert_close(view.maps["confidence"][known] * 255, view.label[known].float())
    assert (view.maps["confidence"][~known] == 0).all()


def test_maps_that_only_some_samples_have(dataset: Dataset, tmp_path: Path) -> None:
    bare = make(tmp_path / "bare", name="bare").without_labels()
    with raises_code("batch-maps") as error:
        take(stream(dataset, datasets=[bare, dataset]))
    assert "bare:bare" in error.value.message


# ---------------------------------------------------------------- labels


def test_masks_of_an_unlabelled_stream_are_never_opened(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    for sample in dataset.samples[:4]:
        sample.label.unlink()
    for sample in dataset.samples[4:]:
        sample.label.write_bytes(b"not an image")
    opened = []
    monkeypatch.setattr("tutelage.data.dataset.LabelMap.read", lambda *_: opened.append(1))
    monkeypatch.setattr("tutelage.data.cache.read_raw_mask", lambda *_: opened.append(1))
    for cache in ("none", "memory"):
        made = stream(dataset, labels=False, loader=LoaderSettings(cache=cache))
        for batch in take(made, steps=8):
            assert batch["weak"].maps == {}
        assert all(sample.label is None for d in made.datasets for sample in d.samples)
    assert opened == []
    assert dataset.labeled  # the user's own dataset is left as it was


def test_unlabelled_streams_draw_as_labelled_ones(dataset: Dataset) -> None:
    for ours, theirs in zip(take(stream(dataset, labels=False)), take(stream(dataset)), strict=True):
        torch.testing.assert_close(ours["strong"].image, theirs["strong"].image, rtol=0, atol=0)


def test_image_and_mask_of_different_size(dataset: Dataset) -> None:
    Image.fromarray(np.zeros((20, 27), np.uint8)).save(dataset.samples[3].label)
    with raises_code("size-mismatch", f"{dataset.samples[3].image} is 28x20, {dataset.samples[3].label} is 27x20"):
        take(stream(dataset), steps=2)
    batches = take(stream(replace(dataset, resize_labels=True)), steps=2)
    assert all(batch["weak"].label.shape == (4, 16, 16) for batch in batches)


# ---------------------------------------------------------------- broken files


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_file_stops_the_stream(dataset: Dataset, workers: int) -> None:
    dataset.samples[2].image.write_bytes(b"")
    with raises_code("image-unreadable", "(0 bytes)", dataset.samples[2].image) as error:
        take(stream(dataset, loader=LoaderSettings(workers=workers)), steps=2)
    assert error.value.remedy


@pytest.mark.parametrize("fault", ["image", "mask value", "size"])
def test_unreadable_samples_may_be_skipped(dataset: Dataset, fault: str) -> None:
    whole = take(stream(dataset), steps=7)
    broken = dataset.samples[2]
    if fault == "image":
        broken.image.unlink()
    else:
        wrong = np.full((20, 28), 9, np.uint8) if fault == "mask value" else np.zeros((3, 3), np.uint8)
        Image.fromarray(wrong).save(broken.label)
    skipping = take(stream(dataset, loader=LoaderSettings(on_unreadable="skip")), steps=7)
    replaced = 0
    for ours, theirs in zip(skipping, whole, strict=True):
        for i, name in enumerate(theirs.samples):
            if name == "data:data2":
                replaced += 1
                assert ours.samples[i] != name
            else:
                assert ours.samples[i] == name
                torch.testing.assert_close(ours["weak"].image[i], theirs["weak"].image[i], rtol=0, atol=0)
    assert replaced == 4
    again = take(stream(dataset, loader=LoaderSettings(on_unreadable="skip", workers=2)), steps=7)
    for ours, theirs in zip(again, skipping, strict=True):
        assert_equal(ours, theirs)


def test_when_nothing_can_be_read(dataset: Dataset) -> None:
    for sample in dataset.samples:
        sample.image.unlink()
    with raises_code("image-unreadable", "20"):
        take(stream(dataset, loader=LoaderSettings(on_unreadable="skip")))


def test_a_stream_may_be_left_early(dataset: Dataset) -> None:
    for workers in (0, 1):
        endless = stream(dataset, loader=LoaderSettings(workers=workers)).batches(0, 1000, 1, 0, 1, CPU)
        assert len(list(islice(endless, 2))) == 2
        endless.close()


# ---------------------------------------------------------------- cache


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("cache", ["memory", "disk"])
def test_caches_change_nothing(dataset: Dataset, tmp_path: Path, cache: str, workers: int) -> None:
    loader = LoaderSettings(workers=workers, cache=cache, cache_folder=str(tmp_path / "cache"))
    for ours, theirs in zip(take(stream(dataset, loader=loader), steps=5), take(stream(dataset), steps=5), strict=True):
        assert_equal(ours, theirs)
