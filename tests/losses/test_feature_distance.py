"""DAFormer's feature distance and the cells that it is taken over, by hand."""

from __future__ import annotations

import pytest
import torch

from tutelage.losses.feature_distance import feature_distance, majority_label, things_mask


def test_cells_belong_to_a_class_that_covers_three_quarters() -> None:
    label = torch.full((1, 4, 12), 255)
    label[0, :3, :4] = 1  # exactly three quarters
    label[0, :2, 4:8] = 2  # a half
    label[0, 2:, 4:8] = 0
    assert majority_label(label, 4, 3).tolist() == [[[1, 255, 255]]]
    assert majority_label(label, 4, 3, share=0.5).tolist()[0][0][0] == 1
    assert majority_label(torch.zeros(1, 5, 5, dtype=torch.long), 4, 3).tolist() == [[[0, 255], [255, 255]]], "beyond"


def test_of_equal_shares_the_first_label_wins_unless_the_rest_is_ignored() -> None:
    tie = torch.tensor([2, 2, 0, 0]).repeat(1, 4, 1)
    assert majority_label(tie, 4, 3, share=0.5).tolist() == [[[0]]]
    tie[tie == 2] = 255
    assert majority_label(tie, 4, 3, share=0.5).tolist() == [[[255]]]


def test_cells_without_a_label_are_no_things() -> None:
    label = torch.tensor([[[0, 1, 255]]])
    assert things_mask(label, torch.tensor([True, False])).tolist() == [[[True, False, False]]]
    assert things_mask(label, torch.tensor([False, True])).tolist() == [[[False, True, False]]]


def vectors(*pairs: tuple[float, float]) -> torch.Tensor:
    """(1, 2, 1, w): a vector of two channels a cell."""
    return torch.tensor(pairs).t().view(1, 2, 1, -1).requires_grad_()


def test_the_distance_is_euclidean_and_a_mean_over_the_cells() -> None:
    feature, origin = vectors((3.0, 4.0), (1.0, 1.0), (6.0, 8.0)), vectors((0.0, 0.0), (1.0, 1.0), (0.0, 0.0))
    assert feature_distance(feature, origin).item() == pytest.approx((5 + 0 + 10) / 3)
    mask = torch.tensor([[[True, True, False]]])
    assert feature_distance(feature, origin, mask).item() == pytest.approx(5 / 2)
    assert feature_distance(feature, origin, mask, normalizer=torch.tensor(10.0)).item() == pytest.approx(0.5)
    assert feature_distance(feature, origin, torch.zeros_like(mask)).item() == 0


def test_only_the_encoder_that_is_trained_gets_a_gradient_and_none_where_nothing_differs() -> None:
    feature, origin = vectors((3.0, 4.0), (1.0, 1.0)), vectors((0.0, 0.0), (1.0, 1.0))
    feature_distance(feature, origin).backward()
    assert origin.grad is None
    assert feature.grad is not None
    assert feature.grad[0, :, 0].t().tolist() == [pytest.approx([0.3, 0.4]), [0.0, 0.0]]
