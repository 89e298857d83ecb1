"""Pseudo labels that were begun and not finished: kills, full disks, other numbers of processes, unreadable images."""

from __future__ import annotations

import errno
import json
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch.distributed as dist
from PIL import Image
from torch import Tensor

from tests.annotate.test_pseudo_labels import (
    COUNT,
    POLICIES,
    ColourNet,
    contents,
    dataset,
    maps,
    read,
    run,
)
from tests.processes import die, in_child, start
from tutelage.data.dataset import Dataset
from tutelage.data.pseudo_labels import PseudoLabelFolder, with_pseudo_labels
from tutelage.engine import collectives
from tutelage.errors import DataError
from tutelage.runs.atomic import PARTIAL

__all__ = ["dataset"]
SURVEYS = [name for name in POLICIES if POLICIES[name]().surveys]


class Mortal(ColourNet):
    """Takes the process with it at the n-th image."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def __call__(self, image: Tensor, /) -> Any:
        if self.seen + 1 == self.number:
            die()
        return super().__call__(image)


def _until(dataset: Dataset, out: Path, policy: str, number: int) -> None:
    run(dataset, out, Mortal(number), policy=policy)


def finished(out: Path) -> dict[str, bytes]:
    return {path: content for path, content in contents(out).items() if PARTIAL not in path}


# Kills


@pytest.mark.parametrize("policy", SURVEYS)
@pytest.mark.parametrize("number", [3, COUNT, COUNT + 1, COUNT + 3])
def test_killed_in_either_look_no_image_is_looked_at_again(
    dataset: Dataset, tmp_path: Path, policy: str, number: int
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    run(dataset, whole, policy=policy)
    assert in_child(_until, dataset, out, policy, number) == -9
    net = ColourNet()
    run(dataset, out, net, policy=policy)
    assert net.seen <= 2 * COUNT - max(number - 1 - _LATE, 0)
    assert finished(out) == contents(whole)


_LATE = 4  # images that the net had seen, and of which nothing lay on the disk yet


@pytest.mark.parametrize("policy", SURVEYS)
def test_what_has_been_counted_is_not_counted_again(dataset: Dataset, tmp_path: Path, policy: str) -> None:
    """The first look failed at an image that is back now."""
    lost = dataset.samples[3].image
    content = lost.read_bytes()
    lost.write_bytes(b"no image")
    first, again = ColourNet(), ColourNet()
    with pytest.raises(DataError, match="image3"):
        run(dataset, tmp_path / "out", first, policy=policy)
    assert first.seen == 3
    lost.write_bytes(content)
    run(dataset, tmp_path / "out", again, policy=policy)
    assert again.seen == 2 * COUNT - 3
    run(dataset, tmp_path / "whole", policy=policy)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def _rank(rank: int, dataset: Dataset, root: Path, policy: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{root / 'store'}", rank=rank, world_size=2)
    run(dataset, root / "out", policy=policy)
    collectives.leave()


@pytest.mark.parametrize("policy", ["class_balanced", "class_ratio"])
@pytest.mark.parametrize("number", [3, COUNT + 2])
def test_another_number_of_processes_goes_on(dataset: Dataset, tmp_path: Path, policy: str, number: int) -> None:
    run(dataset, tmp_path / "whole", policy=policy)
    in_child(_until, dataset, tmp_path / "out", policy, number)
    processes = [start(_rank, rank, dataset, tmp_path, policy) for rank in range(2)]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert finished(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.parametrize("policy", [name for name in POLICIES if not POLICIES[name]().complete])
def test_a_map_that_was_changed_is_made_again(dataset: Dataset, tmp_path: Path, policy: str) -> None:
    """Also where no manifest vouches for it any more: the records of images know what was written."""
    run(dataset, tmp_path, ColourNet(), policy=policy)
    made = contents(tmp_path)
    name = dataset.samples[1].name
    path = PseudoLabelFolder(tmp_path).label(name)
    Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    assert contents(tmp_path) != made
    run(dataset, tmp_path, ColourNet(), policy=policy)
    assert contents(tmp_path) == made


def test_a_line_that_was_cut_short_costs_its_image(dataset: Dataset, tmp_path: Path) -> None:
    out, last = tmp_path / "out", dataset.samples[-1].image
    content = last.read_bytes()
    last.write_bytes(b"no image")
    with pytest.raises(DataError):
        run(dataset, out, policy="threshold")
    last.write_bytes(content)
    journal = out / "images-0.jsonl"
    lines = journal.read_text().strip().split("\n")
    assert len(lines) == COUNT - 1
    journal.write_text("\n" + "\n".join([*lines[:-1], lines[-1][: len(lines[-1]) // 2]]))
    net = ColourNet()
    run(dataset, out, net, policy="threshold")
    assert net.seen == 2
    run(dataset, tmp_path / "whole", policy="threshold")
    assert contents(out) == contents(tmp_path / "whole")


# A full disk


FILES = {"argmax": 2 * COUNT + 1, "class_balanced": 3 * COUNT + 3, "class_ratio": 3 * COUNT + 3}
"""Files that are written in all, those that are written again and those that go counted, too."""


@pytest.mark.parametrize("policy", FILES)
@pytest.mark.parametrize("room", [0, 1, 4, 7, 10, 14, 17])
def test_a_full_disk_ends_the_run_and_leaves_nothing_half_written(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: str, room: int
) -> None:
    """Room for a number of files; then none, then enough."""
    run(dataset, tmp_path / "whole", policy=policy)
    out = tmp_path / "out"
    lock, fsync, left = threading.Lock(), os.fsync, [room]

    def full(descriptor: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            return fsync(descriptor)
        with lock:
            left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return fsync(descriptor)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        if room < FILES[policy]:
            with pytest.raises(OSError, match="No space left"):
                run(dataset, out, policy=policy)
            assert not (out / "pseudo_labels.json").exists()
            assert [path for path in contents(out) if PARTIAL in path] == []
            for path in (out / "labels").rglob("*.png"):
                read(path)
        else:
            run(dataset, out, policy=policy)
    net = ColourNet()
    run(dataset, out, net, policy=policy)
    assert contents(out) == contents(tmp_path / "whole")
    assert net.seen <= COUNT * (2 if policy == "class_ratio" else 1)


def test_a_list_that_does_not_fit_ends_the_run(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        def __init__(self) -> None:
            self.file = open(tmp_path / "half", "w", encoding="utf-8")  # noqa: SIM115

        def write(self, text: str) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def close(self) -> None:
            self.file.close()

    with monkeypatch.context() as patched:
        patched.setattr("tutelage.annotate.pseudo_labels.open", lambda *given, **named: Full(), raising=False)
        with pytest.raises(OSError, match="No space left"):
            run(dataset, tmp_path / "out", policy="threshold")
    run(dataset, tmp_path / "out", policy="threshold")
    run(dataset, tmp_path / "whole", policy="threshold")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


# Images of all kinds


@pytest.mark.parametrize("policy", POLICIES)
def test_an_image_that_cannot_be_read_is_left_out_where_that_is_asked_for(
    dataset: Dataset, tmp_path: Path, policy: str
) -> None:
    dataset.samples[1].image.write_bytes(b"no image")
    told: list[str] = []
    written = run(dataset, tmp_path / "out", policy=policy, on_unreadable="skip", say=told.append)
    assert written is not None
    assert written.unreadable == ["sub/image1"]
    manifest = json.loads((tmp_path / "out" / "pseudo_labels.json").read_text())
    assert manifest["unreadable"] == ["sub/image1"]
    assert manifest["samples"] == [sample.name for sample in dataset.samples if sample.name != "sub/image1"]
    assert told[-1] == "  warning: 1 images cannot be read and have no labels: sub/image1"
    labelled = with_pseudo_labels(dataset, tmp_path / "out")
    assert [sample.name for sample in labelled.samples] == manifest["samples"]
    before = contents(tmp_path / "out")
    run(dataset, tmp_path / "out", policy=policy, on_unreadable="skip")
    assert contents(tmp_path / "out") == before
    rest = dataset.subset([0, 2, 3, 4])
    run(rest, tmp_path / "rest", policy=policy)
    for sample in rest.samples:
        ours, theirs = (PseudoLabelFolder(tmp_path / folder).label(sample.name) for folder in ("out", "rest"))
        assert ours.read_bytes() == theirs.read_bytes()


@pytest.mark.parametrize("policy", ["argmax", "class_ratio"])
def test_images_none_of_which_can_be_read(dataset: Dataset, tmp_path: Path, policy: str) -> None:
    for sample in dataset.samples:
        sample.image.write_bytes(b"")
    with pytest.raises(DataError, match="none of 5 images can be read"):
        run(dataset, tmp_path / "out", policy=policy, on_unreadable="skip")


@pytest.mark.parametrize("policy", ["argmax", "class_quantile"])
def test_sizes_and_bit_depths_may_differ(dataset: Dataset, tmp_path: Path, policy: str) -> None:
    """16 bits of grey are read by their upper eight, a palette and an alpha channel by their colours."""
    draw = np.random.default_rng(0)
    grey = draw.integers(0, 256, (5, 40), dtype=np.uint8)
    Image.fromarray(grey.astype(np.uint16) * 257).save(dataset.samples[0].image)
    Image.fromarray(draw.integers(0, 256, (1, 1, 3), dtype=np.uint8)).save(dataset.samples[1].image)
    Image.fromarray(draw.integers(0, 256, (33, 7, 4), dtype=np.uint8)).save(dataset.samples[2].image)
    Image.fromarray(draw.integers(0, 256, (9, 9), dtype=np.uint8), mode="P").save(dataset.samples[3].image)
    written = run(dataset, tmp_path / "out", policy=policy)
    assert written is not None
    shapes = [label.shape for label, _ in maps(dataset, tmp_path / "out")]
    assert shapes[:4] == [(5, 40), (1, 1), (33, 7), (9, 9)]
    Image.fromarray(np.repeat(grey[..., None], 3, -1)).save(dataset.samples[0].image)
    run(dataset, tmp_path / "eight", policy=policy)
    assert contents(tmp_path / "eight") == contents(tmp_path / "out")
