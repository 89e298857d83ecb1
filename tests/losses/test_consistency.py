"""Pseudo labels and the losses towards them, against loops; exact zeros where nothing is learned."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from tutelage.losses.consistency import (
    cross_pseudo_supervision,
    masked_consistency,
    masked_divergence,
    pseudo_label,
    ramp_up,
)


def case(seed: int, shape: tuple[int, int, int, int] = (2, 4, 3, 5)) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits, pseudo labels (some ignored), confidences and validity."""
    draw = torch.Generator().manual_seed(seed)
    maps = (shape[0], *shape[2:])
    logits = 3 * torch.randn(shape, generator=draw)
    pseudo = torch.randint(0, shape[1], maps, generator=draw)
    pseudo = torch.where(torch.rand(maps, generator=draw) < 0.1, 255, pseudo)
    confidence = torch.rand(maps, generator=draw)
    valid = torch.rand(maps, generator=draw) < torch.rand((), generator=draw)
    return logits.requires_grad_(), pseudo, confidence, valid


def by_hand(logits: Tensor, pseudo: Tensor, confidence: Tensor, valid: Tensor, threshold: float) -> float:
    total, count = 0.0, 0
    for image in range(logits.shape[0]):
        for row in range(logits.shape[2]):
            for column in range(logits.shape[3]):
                if not valid[image, row, column]:
                    continue
                count += 1
                label = int(pseudo[image, row, column])
                if confidence[image, row, column] >= threshold and label != 255:
                    z = logits[image, :, row, column].double()
                    total += math.log(z.exp().sum().item()) - z[label].item()
    return total / count if count else 0.0


@given(st.integers(0, 10_000), st.sampled_from([0.0, 0.3, 0.8, 1.0]))
@settings(max_examples=60, deadline=None)
def test_masked_consistency_is_the_loop(seed: int, threshold: float) -> None:
    logits, pseudo, confidence, valid = case(seed)
    found = masked_consistency(logits, pseudo, confidence, valid, threshold)
    assert found.item() == pytest.approx(by_hand(logits.detach(), pseudo, confidence, valid, threshold), abs=1e-5)
    found.backward()
    assert logits.grad is not None
    kept = valid & (confidence >= threshold) & (pseudo != 255)
    assert not logits.grad.permute(0, 2, 3, 1)[~kept].any(), "pixels that do not count get exactly nothing"
    assert bool(logits.grad.any()) == bool(kept.any())


@pytest.mark.parametrize("nothing", ["sure", "valid", "labelled"])
def test_nothing_to_learn_is_exactly_zero(nothing: str) -> None:
    logits, pseudo, confidence, _ = case(1)
    valid = torch.full_like(pseudo, nothing != "valid", dtype=torch.bool)
    if nothing == "labelled":
        pseudo = torch.full_like(pseudo, 255)
    found = masked_consistency(logits, pseudo, confidence, valid, 2.0 if nothing == "sure" else 0.0)
    assert found.item() == 0
    found.backward()
    assert logits.grad is not None
    assert not logits.grad.any()
    assert torch.isfinite(logits.grad).all()


def test_the_loss_grows_with_the_share_of_sure_pixels() -> None:
    logits, pseudo = torch.zeros(1, 4, 2, 2), torch.zeros(1, 2, 2, dtype=torch.int64)
    confidence, valid = torch.tensor([[[0.99, 0.95], [0.9, 0.5]]]), torch.ones(1, 2, 2, dtype=torch.bool)
    for threshold, kept in ((0.0, 4), (0.9, 3), (0.95, 2), (0.96, 1), (1.0, 0)):
        found = masked_consistency(logits, pseudo, confidence, valid, threshold)
        assert found.item() == pytest.approx(math.log(4) * kept / 4)
    valid[0, 1, 1] = False
    assert masked_consistency(logits, pseudo, confidence, valid, 0.0).item() == pytest.approx(math.log(4))
    assert masked_consistency(logits, pseudo, confidence, valid, 0.96).item() == pytest.approx(math.log(4) / 3)


@given(st.integers(0, 10_000), st.sampled_from([torch.float32, torch.bfloat16]))
@settings(max_examples=40, deadline=None)
def test_a_pseudo_label_is_the_softmax_and_its_maximum(seed: int, dtype: torch.dtype) -> None:
    logits = (20 * torch.randn(2, 5, 4, 3, generator=torch.Generator().manual_seed(seed))).to(dtype).requires_grad_()
    before = logits.detach().clone()
    label, confidence = pseudo_label(logits)
    probability = logits.detach().float().softmax(1)
    assert label.dtype == torch.int64
    assert torch.equal(label, logits.argmax(1))
    torch.testing.assert_close(confidence, probability.max(1).values)
    assert ((confidence > 0) & (confidence <= 1)).all()
    assert not label.requires_grad
    assert not confidence.requires_grad
    assert torch.equal(logits, before), "logits are not written into"


def test_extreme_logits_have_a_confidence() -> None:
    logits = torch.tensor([1e30, -1e30, 0.0]).view(1, 3, 1, 1)
    assert pseudo_label(logits)[1].item() == 1
    assert pseudo_label(torch.full((1, 4, 1, 1), -1e30))[1].item() == 0.25


def test_plain_supervision_is_a_mean_over_pixels() -> None:
    logits, pseudo, _, valid = case(3)
    expected = F.cross_entropy(logits, pseudo, ignore_index=255)
    torch.testing.assert_close(cross_pseudo_supervision(logits, pseudo), expected)
    expected = F.cross_entropy(logits, pseudo.masked_fill(~valid, 255), ignore_index=255)
    torch.testing.assert_close(cross_pseudo_supervision(logits, pseudo, valid), expected)
    nothing = cross_pseudo_supervision(logits, pseudo, torch.zeros_like(valid))
    nothing.backward()
    assert nothing.item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_a_divergence_where_the_view_shows_something() -> None:
    logits, _, _, shown = case(3)
    teacher = case(4)[0]
    q, p = (each.double().softmax(1) for each in (teacher.detach(), logits.detach()))
    expected = (q * (q.log() - p.log())).sum(1)[shown].mean() / logits.shape[1]
    value = masked_divergence(logits, teacher, shown)
    torch.testing.assert_close(value.double(), expected)
    torch.testing.assert_close(masked_divergence(logits, teacher, shown, normalizer=2.0 * shown.sum()), value / 2)
    (gradient,) = torch.autograd.grad(value, logits, retain_graph=True)
    assert torch.equal(gradient.abs().sum(1) > 0, shown)
    value.backward()
    assert teacher.grad is None
    assert masked_divergence(teacher, teacher, shown).item() == pytest.approx(0, abs=1e-7)


def test_a_divergence_of_nothing_and_of_certainties() -> None:
    logits, _, _, shown = case(3)
    nothing = masked_divergence(logits, case(4)[0], torch.zeros_like(shown))
    (gradient,) = torch.autograd.grad(nothing, logits)
    assert nothing.item() == 0.0
    assert not gradient.any()
    sure = (1e4 * logits).requires_grad_()
    value = masked_divergence(sure, -1e4 * logits, torch.ones_like(shown))
    (gradient,) = torch.autograd.grad(value, sure)
    assert value.isfinite()
    assert gradient.isfinite().all()


def test_a_ramp() -> None:
    assert ramp_up(0, 10) == pytest.approx(math.exp(-5))
    assert ramp_up(5, 10) == pytest.approx(math.exp(-1.25))
    assert ramp_up(10, 10) == ramp_up(99, 10) == ramp_up(0, 0) == 1.0
