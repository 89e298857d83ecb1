"""Entropy and domain losses on numbers that can be checked by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tutelage.losses.adversarial import (
    SOURCE,
    TARGET,
    critic_loss,
    domain_loss,
    entropy,
    fooling_loss,
    gradient_penalty,
    self_information,
)


def of_probabilities(*probabilities: float) -> Tensor:
    """(1, K, 1, 1): logits whose softmax these are."""
    return torch.tensor(probabilities).log()[None, :, None, None]


def test_self_information_by_hand() -> None:
    found = self_information(of_probabilities(0.5, 0.25, 0.25)).flatten().tolist()
    assert found == pytest.approx([0.5 / math.log2(3), 0.5 / math.log2(3), 0.5 / math.log2(3)])
    assert self_information(of_probabilities(0.5, 0.5)).flatten().tolist() == pytest.approx([0.5, 0.5])


@pytest.mark.parametrize("classes", [2, 5, 19])
def test_entropy_is_one_where_nothing_is_known_and_zero_where_all_is(classes: int) -> None:
    unsure = torch.zeros(2, classes, 3, 3)
    sure = unsure.clone()
    sure[:, 1] = 1e4
    assert entropy(unsure).item() == pytest.approx(1, rel=1e-5)
    assert entropy(sure).item() == pytest.approx(0, abs=1e-6)
    assert entropy(torch.cat([unsure, sure])).item() == pytest.approx(0.5, rel=1e-5), "a mean over pixels"


@pytest.mark.parametrize("scale", [1.0, 30.0, 1e4])
def test_gradients_of_entropy_are_finite(scale: float) -> None:
    logits = (scale * torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(0))).requires_grad_()
    entropy(logits).backward()
    assert torch.isfinite(logits.grad).all()


def test_following_the_gradient_of_entropy_makes_surer() -> None:
    logits = of_probabilities(0.4, 0.3, 0.3).requires_grad_()
    entropy(logits).backward()
    assert logits.grad[0, 0] < 0 < logits.grad[0, 1]


def test_bce_by_hand() -> None:
    scores = torch.tensor([0.0, math.log(3)]).view(2, 1, 1, 1)  # the sigmoid says 1/2 and 3/4
    assert domain_loss(scores, TARGET).item() == pytest.approx(-(math.log(1 / 2) + math.log(3 / 4)) / 2)
    assert domain_loss(scores, SOURCE).item() == pytest.approx(-(math.log(1 / 2) + math.log(1 / 4)) / 2)


def test_least_squares_by_hand() -> None:
    scores = torch.tensor([0.5, 2.0]).view(2, 1, 1, 1)
    assert domain_loss(scores, TARGET, "least_squares").item() == pytest.approx((0.25 + 1.0) / 2)
    assert domain_loss(scores, SOURCE, "least_squares").item() == pytest.approx((0.25 + 4.0) / 2)


@pytest.mark.parametrize("kind", ["bce", "least_squares"])
def test_a_net_that_fools_moves_the_scores_to_the_source(kind) -> None:  # type: ignore[no-untyped-def]
    scores = torch.full((1, 1, 2, 2), 0.7, requires_grad=True)
    domain_loss(scores, SOURCE, kind).backward()
    assert (scores.grad > 0).all()
    scores.grad = None
    domain_loss(scores, TARGET, kind).backward()
    assert (scores.grad < 0).all()


def test_scores_of_any_size_stay_finite() -> None:
    assert torch.isfinite(domain_loss(torch.tensor([-1e4, 1e4]), TARGET))
    assert domain_loss(torch.zeros(3, dtype=torch.float64), TARGET).dtype == torch.float64


def test_a_critics_losses_by_hand() -> None:
    student, teacher = torch.tensor([0.5, -3.0]), torch.tensor([0.25, 2.0])
    assert fooling_loss(student).item() == pytest.approx(1.25)
    assert critic_loss(student, teacher).item() == pytest.approx((0.75 + 0) / 2 + (1.5 + 0) / 2)
    assert critic_loss(student, teacher, "wasserstein").item() == pytest.approx(-1.25 - 1.125)


def test_a_critic_and_its_student_pull_in_opposite_directions() -> None:
    scores = torch.zeros(3, requires_grad=True)
    (down,) = torch.autograd.grad(fooling_loss(scores), scores)
    (up,) = torch.autograd.grad(critic_loss(scores, torch.zeros(3)), scores)
    assert (down < 0).all()
    assert (up > 0).all()


@pytest.mark.parametrize("slope", [0.0, 0.5, 1.0, 3.0])
def test_the_penalty_of_a_linear_critic_by_hand(slope: float) -> None:
    """It scores slope times one element: the gradient has that length everywhere."""
    weight = torch.tensor(slope, requires_grad=True)
    student, teacher = torch.zeros(2, 3, 4, 4, requires_grad=True), torch.ones(2, 3, 4, 4)
    penalty = gradient_penalty(lambda x: weight * x[:, 0, 0, 0], student, teacher, torch.rand(2, 1, 1, 1))
    assert penalty.item() == pytest.approx((slope - 1) ** 2)
    penalty.backward()
    assert weight.grad.item() == pytest.approx(2 * (slope - 1) if slope else 0)
    assert student.grad is None


def test_the_penalty_lies_between_the_nets() -> None:
    """alpha = 1 is the teacher, 0 the student: the slope of half the square is the place itself."""
    student, teacher = torch.full((1, 1, 1, 1), 3.0), torch.full((1, 1, 1, 1), 5.0)
    for alpha, place in ((0.0, 3.0), (1.0, 5.0), (0.25, 3.5)):
        found = gradient_penalty(lambda x: x**2 / 2, student, teacher, torch.full((1, 1, 1, 1), alpha))
        assert found.item() == pytest.approx((place - 1) ** 2)
