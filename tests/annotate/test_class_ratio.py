"""Class-balanced pseudo labels: ranks, the contest between classes, and classes that nothing shows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.annotate.exact_ratios import exact_ratio_thresholds, pixels_shown, ratio_labels


def image(seed: int, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    return draw.random((8, 9)).astype(np.float32), draw.integers(0, classes, (8, 9))


@pytest.mark.parametrize("stride", [1, 4])
@pytest.mark.parametrize("portion", [0.2, 0.5, 1.0])
def test_thresholds_by_hand(portion: float, stride: int) -> None:
    images = [image(seed) for seed in range(3)]
    found = exact_ratio_thresholds(images, 4, portion, stride)
    for class_ in range(3):
        pooled = np.concatenate([confidence[shown == class_][::stride] for confidence, shown in images])
        rank = int(np.floor(portion * pooled.size))
        assert found[class_] == np.sort(pooled)[::-1][rank - 1]
    assert found[3] == 1.0, "nothing shows it"


def test_ranks_of_few_pixels() -> None:
    one = (np.array([[0.4, 0.3, 0.2, 0.8]]), np.array([[0, 0, 0, 255]]))
    assert exact_ratio_thresholds([one], 1, 0.3)[0] == 1.0, "floor(0.9) is no pixel"
    assert exact_ratio_thresholds([one], 1, 0.34)[0] == 0.4
    assert exact_ratio_thresholds([], 2, 0.5).tolist() == [1.0, 1.0]
    assert [part.tolist() for part in pixels_shown(*one, 1, stride=2)] == [[0.4, 0.2]]


def test_a_class_that_is_never_sure_wins_in_its_own_measure() -> None:
    probability = torch.tensor([[0.6, 0.4], [0.9, 0.1], [0.5, 0.2]]).T.reshape(1, 2, 1, 3)
    label, confidence = ratio_labels(probability, torch.tensor([0.8, 0.3]))
    assert label[0, 0].tolist() == [1, 0, 255]
    torch.testing.assert_close(confidence[0, 0], torch.tensor([0.4, 0.9, 0.2]))
    assert ratio_labels(probability, torch.tensor([1.0, 1.0]))[0][0, 0].tolist() == [255, 255, 255]
    exactly = ratio_labels(probability, torch.tensor([0.9, 1.0]))[0]
    assert exactly[0, 0].tolist() == [255, 0, 255], "the pixel at the rank itself is kept"
