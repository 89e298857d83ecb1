"""The confusion matrix against torchmetrics and against counting by hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import tutelage.torchvision_operators  # noqa: F401  (before torchmetrics, which imports torchvision)
from tests.errors import raises_code
from tutelage.evaluation import confusion as room
from tutelage.evaluation.boundary import BoundaryIoU
from tutelage.evaluation.calibration import Calibration
from tutelage.evaluation.confusion import (
    Confusion,
    confusion_of,
    counts_of,
    merged,
    scores_of,
    subset_mean,
)
from tutelage.evaluation.histogram import histogram, histogram_on_device

INTEGERS = [torch.uint8, torch.int16, torch.int32, torch.int64]


def maps(seed: int, shape: tuple[int, ...], num_classes: int, ignored: float = 0.2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    prediction = torch.randint(0, num_classes, shape, generator=generator)
    label = torch.where(
        torch.rand(shape, generator=generator) < 0.5,
        prediction,
        torch.randint(0, num_classes, shape, generator=generator),
    )
    return prediction, label.masked_fill(torch.rand(shape, generator=generator) < ignored, 255)


def by_hand(prediction: Tensor, label: Tensor, num_classes: int) -> np.ndarray:
    matrix = np.zeros((num_classes, num_classes), dtype=np.int64)
    keep = label.numpy() != 255
    np.add.at(matrix, (label.numpy()[keep], prediction.numpy()[keep]), 1)
    return matrix


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("label_dtype", INTEGERS)
def test_types_and_torchmetrics(dtype: torch.dtype, label_dtype: torch.dtype) -> None:
    from torchmetrics.classification import MulticlassConfusionMatrix, MulticlassJaccardIndex

    reference = MulticlassConfusionMatrix(7, ignore_index=255, validate_args=False)
    jaccard = MulticlassJaccardIndex(7, ignore_index=255, validate_args=False)
    confusion = Confusion(7)
    for seed in range(2):
        prediction, label = maps(seed, (2, 33, 41), 6)  # class 6 is absent
        reference.update(prediction, label)
        jaccard.update(prediction, label)
        confusion.update(prediction.to(dtype), label.to(label_dtype))
    assert torch.equal(confusion.matrix, reference.compute())
    scores = confusion.scores()
    assert scores.miou == pytest.approx(jaccard.compute().item(), abs=1e-6)
    assert scores.miou_all == pytest.approx(scores.miou * 6 / 7)
    assert scores.absent == 1
    assert math.isnan(scores.iou[6])


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 1000),
    shape=st.lists(st.integers(0, 9), min_size=2, max_size=3),
    num_classes=st.sampled_from([1, 2, 5, 87, 88, 89, 180, 254, 255]),
    dtype=st.sampled_from([torch.uint8, torch.int64]),
)
def test_counts_by_hand(seed: int, shape: list[int], num_classes: int, dtype: torch.dtype) -> None:
    prediction, label = maps(seed, tuple(shape), num_classes)
    expected = by_hand(prediction, label, num_classes)
    np.testing.assert_array_equal(confusion_of(prediction.to(dtype), label.to(dtype), num_classes), expected)
    matrix, faults = room._count_on_device(prediction.to(dtype), label.to(dtype), num_classes)
    np.testing.assert_array_equal(matrix, expected)
    assert faults.tolist() == [room._NO_FAULT, room._NO_FAULT]


def test_histogram_without_waiting() -> None:
    for size, bins in ((0, 3), (5, 3), (100_000, 7), (50_000, 5000)):
        index = torch.randint(0, bins, (size,), generator=torch.Generator().manual_seed(size))
        weight = torch.rand(size, generator=torch.Generator().manual_seed(1))
        assert torch.equal(histogram_on_device(index, bins), torch.bincount(index, minlength=bins))
        assert torch.equal(histogram(index, bins), torch.bincount(index, minlength=bins))
        expected = torch.bincount(index, weight.double(), minlength=bins).double()
        torch.testing.assert_close(histogram_on_device(index, bins, weight), expected)
        torch.testing.assert_close(histogram(index, bins, weight), expected)


def test_scores_of_a_small_matrix() -> None:
    confusion = Confusion(4)
    confusion.add(torch.tensor([[6, 2, 0, 0], [1, 3, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]))
    scores = confusion.scores()
    np.testing.assert_allclose(scores.iou, [6 / 9, 3 / 6, np.nan, np.nan])
    np.testing.assert_allclose(scores.accuracy, [6 / 8, 3 / 4, np.nan, np.nan])
    np.testing.assert_allclose(scores.precision, [6 / 7, 3 / 5, np.nan, np.nan])
    assert (scores.absent, scores.pixels) == (2, 12)
    assert scores.miou == pytest.approx((6 / 9 + 3 / 6) / 2)
    assert scores.miou_all == pytest.approx((6 / 9 + 3 / 6) / 4)
    assert scores.pixel_accuracy == pytest.approx(9 / 12)
    assert scores.mean_accuracy == pytest.approx(0.75)
    assert scores.frequency_weighted_iou == pytest.approx(8 / 12 * 6 / 9 + 4 / 12 * 3 / 6)


@pytest.mark.parametrize("bins", [100, 4_095, 8_191, 8_192, 16_384, 32_767, 40_000])
def test_large_ids_do_not_overflow_in_any_lane(bins: int) -> None:
    index = torch.full((3, 40), bins - 1, dtype=torch.int16 if bins <= 32_767 else torch.int32)
    found = histogram(index, bins)
    assert found[-1] == 120
    assert found.sum() == 120


def test_true_and_false_positives_and_false_negatives() -> None:
    """Rows are the truth: what stands beside the diagonal of a column was called its class wrongly."""
    assert counts_of(torch.tensor([[6, 2, 0], [1, 3, 4], [0, 0, 5]])).tolist() == [[6, 1, 2], [3, 2, 5], [5, 4, 0]]


def test_a_class_that_is_only_predicted_is_not_absent() -> None:
    scores = scores_of(torch.tensor([[3, 1, 0], [0, 0, 0], [0, 0, 0]]))
    assert scores.absent == 1
    assert scores.iou[1] == 0
    assert math.isnan(scores.accuracy[1])
    assert scores.miou == pytest.approx((3 / 4 + 0) / 2)


def test_nothing_labelled() -> None:
    confusion = Confusion(3)
    confusion.update(torch.zeros(1, 1, dtype=torch.uint8), torch.full((1, 1), 255, dtype=torch.uint8))
    scores = confusion.scores()
    assert scores.absent == 3
    assert scores.miou_all == 0
    assert math.isnan(scores.miou)
    assert math.isnan(scores.pixel_accuracy)
    assert math.isnan(scores.frequency_weighted_iou)


@pytest.mark.parametrize("value", [3, 254, 256, 511, -1, -1000, 2**31])
@pytest.mark.parametrize("which", ["prediction", "label"])
def test_a_wrong_id_is_named(value: int, which: str) -> None:
    prediction, label = maps(0, (5, 5), 3)
    (prediction if which == "prediction" else label)[2, 2] = value
    if which == "prediction":
        label[2, 2] = 1
    with raises_code("label-value", which, value):
        confusion_of(prediction, label, 3)
    if 0 <= value < 255:
        with raises_code("label-value", which, value):
            Confusion(3).update(prediction.to(torch.uint8), label.to(torch.uint8))
    _, faults = room._count_on_device(prediction, label, 3)
    assert faults[int(which == "label")] == value


def test_a_prediction_of_255_is_wrong_even_where_ignored() -> None:
    with raises_code("label-value", "prediction", "255"):
        confusion_of(torch.full((2, 2), 255), torch.full((2, 2), 255), 3)


def test_a_wrong_id_found_on_a_device_is_reported_at_reading() -> None:
    confusion = Confusion(3)
    confusion._faults = torch.tensor([room._NO_FAULT, 7])
    with raises_code("label-value", "7"):
        confusion.scores()
    with raises_code("label-value", "7"):
        confusion.all_reduce()


@pytest.mark.parametrize(
    ("prediction", "label", "code"),
    [
        (torch.zeros(2, 2), torch.zeros(2, 2, dtype=torch.int64), "invalid-value"),
        (torch.zeros(2, 2, dtype=torch.int64), torch.zeros(2, 2, dtype=torch.bool), "invalid-value"),
        (torch.zeros(2, 3, dtype=torch.int64), torch.zeros(3, 2, dtype=torch.int64), "shape-mismatch"),
        (torch.zeros(4, dtype=torch.int64), torch.zeros(4, dtype=torch.int64), "shape-mismatch"),
    ],
)
def test_what_is_no_map(prediction: Tensor, label: Tensor, code: str) -> None:
    with raises_code(code):
        confusion_of(prediction, label, 3)


def test_class_counts() -> None:
    for number in (0, 256):
        with raises_code("class-count"):
            Confusion(number)
    with raises_code("counts-mismatch"):
        Confusion(3).add(Confusion(4).matrix)


def test_images_add_up_and_inputs_stay() -> None:
    prediction, label = maps(3, (5, 17, 19), 6)
    copies = prediction.clone(), label.clone()
    counts = torch.stack([counts_of(confusion_of(*pair, 6)) for pair in zip(prediction, label, strict=True)])
    assert counts.shape == (5, 6, 3)
    assert torch.equal(counts.sum(0), counts_of(confusion_of(prediction, label, 6)))
    first = Confusion(6)
    first.update(prediction[:4], label[:4])
    first.update(prediction[4:], label[4:])  # an uneven last batch
    assert torch.equal(first.matrix, confusion_of(prediction, label, 6))
    assert torch.equal(prediction, copies[0])
    assert torch.equal(label, copies[1])
    transposed = confusion_of(prediction.transpose(1, 2), label.transpose(1, 2), 6)
    assert torch.equal(transposed, first.matrix)


def streams(*seeds: int) -> tuple[Confusion, BoundaryIoU, Calibration]:
    """All streaming metrics after the images of some ranks."""
    metrics = Confusion(5), BoundaryIoU(5), Calibration()
    for seed in seeds:
        prediction, label = maps(seed, (2, 20 + seed, 30), 5)
        metrics[0].update(prediction, label)
        metrics[1].update(prediction, label)
        generator = torch.Generator().manual_seed(seed)
        metrics[2].update(torch.randn(*label.shape[:1], 5, *label.shape[1:], generator=generator), label)
    return metrics


def meet(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    confusion, boundary, calibration = (metric.all_reduce() for metric in streams(rank))
    state = (confusion.matrix, boundary.counts, calibration.table, calibration.likelihood)
    torch.save(state, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_sums_over_ranks(tmp_path: Path) -> None:
    mp.spawn(meet, (str(tmp_path),), nprocs=2)
    expected = streams(0, 1)
    for rank in range(2):
        matrix, counts, table, likelihood = torch.load(tmp_path / f"{rank}.pt")
        assert torch.equal(matrix, expected[0].matrix)
        assert torch.equal(counts, expected[1].counts)
        torch.testing.assert_close(table, expected[2].table, rtol=1e-12, atol=0)
        torch.testing.assert_close(likelihood, expected[2].likelihood, rtol=1e-12, atol=0)


def test_without_a_process_group_the_sum_is_a_copy() -> None:
    confusion = streams(0)[0]
    total = confusion.all_reduce()
    assert torch.equal(total.matrix, confusion.matrix)
    total.add(torch.ones(5, 5, dtype=torch.int64))
    assert not torch.equal(total.matrix, confusion.matrix)


def test_means_over_some_classes_count_nothing_anew() -> None:
    matrix = torch.tensor([[4, 0, 0, 0], [2, 2, 0, 0], [0, 0, 0, 0], [1, 0, 0, 3]])
    iou = scores_of(matrix).iou
    assert np.isnan(iou[2])
    assert subset_mean(iou, [0, 1, 2, 3]) == pytest.approx(scores_of(matrix).miou)
    assert subset_mean(iou, [0, 2]) == pytest.approx(4 / 7), "pixels of the class left out are still wrong"
    assert np.isnan(subset_mean(iou, [2]))


def test_merged_classes_are_one_class() -> None:
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(0, 5, (40, 30), generator=generator)
    prediction = torch.randint(0, 5, (40, 30), generator=generator)
    groups = [[3, 1], [0]]
    group_of = torch.tensor([1, 0, 2, 0, 3])
    matrix = merged(confusion_of(prediction, label, 5), groups)
    assert torch.equal(matrix, confusion_of(group_of[prediction], group_of[label], 4)), "2 and 4 stay as they are"
    assert torch.equal(merged(matrix, []), matrix)
    assert merged(matrix, [[0, 1, 2, 3]]).tolist() == [[1200]]
    with pytest.raises(ValueError, match="two groups"):
        merged(matrix, [[0, 1], [1]])
