"""Boundary IoU against the definition, class by class and pixel by pixel."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.errors import raises_code
from tests.evaluation.test_confusion import INTEGERS
from tutelage.evaluation.boundary import BoundaryIoU, boundary_counts, boundary_distance


def boundary_by_hand(mask: np.ndarray, distance: int) -> np.ndarray:
    """The mask less ``distance`` erosions by a 3x3 square, with nothing outside of the image."""
    eroded = mask
    for _ in range(distance):
        padded = np.pad(eroded, 1)
        height, width = mask.shape
        eroded = np.logical_and.reduce([padded[y : y + height, x : x + width] for y in range(3) for x in range(3)])
    return mask & ~eroded


def counts_by_hand(prediction: np.ndarray, label: np.ndarray, num_classes: int, ratio: float) -> np.ndarray:
    distance = max(1, round(ratio * math.hypot(*label.shape)))
    valid = label != 255
    counts = []
    for number in range(num_classes):
        ours, theirs = (boundary_by_hand((ids == number) & valid, distance) for ids in (prediction, label))
        counts.append([(ours & theirs).sum(), (ours | theirs).sum()])
    return np.array(counts)


def blobs(seed: int, height: int, width: int, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, num_classes, (height // 5 + 1, width // 5 + 1))
    label = np.kron(coarse, np.ones((5, 5), dtype=np.int64))[:height, :width]
    prediction = np.roll(label, generator.integers(-2, 3), axis=1)
    label[generator.random((height, width)) < 0.02] = 255
    label[: height // 4, : width // 3] = 255
    return prediction, label


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 1000),
    height=st.integers(1, 24),
    width=st.integers(1, 31),
    ratio=st.sampled_from([0.001, 0.02, 0.06, 0.3, 2.0]),
)
def test_definition(seed: int, height: int, width: int, ratio: float) -> None:
    prediction, label = blobs(seed, height, width, 4)
    counts = boundary_counts(torch.from_numpy(prediction), torch.from_numpy(label), 5, ratio)
    np.testing.assert_array_equal(counts, counts_by_hand(prediction, label, 5, ratio))


@pytest.mark.parametrize("dtype", INTEGERS)
def test_streams_and_types(dtype: torch.dtype) -> None:
    pairs = [blobs(seed, 40, 50, 4) for seed in range(3)]
    prediction, label = (torch.from_numpy(np.stack(maps)).to(dtype) for maps in zip(*pairs, strict=True))
    together, first = BoundaryIoU(5), BoundaryIoU(5)
    together.update(prediction, label)
    first.update(prediction[:2], label[:2])
    first.update(prediction[2], label[2])
    assert torch.equal(first.counts, together.counts)
    expected = sum(counts_by_hand(*pair, 5, 0.02) for pair in pairs)
    np.testing.assert_array_equal(together.counts, expected)
    scores = together.scores()
    np.testing.assert_allclose(scores.iou[:4], expected[:4, 0] / expected[:4, 1])
    assert math.isnan(scores.iou[4])
    assert scores.miou == pytest.approx(np.nanmean(scores.iou))


def test_perfect_and_empty() -> None:
    _, label = blobs(0, 30, 30, 3)
    metric = BoundaryIoU(3)
    metric.update(torch.from_numpy(np.where(label == 255, 0, label)), torch.from_numpy(label))
    assert metric.scores().miou == 1.0
    empty = BoundaryIoU(3)
    empty.update(torch.zeros(4, 4, dtype=torch.uint8), torch.full((4, 4), 255, dtype=torch.uint8))
    empty.update(torch.zeros(0, 4, 4, dtype=torch.uint8), torch.zeros(0, 4, 4, dtype=torch.uint8))
    assert math.isnan(empty.scores().miou)


def test_distance_and_errors() -> None:
    assert boundary_distance(1024, 2048) == 46
    assert boundary_distance(1, 1) == 1
    with raises_code("invalid-value", "ratio"):
        BoundaryIoU(3, ratio=0)
