"""Samplers of rare classes: what is drawn, what is shown, and what happens where a class has hardly any pixels."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.errors import raises_code
from tutelage.data.augmentation import AugmentSettings, draw_geometry, take_map
from tutelage.data.dataset import Classes, Dataset, Sample
from tutelage.data.labels import identity
from tutelage.data.rare_classes import (
    RareClassSampler,
    RareClassSettings,
    SmallClassSampler,
    SmallClassSettings,
    centred,
    class_probabilities,
)
from tutelage.data.settings import ViewSettings
from tutelage.data.stream import SHARED, LoaderSettings, Stream

# Class 2 is in images 1 and 3; class 3 never occurs.
PIXELS = np.array([[900, 100, 0, 0], [500, 490, 10, 0], [1000, 0, 0, 0], [700, 298, 2, 0]])
AREA = np.full(4, 1000)


def test_probabilities_by_hand() -> None:
    share = PIXELS.sum(0) / PIXELS.sum()
    expected = np.exp((1 - share) / 0.5) * (share > 0)
    np.testing.assert_allclose(class_probabilities(PIXELS, 0.5), expected / expected.sum())
    assert class_probabilities(PIXELS, 1e-4)[2] == 1.0
    even = class_probabilities(PIXELS, 1e6)
    np.testing.assert_allclose(even, [1 / 3, 1 / 3, 1 / 3, 0], atol=1e-5)
    with raises_code("sampler-labels"):
        class_probabilities(np.zeros((2, 3), np.int64), 0.1)


def drawn(sampler: RareClassSampler, count: int = 3000) -> Counter[tuple[int, int]]:
    return Counter(sampler.draw(1, "source", position) for position in range(count))


def test_draws_follow_the_probabilities_and_images_are_even() -> None:
    sampler = RareClassSampler(RareClassSettings(temperature=0.5, pixels=1), PIXELS, AREA)
    found = drawn(sampler)
    by_class = np.bincount([c for c, _ in found.elements()], minlength=4) / 3000
    np.testing.assert_allclose(by_class, class_probabilities(PIXELS, 0.5), atol=0.03)
    assert {image for c, image in found if c == 2} == {1, 3}
    assert 0.4 < found[2, 1] / (found[2, 1] + found[2, 3]) < 0.6
    assert found == drawn(sampler)
    assert sampler.draw(1, "source", 0) == sampler.draw(1, "source", 0)


def test_only_images_with_enough_pixels_are_drawn() -> None:
    found = drawn(RareClassSampler(RareClassSettings(temperature=10, pixels=5), PIXELS, AREA))
    assert {image for c, image in found if c == 2} == {1}
    assert {image for c, image in found if c == 0} == {0, 1, 2, 3}
    # 1000 pixels are 1.5 of the published 3000: images with 2 count.
    found = drawn(RareClassSampler(RareClassSettings(temperature=10), PIXELS, AREA))
    assert {image for c, image in found if c == 2} == {1, 3}


def test_where_no_image_has_enough_the_best_are_drawn_and_one_pixel_will_do() -> None:
    sampler = RareClassSampler(RareClassSettings(temperature=10, pixels=400), PIXELS, AREA)
    found = drawn(sampler)
    assert {image for c, image in found if c == 2} == {1}, "more than half as many as the one with most"
    assert {image for c, image in found if c == 1} == {1}, "290 are not 400, but 490 are"
    crop = np.zeros((10, 10), np.int64)
    assert not sampler.shows(2, crop)
    crop[0, 0] = 2
    assert sampler.shows(2, crop)
    assert not sampler.shows(1, np.ones((10, 20), np.int64)), "not more than half of 400"
    assert sampler.shows(1, np.ones((10, 21), np.int64))


def test_crops_ask_for_their_share() -> None:
    sampler = RareClassSampler(RareClassSettings(crop_share=2.0), PIXELS, AREA)
    crop = np.zeros((256, 256), np.int64)
    crop.ravel()[:1500] = 2
    assert not sampler.shows(2, crop)
    crop.ravel()[:1501] = 2
    assert sampler.shows(2, crop)


def test_small_classes() -> None:
    sampler = SmallClassSampler(SmallClassSettings(share=0.2, probability=1.0), PIXELS)
    assert sampler.classes.tolist() == [2], "class 3 has no pixel to look for, 1 has a fifth"
    label = np.zeros((8, 9), np.uint8)
    assert sampler.point(label, 0, "target", 0) is None
    label[2, 7] = label[5, 3] = 2
    points = {sampler.point(label, 0, "target", position) for position in range(20)}
    assert points == {(2.5, 7.5), (5.5, 3.5)}
    half = SmallClassSampler(SmallClassSettings(share=0.2, probability=0.5), PIXELS)
    moved = sum(half.point(label, 0, "target", position) is not None for position in range(400))
    assert 160 < moved < 240


@pytest.mark.parametrize("flip", [0.0, 1.0])
@pytest.mark.parametrize("scale", [0.5, 1.0, 1.7])
def test_a_centred_crop_shows_its_point(flip: float, scale: float) -> None:
    settings = AugmentSettings(crop=(11, 13), scale=(scale, scale), flip=flip)
    label = np.zeros((40, 50), np.uint8)
    for y, x in ((0, 0), (39, 49), (20, 31), (3, 44)):
        label[:] = 0
        label[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2] = 7
        drawn = draw_geometry(settings, (40, 50), None, 0, "s", 5)
        moved = centred(drawn, (y + 0.5, x + 0.5))
        assert moved.size == drawn.size
        assert (moved.matrix[:, :2] == drawn.matrix[:, :2]).all()
        seen = take_map(label, moved)
        assert (seen != 255).all(), "no padding where the image is large enough"
        assert (seen == 7).any()
        if (y, x) == (20, 31):
            rows, columns = np.nonzero(seen == 7)
            assert abs(rows.mean() - 5) <= 1
            assert abs(columns.mean() - 6) <= 1


# ---------------------------------------------------------------- in a stream


def make(folder: Path, count: int = 6) -> Dataset:
    """Class 4 has a block in the corner of the last image alone; the others are stripes everywhere."""
    folder.mkdir(exist_ok=True)
    samples = []
    for i in range(count):
        image, label = folder / f"{i}.png", folder / f"{i}_mask.png"
        mask = np.tile(np.arange(48, dtype=np.uint8) // 12, (40, 1))
        if i == count - 1:
            mask[:6, :6] = 4
        Image.fromarray(np.full((40, 48, 3), 20 * i, np.uint8)).save(image)
        Image.fromarray(mask).save(label)
        samples.append(Sample(str(i), image, label))
    return Dataset("data", tuple(samples), Classes(tuple("abcde")), identity(5))


def stream(dataset: Dataset, **changes) -> Stream:
    given = {"augment": AugmentSettings(crop=(16, 16), flip=0.5), "views": {"weak": ViewSettings()}, **changes}
    return Stream(**{"name": "source", "datasets": [dataset], "seed": 3, "batch": 4, **given})


def shown(made: Stream, positions: int = 40) -> list[bool]:
    return [bool((made.load(p)["cuts"][SHARED][2]["label"] == 4).any()) for p in range(positions)]


def test_a_stream_finds_the_rare_class(tmp_path: Path) -> None:
    dataset = make(tmp_path / "data")
    plain, sampled = stream(dataset), stream(dataset, sampler=RareClassSettings(tries=40))
    assert sum(shown(plain)) < 8
    assert {sampled.sample_at(p) for p in range(40)} == {(0, 5)}
    assert sum(shown(sampled)) > 28
    assert sum(shown(stream(dataset, sampler=RareClassSettings(tries=1)))) < 12, "the image alone is not enough"


def test_a_stream_centres_on_the_small_class(tmp_path: Path) -> None:
    dataset = make(tmp_path / "data")
    made = stream(dataset, sampler=SmallClassSettings(share=0.02, probability=1.0))
    rounds = [{made.sample_at(p)[1] for p in range(r * 6, r * 6 + 6)} for r in range(3)]
    assert rounds == [set(range(6))] * 3, "images stay in turn"
    assert shown(made, 36) == [made.sample_at(p)[1] == 5 for p in range(36)]


@pytest.mark.parametrize("sampler", [RareClassSettings(temperature=1.0), SmallClassSettings(share=0.02)])
@pytest.mark.parametrize("workers", [0, 2])
def test_position_decides(tmp_path: Path, sampler: RareClassSettings | SmallClassSettings, workers: int) -> None:
    dataset = make(tmp_path / "data")
    whole = list(stream(dataset, sampler=sampler).batches(0, 4, 1, 0, 1, torch.device("cpu")))
    made = stream(dataset, sampler=sampler, loader=LoaderSettings(workers=workers))
    for ours, theirs in zip(made.batches(2, 4, 1, 0, 1, torch.device("cpu")), whole[2:], strict=True):
        assert ours.samples == theirs.samples
        torch.testing.assert_close(ours["weak"].label, theirs["weak"].label, rtol=0, atol=0)


def test_pooled_and_repeated_data(tmp_path: Path) -> None:
    first, second = make(tmp_path / "a", 2), make(tmp_path / "b", 3)
    made = stream(first, datasets=[first, second], repeat=(1, 3), sampler=RareClassSettings())
    found = Counter(made.sample_at(p) for p in range(200))
    assert found.keys() == {(0, 1), (1, 2)}, "the two images that have class 4"
    assert found[1, 2] > 2 * found[0, 1]


def test_a_sampler_needs_masks(tmp_path: Path) -> None:
    dataset = make(tmp_path / "data")
    with raises_code("sampler-labels", "'source'"):
        stream(dataset, labels=False, sampler=RareClassSettings())
