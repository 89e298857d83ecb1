"""Supervised losses: torch's numbers where it has them, exact zeros where it has NaN."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from tutelage.losses.segmentation import (
    IGNORE,
    cross_entropy,
    dice_loss,
    label_weight,
    ohem_cross_entropy,
    weighted_cross_entropy,
)


@pytest.fixture
def case() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, 7, 9, generator=generator, requires_grad=True)
    label = torch.randint(0, 5, (2, 7, 9), generator=generator)
    label[torch.rand(label.shape, generator=generator) < 0.3] = IGNORE
    return logits, label


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
def test_cross_entropy_is_torchs_mean(case, smoothing: float, weighted: bool) -> None:  # type: ignore[no-untyped-def]
    logits, label = case
    weight = torch.tensor([1.0, 2.0, 0.5, 3.0, 1.0]) if weighted else None
    expected = F.cross_entropy(logits, label, weight=weight, ignore_index=IGNORE, label_smoothing=smoothing)
    torch.testing.assert_close(cross_entropy(logits, label, class_weight_K=weight, smoothing=smoothing), expected)


@pytest.mark.parametrize("loss", [cross_entropy, ohem_cross_entropy, dice_loss])
def test_no_valid_label_gives_zero_and_a_zero_gradient(case, loss) -> None:  # type: ignore[no-untyped-def]
    logits, label = case
    value = loss(logits, torch.full_like(label, IGNORE))
    (gradient,) = torch.autograd.grad(value, logits)
    assert value.item() == 0.0
    assert not gradient.any()


def test_shares_of_a_batch_add_up_to_its_mean(case) -> None:  # type: ignore[no-untyped-def]
    logits, label = case
    share = label_weight(label) / 2  # two slices
    parts = [cross_entropy(logits[i : i + 1], label[i : i + 1], normalizer=share) for i in range(2)]
    torch.testing.assert_close(sum(parts) / 2, cross_entropy(logits, label))


def test_weights_of_pixels_are_not_divided_out(case) -> None:  # type: ignore[no-untyped-def]
    logits, label = case
    weight = torch.rand(label.shape, generator=torch.Generator().manual_seed(1))
    each = F.cross_entropy(logits, label, ignore_index=IGNORE, reduction="none")
    number = (label != IGNORE).sum()
    value = weighted_cross_entropy(logits, label, weight)
    torch.testing.assert_close(value, (weight * each).sum() / number)
    torch.testing.assert_close(weighted_cross_entropy(logits, label, weight / 2), value / 2)
    torch.testing.assert_close(weighted_cross_entropy(logits, label), cross_entropy(logits, label))
    half = weighted_cross_entropy(logits, label, weight, normalizer=2 * number.float())
    torch.testing.assert_close(half, value / 2)
    nothing = weighted_cross_entropy(logits, torch.full_like(label, IGNORE), weight)
    (gradient,) = torch.autograd.grad(nothing, logits)
    assert nothing.item() == 0.0
    assert not gradient.any()


def test_ohem_keeps_at_least_the_hardest_and_drops_the_easy() -> None:
    logits = torch.zeros(1, 2, 1, 4)
    logits[0, 0, 0] = torch.tensor([-4.0, 0.0, 4.0, 8.0])  # probability of class 0: 0.02, 0.5, 0.98, 0.9997
    label = torch.zeros(1, 1, 4, dtype=torch.int64)
    each = F.cross_entropy(logits, label, reduction="none")[0, 0]
    torch.testing.assert_close(ohem_cross_entropy(logits, label, threshold=0.7, min_kept=1), each[:2].mean())
    torch.testing.assert_close(ohem_cross_entropy(logits, label, threshold=0.1, min_kept=3), each[:3].mean())
    torch.testing.assert_close(ohem_cross_entropy(logits, label, threshold=0.1, min_kept=9), each.mean())
    torch.testing.assert_close(ohem_cross_entropy(logits, label, threshold=0.1, min_kept=0), each.mean())


def test_ohem_takes_no_ignored_pixel_for_a_hard_one() -> None:
    logits = torch.zeros(1, 2, 1, 5)
    logits[0, 0, 0] = torch.tensor([-4.0, 0.0, 4.0, -8.0, -8.0])  # the last two are ignored
    label = torch.tensor([[[0, 0, 0, IGNORE, IGNORE]]])
    each = F.cross_entropy(logits[..., :3], label[..., :3], reduction="none")[0, 0]
    torch.testing.assert_close(ohem_cross_entropy(logits, label, threshold=0.1, min_kept=2), each[:2].mean())


def test_dice_by_hand_over_the_classes_that_occur() -> None:
    label = torch.tensor([[[0, 1, IGNORE]]])
    logits = torch.tensor([[0.6, 0.1, 0.1], [0.3, 0.5, 0.1], [0.1, 0.4, 0.8]]).log().view(1, 3, 1, 3)
    first = (2 * 0.6 + 1) / (0.6 + 0.1 + 1 + 1)
    second = (2 * 0.5 + 1) / (0.3 + 0.5 + 1 + 1)
    assert dice_loss(logits, label).item() == pytest.approx(1 - (first + second) / 2)


def test_dice_is_zero_for_certain_right_answers_and_ignores_the_ignored() -> None:
    label = torch.tensor([[[0, 1, 1, IGNORE]]])
    right = F.one_hot(label.clamp(max=1), 2).movedim(-1, 1).float() * 60 - 30
    assert dice_loss(right, label).item() == pytest.approx(0.0, abs=1e-6)
    wrong_where_ignored = right.clone()
    wrong_where_ignored[..., 3] *= -1
    assert dice_loss(wrong_where_ignored, label).item() == pytest.approx(0.0, abs=1e-6)
    assert dice_loss(-right, label).item() > 0.5
