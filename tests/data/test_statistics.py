"""Mask statistics: counts, runs, faults as records, and a cache that is used, refused and rewritten."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tutelage.data import statistics
from tutelage.data.dataset import Classes, Dataset, Sample
from tutelage.data.fact_cache import cache_folder, gather
from tutelage.data.labels import LabelMap, identity, pack
from tutelage.data.statistics import read_statistics, row_runs

MASKS = {
    "a": [[0, 0, 1, 1], [0, 0, 0, 255], [2, 2, 2, 2]],
    "b": [[0, 0, 0, 0], [0, 0, 0, 0], [1, 0, 1, 0]],
}


def write(folder: Path, masks: dict[str, list[list[int]]] = MASKS) -> Dataset:
    samples = []
    for name, rows in masks.items():
        image, label = folder / f"{name}.png", folder / f"masks/{name}.png"
        label.parent.mkdir(parents=True, exist_ok=True)
        values = np.array(rows, np.uint8)
        Image.fromarray(np.zeros((*values.shape, 3), np.uint8)).save(image)
        Image.fromarray(values).save(label)
        samples.append(Sample(name, image, label))
    return Dataset("train", tuple(samples), Classes(("road", "car", "sky", "boat")), identity(4))


@pytest.fixture(autouse=True)
def _fresh_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is known from another test."""
    monkeypatch.setenv("TUTELAGE_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def opened_masks(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The masks that are opened from here on."""
    opened: list[Path] = []
    real = statistics.read_raw_mask

    def counting(path: Path, *rest: object) -> np.ndarray:
        opened.append(path)
        return real(path, *rest)

    monkeypatch.setattr(statistics, "read_raw_mask", counting)
    return opened


def test_counts(tmp_path: Path) -> None:
    found = read_statistics(write(tmp_path))
    assert len(found) == 2
    assert found.class_pixels().tolist() == [15, 4, 4, 0]
    assert found.images_with_class().tolist() == [2, 2, 1, 0]
    assert found.histogram() == {0: 15, 1: 4, 2: 4, 255: 1}
    assert list(found.histogram()) == [0, 1, 2, 255]
    first = found[0]
    assert first.values == {0: 5, 2: 4, 1: 2, 255: 1}
    assert first.classes.tolist() == [5, 2, 4, 0]
    assert first.runs.tolist() == [2, 1, 1, 0]
    assert (first.ignored, first.unexpected, first.height, first.width, first.format) == (1, 0, 3, 4, "PNG")
    assert first.image_size == (3, 4)
    assert [mask.runs[1] for mask in found] == [1, 2]
    assert found.faults == ()
    assert found.read.all()


def test_runs_end_with_their_row() -> None:
    values, lengths = row_runs(np.array([[7, 7], [7, 7], [7, 9]], np.uint16))
    assert values.tolist() == [7, 7, 7, 9]
    assert lengths.tolist() == [2, 2, 1, 1]
    assert row_runs(np.zeros((0, 0), np.uint8))[0].size == 0


def test_runs_against_brute_force() -> None:
    raw = np.random.default_rng(0).integers(0, 3, (13, 17), dtype=np.uint8)
    values, lengths = row_runs(raw)
    assert np.repeat(values, lengths).tolist() == raw.ravel().tolist()
    breaks = sum(int((row[1:] != row[:-1]).sum()) + 1 for row in raw)
    assert len(values) == breaks


def test_colours_and_label_maps(tmp_path: Path) -> None:
    dataset = write(tmp_path)
    rgb = np.zeros((3, 4, 3), np.uint8)
    rgb[0] = (255, 0, 0)
    rgb[2, 0] = (1, 2, 3)
    Image.fromarray(rgb).save(dataset.samples[0].label)
    table = LabelMap({pack((255, 0, 0)): 1, 0: 255}, "rgb", others=2)
    found = read_statistics(replace(dataset.subset([0]), label_map=table))
    assert found[0].classes.tolist() == [0, 4, 1, 0]
    assert found[0].ignored == 7
    assert found[0].unexpected == 0
    assert found[0].values == {0: 7, pack((255, 0, 0)): 4, pack((1, 2, 3)): 1}


def test_many_values_are_cut_off_but_counted(tmp_path: Path) -> None:
    dataset = write(tmp_path).subset([0])
    deep = np.arange(40 * 50, dtype=np.uint16).reshape(40, 50)
    Image.fromarray(deep).save(dataset.samples[0].label)
    found = read_statistics(dataset)[0]
    assert len(found.values) == 512
    assert found.unexpected == 2000 - 5  # four classes and the ignored 255
    assert found.ignored == 1


def test_faults_are_records(tmp_path: Path) -> None:
    dataset = write(tmp_path, {name: [[0, 1], [1, 0]] for name in "abcdefg"})
    labels = [sample.label for sample in dataset.samples]
    labels[0].write_bytes(b"")
    labels[1].write_bytes(labels[1].read_bytes()[:-30])
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (2, 2, 3), dtype=np.uint8)).save(labels[2])
    Image.fromarray(np.array([[0, 9], [9, 7]], np.uint8)).save(labels[3])
    Image.fromarray(np.zeros((3, 2), np.uint8)).save(labels[4])
    labels[5].unlink()
    found = read_statistics(dataset)
    assert [(fault.index, fault.kind) for fault in found.faults] == [
        (0, "unreadable"),
        (1, "unreadable"),
        (2, "form"),
        (3, "unexpected"),
        (4, "size"),
        (5, "unreadable"),
    ]
    messages = [fault.message for fault in found.faults]
    assert "(0 bytes)" in messages[0]
    assert all(str(label) in message for label, message in zip(labels, messages, strict=False))
    assert "9 (2 pixels), 7 (1 pixels)" in messages[3]
    assert "2x3" in messages[4]
    assert "2x2" in messages[4]
    assert found.read.tolist() == [False, False, False, True, True, False, True]
    assert found.class_pixels().tolist() == [1 + 6 + 2, 2, 0, 0]


def test_resized_labels_have_no_size_fault(tmp_path: Path) -> None:
    dataset = replace(write(tmp_path), resize_labels=True)
    Image.fromarray(np.zeros((6, 8), np.uint8)).save(dataset.samples[0].label)
    assert read_statistics(dataset).faults == ()


def test_unlabelled_samples_and_unreadable_images(tmp_path: Path) -> None:
    dataset = write(tmp_path)
    dataset.samples[1].image.write_bytes(b"no image")
    bare = replace(dataset, samples=(replace(dataset.samples[0], label=None), dataset.samples[1]))
    found = read_statistics(bare)
    assert found.classes[0].sum() == 0
    assert found[1].image_size == (0, 0)
    assert found.faults == ()
    assert not read_statistics(dataset.without_labels()).read.any()


def test_second_read_opens_no_mask(tmp_path: Path, opened_masks: list[Path]) -> None:
    dataset = write(tmp_path / "data")
    first = read_statistics(dataset, cache=tmp_path / "cache")
    assert len(opened_masks) == 2
    elsewhere = write(tmp_path / "moved")
    Image.fromarray(np.full((3, 4), 9, np.uint8)).save(elsewhere.samples[0].label)
    faulty = read_statistics(elsewhere, cache=tmp_path / "cache")
    opened_masks.clear()
    again = read_statistics(write(tmp_path / "data"), cache=tmp_path / "cache")
    assert opened_masks == []
    for name in ("offsets", "values", "counts", "classes", "runs", "rest", "sizes"):
        assert np.array_equal(getattr(again, name), getattr(first, name)), name
    assert (again.formats, again.faults) == (first.formats, first.faults)
    # Equal data are known wherever they lie, and their faults name the files that are there.
    third = write(tmp_path / "third")
    Image.fromarray(np.full((3, 4), 9, np.uint8)).save(third.samples[0].label)
    found = read_statistics(third, cache=tmp_path / "cache")
    assert opened_masks == []
    assert str(third.samples[0].label) in found.faults[0].message
    assert str(elsewhere.samples[0].label) in faulty.faults[0].message


def test_changed_data_are_read_again(tmp_path: Path, opened_masks: list[Path]) -> None:
    read_statistics(write(tmp_path))
    opened_masks.clear()
    changed = {**MASKS, "b": [[3] * 4] * 3}
    assert read_statistics(write(tmp_path, changed)).class_pixels().tolist() == [5, 2, 4, 12]
    assert len(opened_masks) == 2
    opened_masks.clear()
    read_statistics(replace(write(tmp_path, changed), label_map=identity(4, (255, 7))))
    assert len(opened_masks) == 2


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "text", "folder"])
def test_damaged_cache_is_made_again(tmp_path: Path, damage: str, opened_masks: list[Path]) -> None:
    cache = tmp_path / "cache"
    expected = read_statistics(write(tmp_path / "data"), cache=cache).class_pixels().tolist()
    (stored,) = cache.rglob("*.npz")
    content = stored.read_bytes()
    if damage == "folder":
        stored.unlink()
        stored.mkdir()
    else:
        middle = len(content) // 2
        stored.write_bytes(
            {
                "empty": b"",
                "cut": content[:-40],
                "flipped": content[:middle] + bytes(255 - byte for byte in content[middle:]),
                "text": b"PK not a zip at all",
            }[damage]
        )
    opened_masks.clear()
    assert read_statistics(write(tmp_path / "data"), cache=cache).class_pixels().tolist() == expected
    assert len(opened_masks) == 2
    if damage != "folder":
        opened_masks.clear()
        read_statistics(write(tmp_path / "data"), cache=cache)
        assert opened_masks == []


def test_unwritable_cache_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    found = read_statistics(write(tmp_path / "data"), cache=tmp_path / "file" / "cache")
    assert found.class_pixels().tolist() == [15, 4, 4, 0]


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TUTELAGE_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    read_statistics(write(tmp_path))
    assert len(list((tmp_path / "own").rglob("*.npz"))) == 1
    assert not list((tmp_path / "own").rglob("*.partial*"))
    monkeypatch.delenv("TUTELAGE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "tutelage"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "tutelage"


@pytest.mark.parametrize("workers", [1, 3])
def test_progress_and_order(tmp_path: Path, workers: int) -> None:
    told: list[tuple[int, int]] = []
    read_statistics(write(tmp_path), workers=workers, progress=lambda done, total: told.append((done, total)))
    assert told == [(1, 2), (2, 2)]
    assert gather(lambda number: number * number, range(50), workers) == [n * n for n in range(50)]


def test_empty_dataset(tmp_path: Path) -> None:
    found = read_statistics(write(tmp_path).subset([]))
    assert len(found) == 0
    assert found.class_pixels().tolist() == [0, 0, 0, 0]
    assert found.histogram() == {}
