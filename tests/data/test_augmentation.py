"""Geometry: the record, and what the loader cuts by it, against resizing the whole image and brute force."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from tutelage.data.augmentation import (
    FILL,
    AugmentSettings,
    Geometry,
    draw_geometry,
    take_image,
    take_map,
    take_valid,
)

SEED = 3


def smooth_image(height: int, width: int, seed: int) -> np.ndarray:
    """A picture with structure at several scales, so that a shift of a fraction of a pixel shows."""
    draw = np.random.default_rng(seed)
    coarse = Image.fromarray(draw.integers(0, 256, (5, 7, 3), dtype=np.uint8)).resize((width, height))
    return (np.asarray(coarse) // 2 + draw.integers(0, 128, (height, width, 3))).astype(np.uint8)


def whole(image: np.ndarray, scaled: tuple[int, int], offset: tuple[int, int], size: tuple[int, int], flip: bool):
    """The plain way: resize everything, pad to the right and below, cut, flip."""
    resized = np.asarray(Image.fromarray(image).resize(scaled[::-1], Image.Resampling.BILINEAR))
    canvas = np.empty((max(scaled[0], offset[0] + size[0]), max(scaled[1], offset[1] + size[1]), 3), np.uint8)
    canvas[:] = FILL
    canvas[: scaled[0], : scaled[1]] = resized
    cut = canvas[offset[0] : offset[0] + size[0], offset[1] : offset[1] + size[1]]
    return cut[:, ::-1] if flip else cut


@st.composite
def cuts(draw: st.DrawFn):
    source = draw(st.tuples(st.integers(1, 60), st.integers(1, 60)))
    scaled = draw(st.tuples(st.integers(1, 90), st.integers(1, 90)) | st.just(source))
    size = draw(st.tuples(st.integers(1, 70), st.integers(1, 70)))
    last = [max(s - c, 0) for s, c in zip(scaled, size, strict=True)]
    offset = tuple(draw(st.integers(0, most) | st.just(most)) for most in last)  # the last place often: borders
    return source, scaled, offset, size, draw(st.booleans())


@given(cuts(), st.integers(0, 9))
@settings(max_examples=150, deadline=None)
def test_a_cut_equals_the_cut_of_the_whole(cut, seed: int) -> None:
    source, scaled, offset, size, flip = cut
    image = smooth_image(*source, seed)
    geometry = Geometry.crop(source, scaled, offset, size, flip)
    result = take_image(image, geometry)
    expected = whole(image, scaled, offset, size, flip)
    assert result.shape == expected.shape
    assert result.dtype == np.uint8
    assert np.abs(result.astype(int) - expected).max() <= 2


def nearest_candidates(cut) -> tuple[list[set[int]], list[set[int]]]:
    """Exactly, by fractions: the source rows and columns that each output row and column may show.

    On the border between two pixels both are equally near. A set is empty where the output shows padding.
    """
    source, scaled, offset, size, flip = cut
    axes = []
    for axis in (0, 1):
        candidates = []
        for i in range(size[axis]):
            place = size[axis] - 1 - i if flip and axis == 1 else i
            exact = (offset[axis] + place + Fraction(1, 2)) * source[axis] / scaled[axis]
            if exact > source[axis]:
                candidates.append(set())
            else:
                index = int(exact)
                near = {index, index - 1} if exact == index else {index}
                candidates.append({j for j in near if 0 <= j < source[axis]})
        axes.append(candidates)
    return axes[0], axes[1]


@given(cuts())
@settings(max_examples=150, deadline=None)
def test_a_map_shows_the_nearest_pixel(cut) -> None:
    source, _, _, size, _ = cut
    values = np.arange(source[0] * source[1], dtype=np.int64).reshape(source)
    geometry = Geometry.crop(*cut)
    result, valid = take_map(values, geometry, fill=-1), take_valid(geometry)
    rows, columns = nearest_candidates(cut)
    assert result.shape == size
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            if not row or not column:
                assert result[i, j] == -1
                assert not valid[i, j]
            else:
                assert valid[i, j]
                assert divmod(result[i, j], source[1])[0] in row
                assert divmod(result[i, j], source[1])[1] in column


def test_what_is_valid_is_what_is_not_filled() -> None:
    image = np.full((10, 14, 3), 200, np.uint8)
    geometry = Geometry.crop((10, 14), (20, 7), (4, 0), (24, 12), True)
    padding = (take_image(image, geometry) == FILL).all(axis=2)
    np.testing.assert_array_equal(padding, ~take_valid(geometry))
    np.testing.assert_array_equal(padding, take_map(np.zeros((10, 14), np.uint8), geometry) == 255)


def test_unchanged_geometry_is_the_identity() -> None:
    image = smooth_image(9, 11, 0)
    plain = draw_geometry(AugmentSettings(), (9, 11), None, SEED, "s", 0)
    np.testing.assert_array_equal(take_image(image, plain), image)
    np.testing.assert_array_equal(plain.matrix, [[1, 0, 0], [0, 1, 0]])
    mirrored = draw_geometry(AugmentSettings(flip=1.0), (9, 11), None, SEED, "s", 0)
    np.testing.assert_array_equal(take_image(image, mirrored), image[:, ::-1])
    np.testing.assert_array_equal(take_map(image[..., 0], mirrored), image[:, ::-1, 0])


def scale_of(geometry: Geometry) -> float:
    return 1 / float(geometry.matrix[1, 1])


class TestDraws:
    SETTINGS = AugmentSettings(crop=(16, 16), scale=(0.5, 2.0), flip=0.5)

    def draw(self, position: int, **changes) -> Geometry:
        return draw_geometry(self.SETTINGS.model_copy(update=changes), (40, 60), None, SEED, "s", position)

    def test_a_draw_is_a_function_of_its_position(self) -> None:
        state = np.random.get_state()[1].copy()
        first = [self.draw(p).matrix for p in range(20)]
        again = [self.draw(p).matrix for p in reversed(range(20))][::-1]
        np.testing.assert_array_equal(first, again)
        assert len({m.tobytes() for m in first}) == 20
        np.testing.assert_array_equal(np.random.get_state()[1], state)
        for seed, stream in ((SEED + 1, "s"), (SEED, "t")):
            other = [draw_geometry(self.SETTINGS, (40, 60), None, seed, stream, p).matrix for p in range(20)]
            assert not any(np.array_equal(a, b) for a, b in zip(first, other, strict=True))

    def test_components_do_not_disturb_each_other(self) -> None:
        for position in range(30):
            geometry, unflipped = self.draw(position), self.draw(position, flip=0.0)
            assert scale_of(geometry) == scale_of(unflipped)
            if geometry.matrix[0, 0] > 0:
                np.testing.assert_array_equal(geometry.matrix, unflipped.matrix)

    def test_scales_cover_their_range(self) -> None:
        scales = [scale_of(self.draw(p)) for p in range(300)]
        assert 0.49 < min(scales) < 0.55
        assert 1.9 < max(scales) < 2.02
        flips = np.mean([self.draw(p).matrix[0, 0] < 0 for p in range(300)])
        assert 0.4 < flips < 0.6

    def test_steps_of_scale(self) -> None:
        heights = {round(40 * scale_of(self.draw(p, scale_steps=4))) for p in range(100)}
        assert heights == {20, 40, 60, 80}

    def test_crops_reach_every_place(self) -> None:
        places = {tuple(self.draw(p, scale=(1.0, 1.0), crop=(38, 58), flip=0.0).matrix[:, 2]) for p in range(200)}
        assert places == {(x, y) for x in range(3) for y in range(3)}

    def test_resize_comes_before_scale(self) -> None:
        geometry = self.draw(0, resize=(20, 20), scale=(2.0, 2.0), crop=None, flip=0.0)
        assert geometry.size == (40, 40)
        np.testing.assert_allclose(geometry.matrix, [[1.5, 0, 0], [0, 1, 0]])


def test_class_cap() -> None:
    label = np.zeros((40, 40), np.uint8)
    label[:, 30:] = 1
    label[:4] = 255
    free = AugmentSettings(crop=(16, 16))
    capped = AugmentSettings(crop=(16, 16), class_cap=0.75, class_cap_attempts=50)

    def largest_share(settings: AugmentSettings, position: int) -> float:
        crop = take_map(label, draw_geometry(settings, (40, 40), label, SEED, "s", position))
        counts = np.bincount(crop[crop != 255], minlength=2)
        return counts.max() / counts.sum()

    assert max(largest_share(free, p) for p in range(20)) == 1.0
    assert max(largest_share(capped, p) for p in range(20)) <= 0.75
    # Where the first crop will do, it stays; without a label nothing is capped.
    for position in range(20):
        first = draw_geometry(free, (40, 40), label, SEED, "s", position).matrix
        if largest_share(free, position) <= 0.75:
            np.testing.assert_array_equal(first, draw_geometry(capped, (40, 40), label, SEED, "s", position).matrix)
        np.testing.assert_array_equal(first, draw_geometry(capped, (40, 40), None, SEED, "s", position).matrix)


def test_class_cap_gives_up() -> None:
    for label in (np.zeros((8, 8), np.uint8), np.full((8, 8), 255, np.uint8)):
        capped = AugmentSettings(crop=(4, 4), class_cap=0.5, class_cap_attempts=3)
        assert draw_geometry(capped, (8, 8), label, SEED, "s", 0).size == (4, 4)


@pytest.mark.parametrize(
    "wrong",
    [{"scale": (2.0, 0.5)}, {"scale": (0.0, 1.0)}, {"crop": (0, 5)}, {"flip": 1.5}, {"class_cap": 0.0}, {"zoom": 2}],
)
def test_settings_that_cannot_be(wrong: dict) -> None:
    with pytest.raises(ValidationError):
        AugmentSettings(**wrong)
