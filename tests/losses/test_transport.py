"""Both directions of transport: against the plain form, in parts, with padding, and where nothing is left."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tutelage.losses.transport import (
    cosine_cost,
    cosines,
    merged,
    pixel_sums,
    pixel_to_prototype,
    prototype_to_pixel,
)

Inputs = tuple[Tensor, Tensor, Tensor]


def inputs(
    seed: int = 0, batch: int = 3, classes: int = 4, channels: int = 6, size: tuple[int, int] = (3, 5)
) -> Inputs:
    """Logits, features and prototypes, all with a gradient."""
    draw = torch.Generator().manual_seed(seed)

    def made(*shape: int, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(shape, generator=draw)).requires_grad_()

    return made(batch, classes, *size, scale=3.0), made(batch, channels, *size), made(classes, channels)


def plain_cost(features: Tensor, prototypes: Tensor) -> Tensor:
    return 1 - torch.cosine_similarity(features[:, None], prototypes[None, :, :, None, None], dim=2)


def plain_by_pixel(logits: Tensor, cost: Tensor, valid: Tensor) -> Tensor:
    """Pixel to prototype, over the pixels that count, one after the other."""
    rows = [(logits[place].softmax(0) * cost[place]).sum() for place in places(valid)]
    return torch.stack(rows).mean()


def plain_by_prototype(logits: Tensor, cost: Tensor, valid: Tensor) -> Tensor:
    """Prototype to pixel, over the pixels that count."""
    rows = list(places(valid))
    share = torch.stack([logits[place] for place in rows]).softmax(0)
    return (share * torch.stack([cost[place] for place in rows])).sum(0).mean()


def places(valid: Tensor) -> list[tuple[int, slice, int, int]]:
    return [(b, slice(None), y, x) for b, y, x in itertools.product(*map(range, valid.shape)) if valid[b, y, x]]


def some(seed: int, shape: tuple[int, ...]) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.6


BOTH = [(pixel_to_prototype, plain_by_pixel), (prototype_to_pixel, plain_by_prototype)]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("ours", "plain"), BOTH)
def test_values_and_gradients_are_those_of_the_plain_form(ours: object, plain: object, masked: bool) -> None:
    logits, features, prototypes = inputs()
    valid = some(5, (3, 3, 5)) if masked else torch.ones(3, 3, 5, dtype=torch.bool)
    mine = ours(logits, cosine_cost(features, prototypes, True), valid if masked else None)  # type: ignore[operator]
    theirs = plain(logits, plain_cost(features, prototypes), valid)  # type: ignore[operator]
    torch.testing.assert_close(mine, theirs)
    three = (logits, features, prototypes)
    expected = torch.autograd.grad(theirs, three)
    for found, wanted in zip(torch.autograd.grad(mine, three), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)
    if masked:
        (gradient,) = torch.autograd.grad(ours(logits, plain_cost(features, prototypes).detach(), valid), logits)  # type: ignore[operator]
        assert not gradient.permute(0, 2, 3, 1)[~valid].any()


def test_gradients_in_closed_form() -> None:
    """Those of the specification: p (cost - E) / pixels, and q (cost - E) / classes."""
    logits, features, prototypes = inputs(1)
    cost = cosine_cost(features, prototypes).detach()
    (gradient,) = torch.autograd.grad(pixel_to_prototype(logits, cost), logits)
    share = logits.softmax(1)
    torch.testing.assert_close(gradient, share * (cost - (share * cost).sum(1, keepdim=True)) / 45)
    (gradient,) = torch.autograd.grad(prototype_to_pixel(logits, cost), logits)
    share = logits.transpose(0, 1).flatten(1).softmax(1).view(4, 3, 3, 5).transpose(0, 1)
    expected = (share * cost).sum((0, 2, 3), keepdim=True)
    torch.testing.assert_close(gradient, share * (cost - expected) / 4)


def test_whether_the_prototypes_learn() -> None:
    logits, features, prototypes = inputs()
    loss = prototype_to_pixel(logits, cosine_cost(features, prototypes))
    loss.backward()
    assert prototypes.grad is None
    assert features.grad.any()
    assert logits.grad.any()
    cosine_cost(features, prototypes, True).sum().backward()
    assert prototypes.grad.any()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 999), cut=st.integers(0, 4), masked=st.booleans())
def test_parts_add_up_to_the_whole(seed: int, cut: int, masked: bool) -> None:
    """As when images lie on two processes: value and gradient of the parts, given the merged sums."""
    logits, features, prototypes = inputs(seed, batch=4)
    cost = cosine_cost(features, prototypes).detach().requires_grad_()
    valid = some(seed, (4, 3, 5)) if masked else None
    slices = [slice(0, cut), slice(cut, 4)] if 0 < cut < 4 else [slice(0, 4)]

    def of(chosen: slice) -> tuple[Tensor, Tensor, Tensor | None]:
        return logits[chosen], cost[chosen], None if valid is None else valid[chosen]

    sums = merged(torch.stack([pixel_sums(*of(chosen)) for chosen in reversed(slices)]))
    parts = torch.stack([prototype_to_pixel(*of(chosen), sums) for chosen in slices]).sum()
    whole = prototype_to_pixel(logits, cost, valid)
    torch.testing.assert_close(parts, whole)
    expected = torch.autograd.grad(whole, (logits, cost))
    for found, wanted in zip(torch.autograd.grad(parts, (logits, cost)), expected, strict=True):
        torch.testing.assert_close(found, wanted)


def test_nothing_valid_is_an_exact_0_with_a_zero_gradient() -> None:
    for loss in (pixel_to_prototype, prototype_to_pixel):
        logits, features, prototypes = inputs()
        value = loss(1e4 * logits, cosine_cost(features, prototypes, True), torch.zeros(3, 3, 5, dtype=torch.bool))
        assert value.item() == 0
        value.backward()
        assert not any(one.grad.any() for one in (logits, features, prototypes))
    empty = pixel_sums(logits, logits, torch.zeros(3, 3, 5, dtype=torch.bool))
    full = pixel_sums(logits, logits)
    assert torch.equal(merged(torch.stack([empty, full])), full), "a process without pixels changes nothing"
    assert torch.isfinite(merged(torch.stack([empty, empty]))).all()


def test_the_sum_over_pixels_may_be_divided_by_another_number() -> None:
    logits, features, prototypes = inputs()
    cost = cosine_cost(features, prototypes)
    whole, number = pixel_to_prototype(logits, cost), torch.tensor(90.0)
    torch.testing.assert_close(pixel_to_prototype(logits, cost, normalizer=number), whole / 2)
    everywhere = torch.ones(3, 3, 5, dtype=torch.bool)
    torch.testing.assert_close(pixel_to_prototype(logits, cost, everywhere, number), whole / 2)


def test_vectors_of_length_0() -> None:
    """A pixel whose features all dropped out: cosine 0, and no gradient instead of one of 1e12."""
    _, features, prototypes = inputs()
    with torch.no_grad():
        features[0, :, 1, 2] = 0
        prototypes[3] = 0
    found = cosines(features, prototypes)
    assert not found[0, :, 1, 2].any()
    assert not found[:, 3].any()
    found.sum().backward()
    assert torch.isfinite(features.grad).all()
    assert torch.isfinite(prototypes.grad).all()
    assert not features.grad[0, :, 1, 2].any()
    assert not prototypes.grad[3].any()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 999), scale=st.sampled_from([0.0, 1e-6, 1.0, 1e4]))
def test_costs_stay_in_bounds_and_losses_finite(seed: int, scale: float) -> None:
    logits, features, prototypes = inputs(seed)
    cost = cosine_cost(scale * features, scale * prototypes)
    assert cost.min() >= -1e-6
    assert cost.max() <= 2 + 1e-6
    for loss in (pixel_to_prototype, prototype_to_pixel):
        value = loss(scale * logits, cost)
        assert -1e-6 <= value.item() <= 2 + 1e-6
        gradients = torch.autograd.grad(value, (logits, features), retain_graph=True)
        assert all(torch.isfinite(one).all() for one in gradients)


def test_half_precision_and_autocast_give_float32() -> None:
    logits, features, prototypes = (one.detach() for one in inputs())
    expected = prototype_to_pixel(logits, cosine_cost(features, prototypes))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = prototype_to_pixel(logits, cosine_cost(features, prototypes))
    assert torch.equal(inside, expected)
    halves = cosine_cost(features.half() * 1e-5, prototypes.half())
    assert halves.dtype == torch.float32
    assert torch.isfinite(halves).all()


def test_memory_layout_does_not_matter() -> None:
    logits, features, prototypes = inputs()
    last = (one.detach().to(memory_format=torch.channels_last).requires_grad_() for one in (logits, features))
    logits_last, features_last = last
    first = prototype_to_pixel(logits, cosine_cost(features, prototypes))
    second = prototype_to_pixel(logits_last, cosine_cost(features_last, prototypes))
    torch.testing.assert_close(first, second)
    torch.testing.assert_close(
        *(torch.autograd.grad(*pair)[0] for pair in ((first, features), (second, features_last)))
    )
