"""Pseudo labels: policies against brute force, and files that are the same however often the run was killed."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image
from torch import Tensor

from tests.processes import Countdown, count_disk_calls, in_child, start
from tutelage.annotate import pseudo_labels
from tutelage.annotate.policies import Argmax, ClassBalanced, ClassQuantile, ClassRatio, Policy, Threshold
from tutelage.annotate.pseudo_labels import Written, annotate, class_thresholds
from tutelage.data.dataset import Classes, Dataset, Sample
from tutelage.data.labels import IGNORE, identity
from tutelage.data.pseudo_labels import PseudoLabelFolder
from tutelage.engine import collectives
from tutelage.evaluation.protocol import Protocol
from tutelage.runs.atomic import sha256
from tutelage.runs.store import Store

CLASSES = Classes(("road", "car", "sky"))
COUNT, SIZE = 5, (14, 18)


class ColourNet:
    """Says of a pixel the channel that is brightest; counts the images that it saw."""

    stride = 1

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, image: Tensor, /) -> SimpleNamespace:
        self.seen += 1
        return SimpleNamespace(logits=8 * image)


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """Random images of a few sizes, some in subfolders, with masks that would end the run if they were opened."""
    samples = []
    for number in range(COUNT):
        name = f"sub/image{number}" if number % 2 else f"image {number}"
        image, mask = tmp_path / "images" / f"{name}.png", tmp_path / "masks" / f"{name}.png"
        for path in (image, mask):
            path.parent.mkdir(parents=True, exist_ok=True)
        draw = np.random.default_rng(number)
        height, width = SIZE[0] + number % 3, SIZE[1]
        Image.fromarray(draw.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(image)
        mask.write_bytes(b"no image")
        samples.append(Sample(name, image, mask))
    return Dataset("mine", tuple(samples), CLASSES, identity(3))


POLICIES = {
    "argmax": lambda: Argmax(3),
    "threshold": lambda threshold=0.9: Threshold(3, threshold),
    "class_balanced": lambda portion=0.4: ClassBalanced(3, portion),
    "class_quantile": lambda quantile=0.5, cap=0.9: ClassQuantile(3, quantile, cap),
    "class_ratio": lambda portion=0.3: ClassRatio(3, portion),
}
"""Every policy that goes by logits, by name."""


def run(
    dataset: Dataset, root: Path, net: ColourNet | None = None, policy: str | Policy = "argmax", **changes: Any
) -> Written | None:
    own = {name: changes.pop(name) for name in ("threshold", "portion", "quantile", "cap") if name in changes}
    chosen = POLICIES[policy](**own) if isinstance(policy, str) else policy
    given = {"device": torch.device("cpu"), "protocol": Protocol(), "producer": "key.student", **changes}
    return annotate(net or ColourNet(), dataset, root, policy=chosen, **given)


def brute_force(dataset: Dataset) -> list[tuple[np.ndarray, np.ndarray]]:
    """Class and confidence (0..255) of every pixel, written out."""
    result = []
    for index in range(len(dataset)):
        logits = 8 * dataset.image(index).astype(np.float64) / 255
        probability = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        result.append((probability.argmax(-1), np.round(255 * probability.max(-1))))
    return result


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.mode == "L"
        return np.asarray(image)


def maps(dataset: Dataset, root: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    folder = PseudoLabelFolder(root)
    return [(read(folder.label(s.name)), read(folder.confidence(s.name))) for s in dataset.samples]


def contents(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


# Policies


def test_every_pixel_gets_its_most_likely_class(dataset: Dataset, tmp_path: Path) -> None:
    written = run(dataset, tmp_path / "out")
    assert written is not None
    files = written.files
    for (label, confidence), (expected, sureness) in zip(
        maps(dataset, tmp_path / "out"), brute_force(dataset), strict=True
    ):
        np.testing.assert_array_equal(label, expected)
        assert np.abs(confidence - sureness).max() <= 1, "rounding"
    assert len(files) == 1 + 2 * COUNT
    assert sum(sum_ == sha256(path) for path, sum_ in files.items()) == 2 * COUNT
    assert {path.relative_to(tmp_path / "out").as_posix() for path in files} == set(contents(tmp_path / "out"))
    assert json.loads((tmp_path / "out" / "pseudo_labels.json").read_text()) == {
        "format": 1,
        "classes": ["road", "car", "sky"],
        "samples": [sample.name for sample in dataset.samples],
        "producer": "key.student",
        "policy": "argmax",
        "protocol": Protocol().key(),
        "levels": [0, 0, 0],
    }


@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.9, 0.999, 1.0])
def test_a_threshold_keeps_what_is_at_least_as_sure(dataset: Dataset, tmp_path: Path, threshold: float) -> None:
    run(dataset, tmp_path / "all")
    run(dataset, tmp_path / "out", policy="threshold", threshold=threshold)
    kept = 0
    for (label, confidence), (all_, same) in zip(
        maps(dataset, tmp_path / "out"), maps(dataset, tmp_path / "all"), strict=True
    ):
        np.testing.assert_array_equal(confidence, same)
        np.testing.assert_array_equal(label, np.where(confidence >= threshold * 255, all_, IGNORE))
        kept += int((label != IGNORE).sum())
    assert (kept == sum(label.size for label, _ in maps(dataset, tmp_path / "all"))) == (threshold == 0)
    assert (
        json.loads((tmp_path / "out" / "pseudo_labels.json").read_text())["levels"]
        == [int(np.ceil(threshold * 255))] * 3
    )


@pytest.mark.parametrize("portion", [0.01, 0.29, 0.5, 1.0])
def test_balanced_thresholds_against_sorted_lists(dataset: Dataset, tmp_path: Path, portion: float) -> None:
    run(dataset, tmp_path / "all")
    run(dataset, tmp_path / "out", policy="class_balanced", portion=portion)
    everything, thinned = maps(dataset, tmp_path / "all"), maps(dataset, tmp_path / "out")
    levels = []
    for class_ in range(3):
        confidences = np.concatenate([confidence[label == class_] for label, confidence in everything])
        falling = sorted(confidences.tolist(), reverse=True)
        wanted = int(round(portion * len(falling), 6))
        levels.append(falling[wanted - 1] if wanted else 255)
    for (label, confidence), (all_, same) in zip(thinned, everything, strict=True):
        np.testing.assert_array_equal(confidence, same)
        np.testing.assert_array_equal(label, np.where(confidence >= np.array(levels)[all_], all_, IGNORE))
    assert json.loads((tmp_path / "out" / "pseudo_labels.json").read_text())["levels"] == levels
    if portion == 1.0:
        assert all((label == all_).all() for (label, _), (all_, _) in zip(thinned, everything, strict=True))


def test_thresholds_by_hand() -> None:
    histogram = np.zeros((4, 256), dtype=np.int64)
    histogram[0, [255, 200, 100]] = 1, 2, 7  # ten pixels
    histogram[1, 0] = 5
    histogram[3, 130] = 1
    assert class_thresholds(histogram, 0.1) == [255, 255, 255, 255], "rank 0 and empty classes: only the certain"
    assert class_thresholds(histogram, 0.2) == [200, 0, 255, 255]
    assert class_thresholds(histogram, 0.3) == [200, 0, 255, 255]
    assert class_thresholds(histogram, 0.31) == [200, 0, 255, 255]
    assert class_thresholds(histogram, 0.4) == [100, 0, 255, 255]
    assert class_thresholds(histogram, 1.0) == [100, 0, 255, 130]


def test_a_share_is_not_lost_to_rounding() -> None:
    """0.29 of 100 pixels are 29, though 0.29 * 100 is less in floating point."""
    histogram = np.zeros((1, 256), dtype=np.int64)
    histogram[0, 100:200] = 1
    assert class_thresholds(histogram, 0.29) == [200 - 29]
    assert class_thresholds(histogram * 10**10, 0.29) == [200 - 29]


@pytest.mark.parametrize("seed", range(3))
def test_thresholds_of_random_histograms_against_sorted_lists(seed: int) -> None:
    draw = np.random.default_rng(seed)
    histogram = draw.integers(0, 4, (5, 256)) * (draw.random((5, 256)) < 0.2)
    for portion in (0.05, 0.5, 0.77, 1.0):
        for counts, level in zip(histogram, class_thresholds(histogram, portion), strict=True):
            falling = np.repeat(np.arange(256), counts)[::-1]
            wanted = int(round(portion * len(falling), 6))
            assert level == (falling[wanted - 1] if wanted else 255)


# Going on


def test_what_is_done_is_not_done_again(dataset: Dataset, tmp_path: Path) -> None:
    first, again, told = ColourNet(), ColourNet(), []
    run(dataset, tmp_path / "out", first, progress=lambda done, total: told.append((done, total)))
    assert first.seen == COUNT
    assert told == [(n, COUNT) for n in range(1, COUNT + 1)]
    before = contents(tmp_path / "out")
    (tmp_path / "out" / "labels" / "sub" / "image1.png").unlink()
    (tmp_path / "out" / "confidence" / "image 4.png").unlink()
    told.clear()
    run(dataset, tmp_path / "out", again, progress=lambda done, total: told.append((done, total)))
    assert again.seen == 2
    assert told == [(4, 5), (5, 5)]
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize("policy", POLICIES)
def test_a_second_run_changes_nothing(dataset: Dataset, tmp_path: Path, policy: str) -> None:
    """Of thinned maps too: the thresholds are not taken again from what they left."""
    written = run(dataset, tmp_path / "out", policy=policy)
    before = contents(tmp_path / "out")
    net = ColourNet()
    again = run(dataset, tmp_path / "out", net, policy=policy)
    assert written is not None
    assert again is not None
    assert again.files == written.files
    np.testing.assert_array_equal(again.said_K, written.said_K)
    np.testing.assert_array_equal(again.counts_NC, written.counts_NC)
    assert contents(tmp_path / "out") == before
    assert net.seen == 0


def test_a_map_that_was_changed_by_hand_is_made_again(dataset: Dataset, tmp_path: Path) -> None:
    artefact = Store(tmp_path).artefact("marked", "0123456789ab")

    def make() -> dict[str, bytes]:
        artefact.reopen()
        artefact.begin("")
        written = run(dataset, artefact.labels, policy="class_balanced")
        assert written is not None
        artefact.finish("annotate", written.files, {})
        assert artefact.fault() is None
        return contents(artefact.folder)

    before = make()
    path = artefact.labels / "labels" / "sub" / "image1.png"
    Image.fromarray(np.zeros((15, 18), dtype=np.uint8)).save(path)
    assert artefact.fault() == "labels/labels/sub/image1.png was changed after it was made"
    assert make() == before


def _annotate(dataset: Dataset, out: Path, number: int) -> None:
    pseudo_labels._WRITERS = 1  # so that files come in the order of the images
    countdown = Countdown(number)
    count_disk_calls(countdown)
    run(dataset, out, policy="class_balanced")
    raise SystemExit(countdown.calls)


# Three calls a file: of confidences and labels, of the histogram, of thinned labels, of the list of images, of the
# manifest; and one to remove the list of the work.
_FIRST_PASS, _HISTOGRAM, _THINNED = 6 * COUNT, 6 * COUNT + 3, 9 * COUNT + 3


@pytest.mark.parametrize(
    "numbers",
    [
        (1,),
        (8, 8),  # between two images, and again
        (10,),  # an image's confidence is there, its label is not
        (_FIRST_PASS + 1,),  # before the histogram
        (_HISTOGRAM,),  # just after it
        (_HISTOGRAM + 4, 2),  # some maps are thinned
        (_THINNED + 1,),  # all are, the list of images is missing
        (_THINNED + 4,),  # only the manifest is missing
    ],
)
def test_killed_and_started_again_the_files_are_the_same(
    dataset: Dataset, tmp_path: Path, numbers: tuple[int, ...]
) -> None:
    run(dataset, tmp_path / "whole", policy="class_balanced")
    out = tmp_path / "out"
    for number in numbers:
        assert in_child(_annotate, dataset, out, number) == -9
        assert not (out / "pseudo_labels.json").exists()
    if numbers == (10,):
        assert (out / "confidence" / "sub" / "image1.png").exists()
        assert not (out / "labels" / "sub" / "image1.png").exists()
    run(dataset, out, policy="class_balanced")
    found = {name: content for name, content in contents(out).items() if ".partial" not in name}
    assert found == contents(tmp_path / "whole")


def test_the_disk_calls_are_as_these_tests_think(dataset: Dataset, tmp_path: Path) -> None:
    assert in_child(_annotate, dataset, tmp_path / "out", 0) == _THINNED + 7


# Faults and ranks


def test_an_image_that_cannot_be_read_ends_the_run_and_keeps_what_is_done(dataset: Dataset, tmp_path: Path) -> None:
    dataset.samples[3].image.write_bytes(b"no image")
    with pytest.raises(Exception, match="image3"):
        run(dataset, tmp_path / "out")
    assert (tmp_path / "out" / "labels" / "image 2.png").exists()
    assert not (tmp_path / "out" / "pseudo_labels.json").exists()


def test_a_folder_that_cannot_be_written_ends_the_run(dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "labels").write_text("in the way")
    with pytest.raises(OSError, match="labels"):
        run(dataset, tmp_path / "out")


def _rank(rank: int, dataset: Dataset, root: Path, policy: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{root / 'store'}", rank=rank, world_size=2)
    net = ColourNet()
    written = run(dataset, root / "out", net, policy=policy)
    collectives.leave()
    looks = 2 if POLICIES[policy]().surveys else 1
    assert net.seen == looks * (3 if rank == 0 else 2)
    assert (written is None) == (rank > 0)


@pytest.mark.parametrize("policy", ["class_balanced", "class_ratio"])
def test_two_processes_write_the_same_files(dataset: Dataset, tmp_path: Path, policy: str) -> None:
    run(dataset, tmp_path / "whole", policy=policy)
    processes = [start(_rank, rank, dataset, tmp_path, policy) for rank in range(2)]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
