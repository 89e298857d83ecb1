"""The cache of decoded files gives what reading gives, whatever its kind."""

import os
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.errors import raises_code
from tutelage.data.cache import ImageCache
from tutelage.data.dataset import Classes, Dataset, Sample
from tutelage.data.labels import LabelMap, identity

KINDS = ("none", "memory", "disk")


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    draw = np.random.default_rng(0)
    samples = []
    for i in range(2):
        paths = [tmp_path / f"{i}{kind}.png" for kind in ("", "_mask", "_confidence")]
        Image.fromarray(draw.integers(0, 256, (6, 9, 3), dtype=np.uint8)).save(paths[0])
        Image.fromarray(draw.integers(0, 3, (6, 9), dtype=np.uint8)).save(paths[1])
        Image.fromarray(draw.integers(0, 256, (6, 9), dtype=np.uint8)).save(paths[2])
        samples.append(Sample(str(i), paths[0], paths[1], confidence=paths[2]))
    return Dataset("d", tuple(samples), Classes(("a", "b", "c")), identity(3))


@pytest.fixture(params=KINDS)
def cache(request: pytest.FixtureRequest, tmp_path: Path) -> ImageCache:
    return ImageCache(request.param, str(tmp_path / "cache"))


def test_equal_arrays(dataset: Dataset, cache: ImageCache) -> None:
    plain = ImageCache()
    for _ in range(2):
        for i in range(2):
            for read in ("image", "label", "confidence"):
                cached, expected = getattr(cache, read)(dataset, i), getattr(plain, read)(dataset, i)
                assert cached.dtype == np.uint8
                np.testing.assert_array_equal(cached, expected)


def test_the_file_is_read_once(dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = {}
    for kind in KINDS:
        cache, read = ImageCache(kind, str(tmp_path / "cache")), []
        monkeypatch.setattr("tutelage.data.dataset.read_image", lambda path, read=read: read.append(path) or np.eye(3))
        for _ in range(3):
            cache.image(dataset, 0)
        counts[kind] = len(read)
    assert counts == {"none": 3, "memory": 1, "disk": 1}


def test_label_maps_are_kept_apart(dataset: Dataset, cache: ImageCache) -> None:
    other = replace(dataset, label_map=LabelMap({0: 2, 1: 1, 2: 0}))
    np.testing.assert_array_equal(2 - cache.label(dataset, 0), cache.label(other, 0))
    Image.fromarray(np.zeros((3, 3), np.uint8)).save(dataset.samples[1].label)
    assert cache.label(dataset, 1).shape == (3, 3)
    assert cache.label(replace(dataset, resize_labels=True), 1).shape == (6, 9)


def test_a_changed_file_is_read_again_from_disk(dataset: Dataset, tmp_path: Path) -> None:
    cache = ImageCache("disk", str(tmp_path / "cache"))
    cache.image(dataset, 0)
    path = dataset.samples[0].image
    Image.fromarray(np.zeros((6, 9, 3), np.uint8)).save(path)
    os.utime(path, ns=(1, 1))
    assert not cache.image(dataset, 0).any()
    assert not list((tmp_path / "cache").rglob("*.partial*"))


def test_an_unreadable_file_is_not_cached(dataset: Dataset, cache: ImageCache) -> None:
    path = dataset.samples[0].image
    content = path.read_bytes()
    path.unlink()
    with raises_code("file-missing"):
        cache.image(dataset, 0)
    path.write_bytes(content[:60])
    with raises_code("image-unreadable", "damaged"):
        cache.image(dataset, 0)
    path.write_bytes(content)
    assert cache.image(dataset, 0).shape == (6, 9, 3)


def test_many_threads_may_fill_one_cache(dataset: Dataset, tmp_path: Path) -> None:
    """Two streams over the same images, each with its thread."""
    expected = dataset.image(0)
    faults = []

    def read() -> None:
        try:
            barrier.wait()
            np.testing.assert_array_equal(ImageCache("disk", str(tmp_path / "cache")).image(dataset, 0), expected)
        except BaseException as fault:
            faults.append(fault)

    barrier = threading.Barrier(8)
    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
