"""RandAugment and cutout: draws, Pillow's operations, one sampling, and a record that maps can follow."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps
from pydantic import ValidationError

from tests.data.test_stream import CROP, assert_equal, make, stream, take
from tutelage.data.augmentation import AugmentSettings, Geometry, take_image, take_map, take_valid
from tutelage.data.batch import Geometries, between, warp
from tutelage.data.randaugment import (
    OPERATIONS,
    Alteration,
    Cut,
    CutoutSettings,
    Operation,
    RandAugmentSettings,
    alter,
    crop_matrix,
    draw_alteration,
)
from tutelage.data.settings import ViewSettings
from tutelage.data.stream import LoaderSettings

GEOMETRIC = {"rotate", "shear_x", "shear_y", "translate_x", "translate_y"}
STRONG = ViewSettings(
    randaugment=RandAugmentSettings(operations=3, probability=1.0, flip=0.5, fill=99), cutout=CutoutSettings(fill=0)
)


def crop_of(image: np.ndarray, label: np.ndarray, geometry: Geometry) -> Cut:
    return Cut(take_image(image, geometry), take_valid(geometry), {"label": take_map(label, geometry)}, geometry)


def noise(height: int, width: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    image = draw.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return image, draw.integers(0, 9, (height, width), dtype=np.uint8)


def whole(image: np.ndarray, label: np.ndarray) -> Cut:
    size = (image.shape[0], image.shape[1])
    return crop_of(image, label, Geometry.crop(size, size, (0, 0), size, False))


def altered(image: np.ndarray, label: np.ndarray, *operations: tuple[str, float], **options: Any) -> Cut:
    alteration = Alteration(tuple(Operation(*each) for each in operations), **options)
    return alter(whole(image, label), {"label": label}, alteration)


# ---------------------------------------------------------------- draws


def draws(count: int, size: tuple[int, int] = (40, 60), **options: Any) -> list[Alteration]:
    chances = RandAugmentSettings(**options)
    return [draw_alteration(chances, None, size, 3, "s/strong", position) for position in range(count)]


def test_what_is_drawn() -> None:
    found = draws(3000, operations=2, probability=0.5)
    names = Counter(operation.name for each in found for operation in each.operations)
    assert names.keys() == {*OPERATIONS} - {"identity"}, "which does nothing"
    expected = 3000 * 2 * 0.5 / 14
    assert all(abs(number - expected) < 5 * expected**0.5 for number in names.values())
    amounts = {name: {op.amount for each in found for op in each.operations if op.name == name} for name in OPERATIONS}
    assert amounts["rotate"] == {sign * 3 * level for sign in (-1, 1) for level in range(1, 10)}
    assert amounts["translate_x"] == {
        sign * int(0.03 * level * 60 + 1e-9) for sign in (-1, 1) for level in range(1, 10)
    }
    assert amounts["translate_y"] == {
        sign * int(0.03 * level * 40 + 1e-9) for sign in (-1, 1) for level in range(1, 10)
    }
    np.testing.assert_allclose(sorted(amounts["shear_x"])[::17], [-0.27, 0.27])
    np.testing.assert_allclose(sorted(amounts["colour"]), [0.09 * level + 0.05 for level in range(1, 10)])
    assert amounts["posterise"] == {4, 5, 6, 7}
    assert amounts["solarise"] == {256 - int(25.6 * level) for level in range(1, 10)}
    assert not any(each.flip for each in found)
    assert 400 < sum(each.flip for each in draws(1000, flip=0.5)) < 600


def test_options_of_draws() -> None:
    assert not {op.name for each in draws(300, geometric=False) for op in each.operations} & GEOMETRIC
    assert {len(each.operations) for each in draws(200, probability=0.0)} == {0}
    assert {op.amount for each in draws(300, magnitudes=(2, 2)) for op in each.operations if op.name == "rotate"} == {
        -6,
        6,
    }
    with pytest.raises(ValidationError, match=r"\[5, 4\]"):
        RandAugmentSettings(magnitudes=(5, 4))


def test_draws_belong_to_a_position() -> None:
    chances, cutout = RandAugmentSettings(probability=1.0), CutoutSettings()

    def draw(seed: int = 1, name: str = "s/strong", position: int = 5) -> Alteration:
        return draw_alteration(chances, cutout, (50, 70), seed, name, position)

    assert draw() == draw()
    assert len({draw(), draw(seed=2), draw(name="t"), draw(position=6)}) == 4
    # Switching one off does not change the other.
    assert draw_alteration(None, cutout, (50, 70), 1, "s/strong", 5).cutout == draw().cutout
    assert draw_alteration(chances, None, (50, 70), 1, "s/strong", 5).operations == draw().operations


@pytest.mark.parametrize(("options", "side"), [({}, 13), ({"share": 0.2, "of": "width"}, 12), ({"share": 1.0}, 40)])
def test_squares(options: dict[str, Any], side: int) -> None:
    chances = CutoutSettings(**options)
    boxes = [draw_alteration(None, chances, (40, 61), 0, "s", position).cutout for position in range(400)]
    for left, top, right, bottom in boxes:
        assert 0 <= left < right <= 61
        assert 0 <= top < bottom <= 40
        assert right - left == side or right == 61
        assert bottom - top == side or bottom == 40
    assert len({left for left, *_ in boxes}) > 20


def test_a_third_does_not_lose_its_last_digit() -> None:
    for side in range(3, 2000, 3):
        left, top, right, bottom = draw_alteration(None, CutoutSettings(), (side, 2 * side), 0, "s", 1).cutout
        assert max(right - left, bottom - top) <= side // 3
    boxes = [draw_alteration(None, CutoutSettings(), (513, 999), 0, "s", position).cutout for position in range(20)]
    assert max(right - left for left, _, right, _ in boxes) == 171


# ---------------------------------------------------------------- colours


@pytest.mark.parametrize(
    ("operation", "by_pillow"),
    [
        (("autocontrast", 0), lambda i: ImageOps.autocontrast(i)),
        (("brightness", 0.4), lambda i: ImageEnhance.Brightness(i).enhance(0.4)),
        (("colour", 0.3), lambda i: ImageEnhance.Color(i).enhance(0.3)),
        (("contrast", 0.2), lambda i: ImageEnhance.Contrast(i).enhance(0.2)),
        (("equalise", 0), lambda i: ImageOps.equalize(i)),
        (("posterise", 5), lambda i: ImageOps.posterize(i, 5)),
        (("sharpness", 0.6), lambda i: ImageEnhance.Sharpness(i).enhance(0.6)),
        (("solarise", 128), lambda i: ImageOps.solarize(i, 128)),
    ],
)
def test_colours_are_those_of_pillow(operation: tuple[str, float], by_pillow: Any) -> None:
    image, label = noise(20, 30)
    image = image // 2 + 40  # so that autocontrast has something to do
    found = altered(image, label, operation)
    np.testing.assert_array_equal(found.image_HW3, np.asarray(by_pillow(Image.fromarray(image))))
    np.testing.assert_array_equal(found.maps["label"], label)
    assert found.valid_HW.all()
    assert not np.array_equal(found.image_HW3, image)


def test_colours_change_in_the_order_drawn() -> None:
    image, label = noise(8, 8)
    one = altered(image, label, ("solarise", 100), ("brightness", 0.5)).image_HW3
    other = altered(image, label, ("brightness", 0.5), ("solarise", 100)).image_HW3
    assert not np.array_equal(one, other)


# ---------------------------------------------------------------- geometry


@pytest.mark.parametrize("angle", [30, -9])
def test_rotation_is_that_of_pillow(angle: int) -> None:
    image, label = noise(21, 34)
    found = altered(image, label, ("rotate", angle))
    theirs = Image.fromarray(image).rotate(angle, Image.Resampling.BILINEAR, fillcolor=(127,) * 3)
    np.testing.assert_allclose(found.image_HW3.astype(int), np.asarray(theirs).astype(int), atol=1)
    nearest = np.asarray(Image.fromarray(label).rotate(angle, Image.Resampling.NEAREST, fillcolor=255))
    assert (found.maps["label"] == nearest).mean() > 0.99  # Pillow's nearest counts in fixed point


@pytest.mark.parametrize(
    ("operation", "coefficients"),
    [
        (("shear_x", 0.27), (1, 0.27, 0, 0, 1, 0)),
        (("shear_y", -0.15), (1, 0, 0, -0.15, 1, 0)),
        (("translate_x", 7), (1, 0, 7, 0, 1, 0)),
        (("translate_y", -4), (1, 0, 0, 0, 1, -4)),
    ],
)
def test_shears_and_translations_are_those_of_pillow(operation: tuple[str, float], coefficients: Any) -> None:
    image, label = noise(21, 34)
    found = altered(image, label, operation)
    theirs = Image.fromarray(image).transform(
        (34, 21), Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR, fillcolor=(127,) * 3
    )
    np.testing.assert_array_equal(found.image_HW3, np.asarray(theirs))
    np.testing.assert_array_equal(found.valid_HW, found.maps["label"] != 255)
    assert (found.image_HW3[~found.valid_HW] == 127).all()


def test_what_is_pushed_over_the_edge_comes_back() -> None:
    image, label = noise(12, 20)
    found = altered(image, label, ("translate_x", 6), ("translate_x", -6))
    np.testing.assert_array_equal(found.image_HW3, image)
    np.testing.assert_array_equal(found.maps["label"], label)
    assert found.valid_HW.all()
    flipped = altered(image, label, ("translate_x", 6), flip=True)
    np.testing.assert_array_equal(flipped.image_HW3[:, :14], image[:, ::-1][:, 6:])
    assert not flipped.valid_HW[:, 14:].any()


def test_operations_are_composed_in_the_order_drawn() -> None:
    image, label = noise(30, 30)
    by_steps = Image.fromarray(label)
    for coefficients in ((1, 0.17, 0, 0, 1, 0), (1, 0, 5, 0, 1, 0)):
        by_steps = by_steps.transform((30, 30), Image.Transform.AFFINE, coefficients, 0, fillcolor=255)
    found = altered(image, label, ("shear_x", 0.17), ("translate_x", 5))
    assert (found.maps["label"] == np.asarray(by_steps)).mean() > 0.95
    turned = crop_matrix(Alteration((Operation("rotate", 90), Operation("translate_x", 3))), (30, 30))
    np.testing.assert_allclose(turned @ [0, 0, 1], [30, 3, 1])


@given(
    st.lists(
        st.sampled_from(
            [("rotate", 21), ("shear_x", -0.19), ("shear_y", 0.13), ("translate_x", 5), ("translate_y", 9)]
        ),
        max_size=3,
    ),
    st.booleans(),
    st.booleans(),
    st.integers(0, 20),
    st.sampled_from([(15, 22), (30, 44), (22, 31)]),
)
@settings(max_examples=60, deadline=None)
def test_the_record_tells_where_every_pixel_comes_from(
    operations: list[tuple[str, float]], flip: bool, mirrored: bool, top: int, scaled: tuple[int, int]
) -> None:
    image, label = noise(15, 22)
    geometry = Geometry.crop((15, 22), scaled, (min(top, scaled[0] - 10), 3), (10, 16), mirrored)
    crop = crop_of(image, label, geometry)
    alteration = Alteration(tuple(Operation(*each) for each in operations), flip, (2, 3, 6, 7), (127, 0))
    found = alter(crop, {"label": label}, alteration)
    shown, base = Geometries.stack([found.geometry]), Geometries.stack([geometry])
    replayed = warp(torch.from_numpy(label)[None].long(), shown, fill=255)[0].numpy()
    np.testing.assert_array_equal(np.where(found.valid_HW, replayed, 255), found.maps["label"])
    assert not found.valid_HW[3:7, 2:6].any()
    assert (found.image_HW3[3:7, 2:6] == 0).all()
    # Through the crop as well.
    relative = between(shown, base)
    last = torch.tensor([[0.0, 0.0, 1.0]], dtype=torch.float64)
    both = base.matrix[0] @ torch.cat((relative.matrix[0], last))
    torch.testing.assert_close(both, shown.matrix[0], rtol=0, atol=1e-9)
    inside = warp(torch.ones(1, 10, 16), relative)[0].numpy() > 0
    assert not (found.valid_HW & ~inside).mean() > 0.1  # those whose centre lies on the crop's edge
    whole_view = between(base, base)
    torch.testing.assert_close(whole_view.matrix, torch.eye(3, dtype=torch.float64)[None, :2], atol=1e-12, rtol=0)
    assert whole_view.source.tolist() == [[10, 16]]


# ---------------------------------------------------------------- in a stream


@pytest.mark.parametrize("workers", [0, 2])
def test_a_strong_view_of_a_stream(tmp_path: Path, workers: int) -> None:
    dataset = make(tmp_path, size=(20, 28))
    views = {"weak": ViewSettings(), "strong": STRONG}
    made = stream(dataset, views=views, loader=LoaderSettings(workers=workers))
    plain = take(stream(dataset, views={"weak": ViewSettings()}))
    seen = False
    for ours, theirs in zip(take(made), plain, strict=True):
        torch.testing.assert_close(ours["weak"].image, theirs["weak"].image, rtol=0, atol=0)
        torch.testing.assert_close(ours["weak"].label, theirs["weak"].label, rtol=0, atol=0)
        strong = ours["strong"]
        assert (strong.label[~strong.valid] == 255).all()
        left_out = strong.image.permute(0, 2, 3, 1)[~strong.valid]
        assert ((left_out == 0) | (left_out == 99 / 255)).all()
        seen |= bool((left_out > 0).any()) and bool((left_out == 0).any())
        assert not torch.equal(strong.geometry.matrix, ours["weak"].geometry.matrix)
    assert seen
    for ours, theirs in zip(take(made), take(stream(dataset, views=views)), strict=True):
        assert_equal(ours, theirs)


def test_a_view_with_a_crop_of_its_own(tmp_path: Path) -> None:
    dataset = make(tmp_path, size=(20, 28))
    own = ViewSettings(augment=AugmentSettings(crop=(8, 10)), cutout=CutoutSettings(fill=0))
    bare = own.model_copy(update={"cutout": None})
    batch = take(stream(dataset, views={"strong": own, "weak": ViewSettings(), "own": bare}, augment=CROP), steps=1)[0]
    assert batch["strong"].image.shape[2:] == (8, 10)
    assert batch["weak"].image.shape[2:] == (16, 16)
    assert batch["own"].valid.all()
    assert not batch["strong"].valid.all()


def test_without_masks_there_are_none(tmp_path: Path) -> None:
    dataset = make(tmp_path)
    batch = take(stream(dataset, views={"strong": STRONG}, labels=False), steps=1)[0]
    assert not batch["strong"].maps
