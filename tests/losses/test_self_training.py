"""Regularised self-training and the robust entropy: by hand, and where nothing is valid. Golden: test_uda_styles.py."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tutelage.losses.self_training import (
    entropy_regularised_labels,
    even_divergence,
    robust_entropy,
    soft_cross_entropy,
)


def logits(seed: int = 0, classes: int = 4) -> Tensor:
    return (3 * torch.randn(2, classes, 5, 6, generator=torch.Generator().manual_seed(seed))).requires_grad_()


def some(seed: int = 0) -> Tensor:
    return torch.rand(2, 5, 6, generator=torch.Generator().manual_seed(seed)) < 0.6


@pytest.mark.parametrize("eta", [0.3, 2.0])
def test_robust_entropy_by_hand(eta: float) -> None:
    z, valid = logits(), some()
    p = z.softmax(1)
    entropy = -(p * p.log()).sum(1) / math.log(4)
    expected = ((entropy**2 + 1e-8) ** eta)[valid].mean()
    torch.testing.assert_close(robust_entropy(z, eta, valid_BHW=valid), expected)
    torch.testing.assert_close(robust_entropy(z, eta), ((entropy**2 + 1e-8) ** eta).mean())
    even, sure = torch.zeros(1, 4, 2, 2), torch.tensor([50.0, 0, 0, 0]).view(1, 4, 1, 1)
    torch.testing.assert_close(robust_entropy(even), torch.tensor(1.0))
    torch.testing.assert_close(robust_entropy(even, 1.0, 2 * math.log(4)), torch.tensor(0.25))
    assert robust_entropy(sure) < 1e-12


def test_even_divergence_by_hand() -> None:
    z, counted = logits(), some()
    each = -z.log_softmax(1).mean(1)
    torch.testing.assert_close(even_divergence(z, counted), each[counted].mean())
    share = counted.sum() / 2
    halves = even_divergence(z[:1], counted[:1], share) + even_divergence(z[1:], counted[1:], share)
    torch.testing.assert_close(halves / 2, each[counted].mean())


def soft_by_hand(p: Tensor, k: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """In double precision, pixel by pixel."""
    p, k = p.double(), k.double()[:, None, None]
    y = (p / k) ** (1 / alpha)
    y = y / y.sum(1, keepdim=True)
    cost = (-y * p.log() + alpha * y * y.log()).sum(1)
    return y, cost < (-y * k.log()).sum(1)


@pytest.mark.parametrize("alpha", [0.1, 0.25, 1.0])
def test_soft_labels_by_hand(alpha: float) -> None:
    p, k = logits().detach().softmax(1), torch.tensor([0.9, 0.6, 1.0, 0.75])
    soft, kept = soft_by_hand(p, k, alpha)
    made = entropy_regularised_labels(p, k, alpha)
    torch.testing.assert_close(made.soft_BKHW.double(), soft, atol=1e-5, rtol=1e-4)
    assert torch.equal(made.kept_BHW, kept)
    assert kept.any()
    assert bool(kept.all()) == (alpha == 1.0), "with alpha 1 all are: the sum of p / k is at least 1"
    assert torch.equal(made.hard() == 255, ~kept)
    assert torch.equal(made.hard()[kept], (p / k[:, None, None]).argmax(1)[kept])


def test_probabilities_of_zero_and_one() -> None:
    p = torch.tensor([[1.0, 0, 0], [0, 0.5, 0.5]]).T.reshape(1, 3, 1, 2)
    made = entropy_regularised_labels(p, torch.tensor([0.9, 0.0, 1.0]))
    assert torch.isfinite(made.soft_BKHW).all()
    assert made.hard()[0, 0].tolist() == [0, 1], "a threshold of 0 is met by everything"


def test_soft_cross_entropy_by_hand() -> None:
    z, kept = logits(), some()
    soft = logits(1).detach().softmax(1)
    expected = -(soft * z.log_softmax(1)).sum(1)[kept].mean()
    torch.testing.assert_close(soft_cross_entropy(z, soft, kept), expected)


def test_nothing_valid_is_zero_with_a_zero_gradient() -> None:
    nothing = torch.zeros(2, 5, 6, dtype=torch.bool)
    for loss in (
        lambda z: robust_entropy(z, valid_BHW=nothing),
        lambda z: even_divergence(z, nothing),
        lambda z: soft_cross_entropy(z, z.detach().softmax(1), nothing),
    ):
        z = logits()
        value = loss(z)
        assert value.item() == 0.0
        (gradient,) = torch.autograd.grad(value, z)
        assert not gradient.any()


def test_extreme_logits_stay_finite() -> None:
    z = torch.tensor([1e4, -1e4, 0.0]).view(1, 3, 1, 1).requires_grad_()
    everywhere = torch.ones(1, 1, 1, dtype=torch.bool)
    for value in (robust_entropy(z), robust_entropy(z, 0.3), even_divergence(z, everywhere)):
        (gradient,) = torch.autograd.grad(value, z, retain_graph=True)
        assert torch.isfinite(value)
        assert torch.isfinite(gradient).all()
