"""Scoring a data set: what is counted, in which order, and which figure stands under which name."""

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
from torch.nn import functional as F

from tests.processes import start
from tutelage.data.dataset import Classes, Dataset, Sample
from tutelage.data.labels import identity
from tutelage.errors import DataError
from tutelage.evaluation.confusion import confusion_of, counts_of
from tutelage.evaluation.evaluate import Evaluation, evaluate, read_counts, summary, write_evaluation
from tutelage.evaluation.intervals import bootstrap_miou
from tutelage.evaluation.protocol import Protocol

NAMES = ("road", "car", "sky", "tree", "sign")
SIZES = [(6, 8), (6, 8), (5, 7), (9, 4), (6, 8), (4, 4), (7, 7)]
GROUND = {"ground": ["road", "sign"]}
CPU = torch.device("cpu")


class RedNet:
    """A net of stride 1 that reads the class of a pixel off its red channel."""

    stride = 1

    def __call__(self, image: Tensor, /) -> Any:
        return SimpleNamespace(logits=F.one_hot((image[:, 0] * 255).round().long(), len(NAMES)).movedim(-1, 1).float())


def maps(number: int) -> tuple[np.ndarray, np.ndarray]:
    """What the net predicts in an image, and its mask; class 3 is in no mask, and never predicted."""
    draw = np.random.default_rng(number)
    prediction, label = draw.choice([0, 1, 2, 4], (2, *SIZES[number])).astype(np.uint8)
    label = np.where(draw.random(label.shape) < 0.15 * number, prediction, label)
    label[0, 0] = 255
    return prediction, label


def written(folder: Path, groups: bool = False) -> Dataset:
    samples = []
    for number in range(len(SIZES)):
        image, mask = folder / f"{number}.png", folder / f"{number}_mask.png"
        prediction, label = maps(number)
        Image.fromarray(np.stack([prediction, prediction * 0, prediction * 0], axis=-1)).save(image)
        Image.fromarray(label).save(mask)
        samples.append(Sample(str(number), image, mask, group=f"sequence {number % 6}" if groups else ""))
    return Dataset("val", tuple(samples), Classes(NAMES), identity(len(NAMES)))


def scored(dataset: Dataset) -> Evaluation:
    return evaluate(RedNet(), dataset, Protocol(), device=CPU, merged_as=GROUND)


def by_hand(classes: list[int] | None = None) -> np.ndarray:
    """(N, K, 3) counts of each image; ``classes``: which class each becomes."""
    table = np.array([*(classes or range(len(NAMES))), *[255] * (256 - len(NAMES))])
    pairs = [maps(number) for number in range(len(SIZES))]
    count = int(table[:5].max()) + 1
    return np.stack([counts_of(confusion_of(*map(torch.from_numpy, table[np.stack(pair)]), count)) for pair in pairs])


def as_rank(rank: int, folder: Path, dataset: Dataset) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=2)
    found = scored(dataset)
    np.savez(folder / f"{rank}.npz", counts=found.counts_NK3, merged=found.merged_NG3, matrix=found.confusion.matrix)
    dist.destroy_process_group()


def test_each_image_is_counted_in_its_place(tmp_path: Path) -> None:
    dataset = written(tmp_path)
    found = scored(dataset)
    np.testing.assert_array_equal(found.counts_NK3, by_hand())
    assert found.names == tuple(str(number) for number in range(len(SIZES)))
    # The group first, then the classes in none: road and sign are 0, car, sky and tree follow.
    np.testing.assert_array_equal(found.merged_NG3, by_hand([0, 1, 2, 3, 0]))
    some = evaluate(RedNet(), dataset, Protocol(), device=CPU, indices=[4, 1])
    np.testing.assert_array_equal(some.counts_NK3, by_hand()[[4, 1]])


def test_processes_share_the_images_and_all_get_the_whole(tmp_path: Path) -> None:
    processes = [start(as_rank, rank, tmp_path, written(tmp_path)) for rank in range(2)]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    for rank in range(2):
        with np.load(tmp_path / f"{rank}.npz") as found:
            np.testing.assert_array_equal(found["counts"], by_hand())
            np.testing.assert_array_equal(found["merged"], by_hand([0, 1, 2, 3, 0]))
            np.testing.assert_array_equal(counts_of(torch.from_numpy(found["matrix"])), by_hand().sum(0))


def test_an_image_and_a_mask_of_two_sizes_are_not_scored(tmp_path: Path) -> None:
    dataset = written(tmp_path)
    mask = dataset.samples[2].label
    assert mask is not None
    Image.fromarray(np.zeros((7, 5), dtype=np.uint8)).save(mask)
    with pytest.raises(DataError, match=r"image and mask differ in size: .*2\.png is 7x5, .*2_mask\.png is 5x7"):
        scored(dataset)


def test_figures_stand_under_their_names(tmp_path: Path) -> None:
    dataset = written(tmp_path, groups=True)
    evaluation = scored(dataset)
    subsets = {"small": ["car", "sky"]}
    content = summary(evaluation, dataset, Protocol(), subsets=subsets, merged_as=GROUND)
    counts = by_hand()
    with np.errstate(invalid="ignore"):
        iou = counts[..., 0].sum(0) / counts.sum((0, 2))
    hit, wrong, missed = counts.sum(0).T
    pixels = (hit + missed).sum()
    assert content["absent"] == 1
    assert content["miou"] == pytest.approx(np.nanmean(iou))
    assert content["miou_all"] == pytest.approx(np.nansum(iou) / 5)
    assert content["pixel_accuracy"] == pytest.approx(hit.sum() / pixels)
    seen = hit + missed > 0
    assert content["mean_accuracy"] == pytest.approx(np.mean(hit[seen] / (hit + missed)[seen]))
    assert content["precision"][1] == pytest.approx(hit[1] / (hit + wrong)[1])
    assert content["iou"][3] is None
    blocks = [sample.group for sample in dataset.samples]
    expected = bootstrap_miou(counts, blocks)
    whole = content["miou_interval"]
    assert (whole["low"], whole["high"], whole["groups"], whole["over"]) == (expected.low, expected.high, 6, "blocks")
    few = content["subsets"]["small"]
    narrow = bootstrap_miou(counts[:, [1, 2]], blocks)
    assert few["miou"] == pytest.approx(np.mean(iou[[1, 2]]))
    assert (few["miou_interval"]["low"], few["miou_interval"]["high"]) == (narrow.low, narrow.high)
    grouped = bootstrap_miou(by_hand([0, 1, 2, 3, 0]), blocks)
    assert content["merged"]["classes"] == ["ground", "car", "sky", "tree"]
    assert content["merged"]["miou"] == pytest.approx(grouped.estimate)
    assert content["merged"]["miou_interval"]["low"] == grouped.low
    prediction, label = (np.concatenate([maps(i)[side].ravel() for i in range(len(SIZES))]) for side in (0, 1))
    matrix = confusion_of(torch.from_numpy(prediction)[None], torch.from_numpy(label)[None], 5)
    assert content["confusion"] == matrix.tolist(), "rows are the truth"


def test_what_was_written_comes_back(tmp_path: Path) -> None:
    dataset = written(tmp_path, groups=True)
    evaluation = scored(dataset)
    write_evaluation(tmp_path / "a.json", tmp_path / "a.npz", summary(evaluation, dataset, Protocol()), evaluation)
    found = read_counts(tmp_path / "a.npz")
    np.testing.assert_array_equal(found.counts_NK3, by_hand())
    assert found.merged_NG3 is not None
    np.testing.assert_array_equal(found.merged_NG3, by_hand([0, 1, 2, 3, 0]))
    assert found.groups[:2] == ("sequence 0", "sequence 1")
    content = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    assert content["miou"] == evaluation.miou
