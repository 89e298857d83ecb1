"""Datasets: classes, bridging to another list of classes, fingerprints, and data without labels."""

import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.errors import raises_code
from tutelage.data.dataset import Classes, Dataset, Sample, bridge, describe_bridge, distinct_colour, inner_path
from tutelage.data.labels import IGNORE, LabelMap, identity


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    samples = []
    for i in range(3):
        image, label = tmp_path / f"data/{i}.png", tmp_path / f"data/{i}_mask.png"
        image.parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((4, 6, 3), i, np.uint8)).save(image)
        Image.fromarray(np.full((4, 6), i, np.uint8)).save(label)
        samples.append(Sample(str(i), image, label, group=f"tile{i // 2}"))
    return Dataset("train", tuple(samples), Classes(("road", "traffic light", "sky")), identity(3))


def moved(dataset: Dataset, folder: Path) -> Dataset:
    def there(path: Path | None) -> Path | None:
        return None if path is None else folder / path.name

    return replace(
        dataset, samples=tuple(replace(s, image=there(s.image), label=there(s.label)) for s in dataset.samples)
    )


def test_reading(dataset: Dataset) -> None:
    assert len(dataset) == 3
    assert dataset.labeled
    assert dataset.image(2).tolist() == np.full((4, 6, 3), 2).tolist()
    assert dataset.label(2).tolist() == np.full((4, 6), 2).tolist()
    assert pickle.loads(pickle.dumps(dataset)) == dataset


def test_classes() -> None:
    assert Classes(("a", "b")).palette == ((0, 0, 0), (128, 0, 0))
    assert distinct_colour(5) == (128, 0, 128)
    assert len({distinct_colour(i) for i in range(254)}) == 254
    for names in (("road", "sky", "road"), ("T-shirt", "t shirt")):
        with raises_code("duplicate-name"):
            Classes(names)
    with raises_code("class-palette", "2", "1"):
        Classes(("a", "b"), ((0, 0, 0),))
    for count in (0, 255):
        with raises_code("class-count", f"got {count}"):
            Classes(tuple(f"class{i}" for i in range(count)))


def test_without_labels_forgets_every_mask(dataset: Dataset) -> None:
    bare = replace(dataset, samples=tuple(replace(s, confidence=s.label) for s in dataset.samples)).without_labels()
    assert not bare.labeled
    assert all(sample.label is None and sample.confidence is None for sample in bare.samples)
    assert [sample.image for sample in bare.samples] == [sample.image for sample in dataset.samples]
    with raises_code("mask-missing"):
        bare.label(0)


def test_subset(dataset: Dataset) -> None:
    part = dataset.subset([2, 0], "few")
    assert part.name == "few"
    assert [sample.name for sample in part.samples] == ["2", "0"]
    assert dataset.subset([1]).name == "train"
    assert not dataset.subset([]).labeled


def test_labels_resized_to_their_image(dataset: Dataset) -> None:
    Image.fromarray(np.array([[0, 1], [2, 0]], np.uint8)).save(dataset.samples[0].label)
    assert dataset.label(0).shape == (2, 2)
    label = replace(dataset, resize_labels=True).label(0)
    np.testing.assert_array_equal(label, np.kron([[0, 1], [2, 0]], np.ones((2, 3))))
    assert replace(dataset, resize_labels=True).label(1).shape == (4, 6)


class TestFingerprint:
    def test_a_copy_elsewhere_is_equal(self, dataset: Dataset, tmp_path: Path) -> None:
        shutil.copytree(tmp_path / "data", tmp_path / "copy")
        copy = moved(dataset, tmp_path / "copy")
        assert copy.fingerprint == dataset.fingerprint
        assert replace(copy, name="other").fingerprint == dataset.fingerprint

    @pytest.mark.parametrize("name", ["0.png", "2_mask.png"])
    def test_any_changed_byte_differs(self, dataset: Dataset, tmp_path: Path, name: str) -> None:
        before = dataset.fingerprint
        path = tmp_path / "data" / name
        content = bytearray(path.read_bytes())
        for place in range(0, len(content), 7):
            changed = bytearray(content)
            changed[place] ^= 1
            path.write_bytes(changed)
            assert replace(dataset).fingerprint != before
        path.write_bytes(content)
        assert replace(dataset).fingerprint == before

    @pytest.mark.parametrize("size", [70_000, 131_072, 200_000])
    def test_large_files_are_sampled_at_both_ends(self, dataset: Dataset, tmp_path: Path, size: int) -> None:
        path = tmp_path / "data/0.png"
        content = np.random.default_rng(0).bytes(size)
        path.write_bytes(content)
        before = replace(dataset).fingerprint
        for place in (0, 65_535, size - 65_536, size - 1):
            changed = bytearray(content)
            changed[place] ^= 1
            path.write_bytes(changed)
            assert replace(dataset).fingerprint != before
        path.write_bytes(content + b"0")
        assert replace(dataset).fingerprint != before

    def test_everything_that_decides_a_label_counts(self, dataset: Dataset) -> None:
        samples = dataset.samples
        others = [
            replace(dataset, label_map=LabelMap({0: 1, 1: 0, 2: 2, 255: 255})),
            replace(dataset, label_map=replace(dataset.label_map, others=IGNORE)),
            replace(dataset, label_map=replace(dataset.label_map, encoding="first16")),
            replace(dataset, classes=Classes(("road", "car", "tree", "sky"))),
            replace(dataset, samples=samples[::-1]),
            replace(dataset, samples=samples[:2]),
            replace(dataset, samples=(replace(samples[0], group="x"), *samples[1:])),
            replace(dataset, samples=(replace(samples[0], name="x"), *samples[1:])),
            replace(dataset, samples=(replace(samples[0], confidence=samples[0].label), *samples[1:])),
            replace(dataset, resize_labels=True),
            dataset.without_labels(),
        ]
        assert len({dataset.fingerprint, *(other.fingerprint for other in others)}) == len(others) + 1

    def test_names_of_classes_do_not_count(self, dataset: Dataset) -> None:
        renamed = replace(dataset, classes=Classes(("road", "traffic light", "tree")))
        assert renamed.fingerprint == dataset.fingerprint

    def test_a_missing_file_is_named(self, dataset: Dataset, tmp_path: Path) -> None:
        (tmp_path / "data/1_mask.png").unlink()
        with raises_code("file-unreadable", "1_mask.png"):
            _ = dataset.fingerprint


class TestBridge:
    TASK = Classes(("Sky", "Traffic_Light", "ground"))

    def test_equal_names_meet_and_classes_merge(self, dataset: Dataset) -> None:
        mapping = {"road": "ground"}
        assert bridge(dataset, self.TASK, mapping) == {0: 2, 1: 1, 2: 0}
        both = dataset.bridged(self.TASK, mapping)
        assert both.classes == self.TASK
        assert [both.label(i)[0, 0] for i in range(3)] == [2, 1, 0]
        merged = dataset.bridged(self.TASK, {"road": "ground", "sky": "ground"})
        assert [merged.label(i)[0, 0] for i in range(3)] == [2, 1, 2]

    def test_ignored_classes(self, dataset: Dataset) -> None:
        both = dataset.bridged(self.TASK, {"road": None})
        assert [both.label(i)[0, 0] for i in range(3)] == [IGNORE, 1, 0]

    def test_what_is_lost_is_said(self, dataset: Dataset) -> None:
        lines = describe_bridge(dataset, self.TASK, {"road": None, "sky": "traffic light"})
        assert lines == [
            "train: no class maps to Sky; it has no pixels here",
            "train: traffic light + sky map to Traffic_Light",
            "train: no class maps to ground; it has no pixels here",
            "train: ignored: road",
        ]
        assert describe_bridge(dataset, dataset.classes, {}) == []

    def test_errors(self, dataset: Dataset) -> None:
        with raises_code("class-unmapped", ": road") as error:
            bridge(dataset, self.TASK, {})
        assert "{road: null}" in error.value.remedy
        with raises_code("unknown-class", "'tree'"):
            bridge(dataset, self.TASK, {"tree": None})
        with raises_code("unknown-class", "'tree'"):
            bridge(dataset, self.TASK, {"road": "tree"})


@pytest.mark.parametrize(
    ("name", "inside"),
    [("a/b", "a/b"), ("i 0", "i 0"), ("a.b/c.d", "a.b/c.d"), ("../x/y", "_up/x/y"), ("/top/x", "_top/top/x")],
)
def test_files_called_after_images_elsewhere_stay_inside(name: str, inside: str) -> None:
    assert inner_path(name) == inside
