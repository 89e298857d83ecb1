"""Pixels against the classifier's weights: values, divisors, gradients, exact zeros."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tutelage.losses.prototype_contrast import prototype_contrast


def inputs(ignored: float = 0.4) -> tuple[Tensor, Tensor, Tensor]:
    """Features and prototypes with a gradient, and labels."""
    draw = torch.Generator().manual_seed(0)
    features = torch.randn(2, 6, 4, 5, generator=draw).requires_grad_()
    prototypes = torch.randn(3, 6, generator=draw).requires_grad_()
    label = torch.randint(0, 3, (2, 4, 5), generator=draw)
    return features, label.masked_fill(torch.rand(2, 4, 5, generator=draw) < ignored, 255), prototypes


def plain(features: Tensor, label: Tensor, prototypes: Tensor, temperature: float) -> Tensor:
    """The sum, row by row."""
    rows, labels = features.permute(0, 2, 3, 1).flatten(0, 2), label.flatten()
    logits = F.normalize(rows, dim=1) @ F.normalize(prototypes, dim=1).T / temperature
    known = labels != 255
    return -logits[known].log_softmax(1).gather(1, labels[known, None]).sum()


@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_it_is_the_cross_entropy_of_cosines(temperature: float) -> None:
    features, label, prototypes = inputs()
    expected = plain(features, label, prototypes, temperature)
    known = int((label != 255).sum())
    assert 0 < known < label.numel()
    for options, number in (
        ({}, label.numel()),
        ({"reduction": "valid"}, known),
        ({"normalizer": torch.tensor(7.0)}, 7),
        ({"reduction": "valid", "normalizer": torch.tensor(7.0)}, 7),
    ):
        found = prototype_contrast(features, label, prototypes, temperature, **options)  # type: ignore[arg-type]
        torch.testing.assert_close(found, expected / number)
    gradients = torch.autograd.grad(expected / label.numel(), (features, prototypes))
    loss = prototype_contrast(features, label, prototypes, temperature)
    for found, wanted in zip(torch.autograd.grad(loss, (features, prototypes)), gradients, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


def test_whether_the_prototypes_learn() -> None:
    features, label, prototypes = inputs()
    prototype_contrast(features, label, prototypes, prototype_grad=False).backward()
    assert prototypes.grad is None
    assert features.grad.any()


@pytest.mark.parametrize("prototype_grad", [False, True])
def test_a_projection_takes_both(prototype_grad: bool) -> None:
    features, label, prototypes = inputs()
    matrix = torch.randn(4, 6, generator=torch.Generator().manual_seed(1)).requires_grad_()
    found = prototype_contrast(features, label, prototypes, 0.5, projection_EC=matrix, prototype_grad=prototype_grad)
    through = torch.einsum("ec,bchw->behw", matrix, features)
    torch.testing.assert_close(found, plain(through, label, prototypes @ matrix.T, 0.5) / label.numel())
    found.backward()
    assert matrix.grad.any()
    assert (prototypes.grad is not None) == prototype_grad


@pytest.mark.parametrize("reduction", ["all", "valid"])
def test_no_label_is_an_exact_0_with_a_zero_gradient(reduction: str) -> None:
    features, label, prototypes = inputs(ignored=1.1)
    loss = prototype_contrast(features, label, prototypes, reduction=reduction)  # type: ignore[arg-type]
    assert loss.item() == 0
    loss.backward()
    assert not features.grad.any()
    assert not prototypes.grad.any()


def test_few_labels_make_a_small_loss_unless_divided_by_their_number() -> None:
    features, label, prototypes = inputs(ignored=0.0)
    few = torch.where(torch.arange(5) == 2, label, 255)
    assert prototype_contrast(features, few, prototypes) < 0.5 * prototype_contrast(features, label, prototypes)
    many = prototype_contrast(features, few, prototypes, reduction="valid")
    torch.testing.assert_close(many, prototype_contrast(features[..., 2:3], label[..., 2:3], prototypes))


def test_zero_features_and_half_precision_stay_finite() -> None:
    features, label, prototypes = inputs()
    with torch.no_grad():
        features[0] = 0
    loss = prototype_contrast(features, label, prototypes, 1e-3)
    loss.backward()
    assert all(torch.isfinite(one).all() for one in (loss, features.grad, prototypes.grad))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(prototype_contrast(features, label, prototypes, 1e-3), loss)
    assert prototype_contrast(features.half(), label, prototypes.half()).dtype == torch.float32
