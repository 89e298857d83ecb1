"""The toy city: equal bytes for equal arguments, sound labels, two domains of one layout, and the folder it writes."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.errors import raises_code
from tutelage.data.toycity import CLASSES, IGNORE_INDEX, PALETTE, Domain, folder, generate, is_complete, render

SIZE = (48, 96)


def digest(seed: int, index: int, size: tuple[int, int] = SIZE) -> str:
    parts = [array.tobytes() for domain in ("day", "dusk") for array in render(seed, index, size, domain)]
    return hashlib.sha256(b"".join(parts)).hexdigest()


def files_of(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_equal_arguments_give_equal_bytes_whatever_the_global_generators() -> None:
    np.random.seed(1)
    untouched = np.random.random()
    np.random.seed(1)
    first = digest(3, 5)
    assert np.random.random() == untouched
    assert digest(3, 5) == first
    assert digest(3, 6) != first
    assert digest(4, 5) != first


def test_equal_bytes_in_a_fresh_process() -> None:
    code = (
        "import random, numpy, sys; random.seed(9); numpy.random.seed(9); sys.path.insert(0, sys.argv[1])\n"
        "from test_toycity import digest; print(digest(3, 5))"
    )
    command = [sys.executable, "-c", code, str(Path(__file__).parent)]
    fresh = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    assert fresh == digest(3, 5)


@pytest.mark.parametrize("size", [(16, 16), (17, 31), (33, 16), (64, 257), (130, 40)])
@pytest.mark.parametrize("domain", ["day", "dusk"])
def test_any_size(size: tuple[int, int], domain: Domain) -> None:
    image, label = render(0, 1, size, domain)
    assert image.shape == (*size, 3)
    assert label.shape == size
    assert image.dtype == label.dtype == np.uint8
    assert set(np.unique(label)) <= {*range(len(CLASSES)), IGNORE_INDEX}


def test_every_class_has_its_share() -> None:
    labels = [render(11, index, (64, 128), "day")[1] for index in range(12)]
    counts = np.stack([np.bincount(label.ravel(), minlength=256) for label in labels])
    share = counts.sum(axis=0) / counts.sum()
    scenes = (counts > 0).mean(axis=0)
    assert share[: len(CLASSES)].min() > 0.004
    assert scenes[: len(CLASSES)].min() > 0.6
    assert 0 < scenes[IGNORE_INDEX] < 0.8
    assert share[: len(CLASSES)].sum() + share[IGNORE_INDEX] == pytest.approx(1)
    assert len(PALETTE) == len(set(PALETTE)) == len(CLASSES)


def test_the_domains_share_labels_and_differ_in_light() -> None:
    brightness = []
    for index in range(6):
        day, label = render(2, index, SIZE, "day")
        dusk, same = render(2, index, SIZE, "dusk")
        assert np.array_equal(label, same)
        brightness.append((day.mean(), dusk.mean()))
    day_mean, dusk_mean = np.mean(brightness, axis=0)
    assert dusk_mean < 0.85 * day_mean


def test_a_scene_is_recognised_at_another_size() -> None:
    agreement, chance = [], []
    large = [render(1, index, (128, 256), "day")[1][1::2, 1::2] for index in range(4)]
    for index in range(4):
        small = render(1, index, (64, 128), "day")[1]
        agreement.append((small == large[index]).mean())
        chance.append((small == large[(index + 1) % 4]).mean())
    assert min(agreement) > 0.93
    assert min(agreement) > max(chance) + 0.1


def test_labels_follow_visible_edges() -> None:
    """A class's border is a jump of colour: the bonnet, the sky and cars do not bleed by more than a pixel."""
    image, label = render(0, 1, (128, 256), "day")
    grey = image.astype(float).mean(axis=2)
    jump = np.abs(np.diff(grey, axis=1))
    border = np.diff(label.astype(int), axis=1) != 0
    assert jump[border].mean() > 2 * jump[~border].mean()


def test_the_sky_is_above_the_ground() -> None:
    for index in range(5):
        label = render(6, index, SIZE, "day")[1]
        rows = np.arange(SIZE[0])[:, None] * np.ones(SIZE[1])
        heights = [rows[label == CLASSES.index(name)].mean() for name in ("sky", "building", "car", "road")]
        assert heights == sorted(heights)


@pytest.mark.parametrize(
    ("seed", "index", "size", "domain"),
    [(0, 0, (15, 64), "day"), (-1, 0, SIZE, "day"), (0, -1, SIZE, "day"), (0, 0, SIZE, "noon")],
)
def test_impossible_arguments(seed: int, index: int, size: tuple[int, int], domain: Domain) -> None:
    with raises_code("invalid-value"):
        render(seed, index, size, domain)


def test_generate_writes_the_folder_once(tmp_path: Path) -> None:
    root, counts, seen = tmp_path / "city", {"train": 3, "val": 2}, []
    assert not is_complete(root, counts, SIZE, "dusk", 7)
    generate(root, counts, SIZE, "dusk", 7, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i, 5) for i in range(1, 6)]
    assert is_complete(root, counts, SIZE, "dusk", 7)
    assert not is_complete(root, counts, SIZE, "day", 7)

    lines = (root / "train.txt").read_text().splitlines()
    assert lines[1] == "images/train/dusk_00001.png labels/train/dusk_00001.png"
    assert len(lines) == 3
    image, label = (Image.open(root / name) for name in lines[1].split())
    expected = render(7, folder.first_index("train") + 1, SIZE, "dusk")
    assert (image.mode, label.mode) == ("RGB", "L")
    assert np.array_equal(np.asarray(image), expected[0])
    assert np.array_equal(np.asarray(label), expected[1])
    classes = json.loads((root / "classes.json").read_text())
    assert classes["names"] == list(CLASSES)
    assert [tuple(colour) for colour in classes["palette"]] == list(PALETTE)
    assert (classes["ignore_index"], classes["num_classes"]) == (255, 8)

    stamps = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    generate(root, counts, SIZE, "dusk", 7)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == stamps
    with raises_code("output-exists", "seed"):
        generate(root, counts, SIZE, "dusk", 8)


def test_a_half_made_folder_is_finished(tmp_path: Path) -> None:
    generate(tmp_path / "whole", {"train": 3}, SIZE, "day", 0)

    def give_up(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(tmp_path / "half", {"train": 3}, SIZE, "day", 0, progress=give_up)
    assert not is_complete(tmp_path / "half", {"train": 3}, SIZE, "day", 0)
    assert not (tmp_path / "half" / "classes.json").exists()
    with raises_code("output-exists"):
        generate(tmp_path / "half", {"train": 3}, SIZE, "dusk", 0)
    generate(tmp_path / "half", {"train": 3}, SIZE, "day", 0)
    assert files_of(tmp_path / "half") == files_of(tmp_path / "whole")


def test_a_foreign_folder_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("mine\n")
    with raises_code("output-exists"):
        generate(tmp_path, {"train": 1}, SIZE, "day", 0)
    assert files_of(tmp_path) == {"train.txt": b"mine\n"}


def test_workers_change_nothing(tmp_path: Path) -> None:
    generate(tmp_path / "one", {"train": 2, "val": 2}, (16, 32), "day", 1)
    generate(tmp_path / "two", {"train": 2, "val": 2}, (16, 32), "day", 1, workers=2)
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")


def test_splits_are_disjoint_and_independent(tmp_path: Path) -> None:
    generate(tmp_path / "a", {"train": 2, "val": 2}, SIZE, "day", 0)
    generate(tmp_path / "b", {"val": 2, "train": 3, "test": 1}, SIZE, "day", 0)
    few, many = files_of(tmp_path / "a"), files_of(tmp_path / "b")
    images = [name for name in few if name.startswith("images")]
    assert all(few[name] == many[name] for name in images)
    assert len({many[name] for name in many if name.startswith("images")}) == 6


@pytest.mark.parametrize("counts", [{"../train": 1}, {"": 1}, {"train": -1}])
def test_bad_splits(tmp_path: Path, counts: dict[str, int]) -> None:
    with raises_code("invalid-value", *counts):
        generate(tmp_path / "city", counts, SIZE, "day", 0)
    assert not (tmp_path / "city").exists()
