"""Class means over a data set: against sums written out, killed and gone on with, over several processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from tests.annotate.nets import CLASSES, COUNT, ColourNet, maps, write_dataset
from tests.processes import Countdown, count_disk_calls, in_child, start
from tutelage.annotate import chunks
from tutelage.annotate.class_means import fit_means
from tutelage.annotate.fits import AnchorsFit, MeansFit
from tutelage.data.dataset import Dataset
from tutelage.engine import collectives
from tutelage.errors import DataError, TutelageError
from tutelage.evaluation.protocol import Protocol
from tutelage.prototypes.means import ClassMeans


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return write_dataset(tmp_path)


def run(dataset: Dataset, out: Path, settings: Any = None, net: Any = None, **changes: Any) -> dict[str, Any]:
    given = {"device": torch.device("cpu"), "protocol": Protocol(), **changes}
    return fit_means(
        net or ColourNet(), dataset, settings or MeansFit(epochs=1), out / "f.safetensors", out / "p", **given
    )


def loaded(out: Path) -> ClassMeans:
    means = ClassMeans(len(CLASSES), 3)
    assert means.load(out / "f.safetensors")[0] == CLASSES.names
    return means


def by_hand(dataset: Dataset, labels: bool, min_pixels: int) -> dict[int, list[torch.Tensor]]:
    """The vectors of each class, image by image."""
    found: dict[int, list[torch.Tensor]] = {number: [] for number in range(len(CLASSES))}
    for index in range(len(dataset)):
        features, predicted, label = maps(dataset, index)
        for number in found:
            member = (predicted == number) & ((label == number) if labels else True)
            if int(member.sum()) >= min_pixels:
                found[number].append(features[member].mean(0))
    return found


@pytest.mark.parametrize(("labels", "min_pixels"), [(False, 1), (False, 20), (True, 1)])
def test_means_of_predicted_and_of_labelled_positions(
    dataset: Dataset, tmp_path: Path, labels: bool, min_pixels: int
) -> None:
    settings: Any = (AnchorsFit if labels else MeansFit)(epochs=1, min_pixels=min_pixels)
    facts = run(dataset, tmp_path, settings)
    means = loaded(tmp_path)
    for number, vectors in by_hand(dataset, labels, min_pixels).items():
        assert facts["classes"][CLASSES.names[number]]["images"] == len(vectors)
        assert float(means.counts[number]) == len(vectors)
        if vectors:
            torch.testing.assert_close(means.prototypes[number], torch.stack(vectors).mean(0))
    assert "never" in facts["without_samples"]
    assert facts["images"] == COUNT
    assert facts["unreadable"] == []


def test_epochs_fold_the_same_vectors_again_until_the_count_is_capped(dataset: Dataset, tmp_path: Path) -> None:
    net = ColourNet()
    run(dataset, tmp_path, MeansFit(epochs=3, min_pixels=1, count_cap=10), net)
    assert net.seen == COUNT, "each image is looked at once"
    expected = ClassMeans(1, 3, count_cap=10)
    vectors = by_hand(dataset, False, 1)[0]
    for vector in vectors * 3:
        expected.fold(vector[None, None], torch.ones(1, 1, dtype=torch.bool))
    torch.testing.assert_close(loaded(tmp_path).prototypes[:1], expected.prototypes)
    assert float(loaded(tmp_path).counts[0]) == min(3 * len(vectors), 10)


def test_only_confident_positions_count_and_the_share_is_told(dataset: Dataset, tmp_path: Path) -> None:
    facts = run(dataset, tmp_path, MeansFit(epochs=1, min_pixels=1, threshold=0.8))
    red = facts["classes"]["red"]
    assert 0 < red["kept"] < red["seen"]
    assert red["retained"] == round(red["kept"] / red["seen"], 6)


def test_no_class_with_a_confident_pixel_is_an_error(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(TutelageError, match="no class has a mean"):
        run(dataset, tmp_path, MeansFit(threshold=1.0, min_pixels=1))
    assert not (tmp_path / "f.safetensors").exists()


def test_a_flipped_view_is_averaged_in_place(dataset: Dataset, tmp_path: Path) -> None:
    run(dataset, tmp_path / "plain")
    run(dataset, tmp_path / "flip", protocol=Protocol(flip=True))
    torch.testing.assert_close(loaded(tmp_path / "flip").prototypes, loaded(tmp_path / "plain").prototypes)


def test_images_that_cannot_be_read_end_it_or_are_named(dataset: Dataset, tmp_path: Path) -> None:
    dataset.samples[2].image.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"i 2\.png"):
        run(dataset, tmp_path)
    facts = run(dataset, tmp_path, on_unreadable="skip")
    assert (facts["images"], facts["unreadable"]) == (COUNT - 1, ["i 2"])
    left = [index for index in range(COUNT) if index != 2]
    run(dataset.subset(left), tmp_path / "others")
    torch.testing.assert_close(loaded(tmp_path).prototypes, loaded(tmp_path / "others").prototypes)


def _killed(dataset: Dataset, out: Path, number: int) -> None:
    countdown = Countdown(number)
    count_disk_calls(countdown)
    chunks.in_parts.__defaults__ = (*chunks.in_parts.__defaults__[:-1], 2)  # type: ignore[misc]
    run(dataset, out)


def test_killed_anywhere_it_ends_with_the_same_bytes(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks.in_parts, "__defaults__", (*chunks.in_parts.__defaults__[:-1], 2))  # type: ignore[index]
    run(dataset, tmp_path / "whole")
    assert in_child(_killed, dataset, tmp_path / "out", 7) != 0
    assert len(list((tmp_path / "out" / "p").glob("means-*.safetensors"))) == 2
    net = ColourNet()
    run(dataset, tmp_path / "out", net=net)
    assert net.seen == 2, "two of three parts were there"
    files = [out / "f.safetensors" for out in (tmp_path / "whole", tmp_path / "out")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_damaged_part_is_made_again(dataset: Dataset, tmp_path: Path) -> None:
    run(dataset, tmp_path)
    before = (tmp_path / "f.safetensors").read_bytes()
    (part,) = (tmp_path / "p").iterdir()
    part.write_bytes(part.read_bytes()[:-20])
    run(dataset, tmp_path)
    assert (tmp_path / "f.safetensors").read_bytes() == before


def _rank(rank: int, dataset: Dataset, out: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{out / 'store'}", rank=rank, world_size=2)
    chunks.in_parts.__defaults__ = (*chunks.in_parts.__defaults__[:-1], 2)  # type: ignore[misc]
    net = ColourNet()
    run(dataset, out, net=net)
    collectives.leave()
    assert net.seen == (4 if rank == 0 else 2)


def test_two_processes_give_the_same_bytes(dataset: Dataset, tmp_path: Path) -> None:
    run(dataset, tmp_path / "whole")
    (tmp_path / "out").mkdir()
    processes = [start(_rank, rank, dataset, tmp_path / "out") for rank in range(2)]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    files = [out / "f.safetensors" for out in (tmp_path / "whole", tmp_path / "out")]
    assert files[0].read_bytes() == files[1].read_bytes()
