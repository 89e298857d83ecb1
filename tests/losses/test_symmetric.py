"""ProDA's losses on the target, against loops; exact zeros where nothing counts."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from tutelage.losses.symmetric import (
    confidence_regularizer,
    mean_kd,
    reverse_cross_entropy,
    structure_divergence,
    symmetric_cross_entropy,
)

SHAPE = (2, 4, 3, 5)


def case(seed: int, sure: float = 2.0, ignored: float = 0.3) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    logits = sure * torch.randn(SHAPE, generator=draw)
    label = torch.randint(0, SHAPE[1], (SHAPE[0], *SHAPE[2:]), generator=draw)
    label[torch.rand(label.shape, generator=draw) < ignored] = 255
    return logits.requires_grad_(), label


@given(st.integers(0, 999), st.sampled_from([0.1, 2.0, 30.0]), st.sampled_from([0.0, 0.5]))
@settings(max_examples=30, deadline=None)
def test_reverse_cross_entropy_is_what_its_definition_says(seed: int, sure: float, ignored: float) -> None:
    logits, label = case(seed, sure, ignored)
    p = logits.detach().double().softmax(1).clamp(1e-7, 1.0)
    total, count = 0.0, 0
    for image in range(SHAPE[0]):
        for y in range(SHAPE[2]):
            for x in range(SHAPE[3]):
                truth = int(label[image, y, x])
                if truth != 255:
                    count += 1
                    total -= sum(
                        float(p[image, k, y, x]) * math.log(1.0 if k == truth else 1e-4) for k in range(SHAPE[1])
                    )
    found = reverse_cross_entropy(logits, label)
    torch.testing.assert_close(found.item(), total / (count + 1e-6), rtol=1e-5, atol=1e-9)
    (gradient,) = torch.autograd.grad(found, logits)
    assert torch.isfinite(gradient).all()
    assert not gradient.movedim(1, -1)[label == 255].any()


def test_a_wrong_label_costs_no_more_than_its_bound() -> None:
    logits = torch.tensor([100.0, 0.0]).view(1, 2, 1, 1)
    wrong = torch.ones(1, 1, 1, dtype=torch.int64)
    torch.testing.assert_close(reverse_cross_entropy(logits, wrong).item(), -math.log(1e-4), rtol=1e-5, atol=0)
    assert reverse_cross_entropy(logits, 0 * wrong).item() < 1e-5


@pytest.mark.parametrize("loss", [reverse_cross_entropy, symmetric_cross_entropy])
def test_without_labels_it_is_nothing(loss: Any) -> None:
    logits, label = case(0, ignored=1.1)
    found = loss(logits, label)
    assert found.item() == 0.0
    assert not torch.autograd.grad(found, logits)[0].any()


def test_symmetric_is_the_sum_and_parts_make_a_whole() -> None:
    logits, label = case(3)
    forward = F.cross_entropy(logits, label, ignore_index=255)
    expected = 0.3 * forward + 0.7 * reverse_cross_entropy(logits, label)
    torch.testing.assert_close(symmetric_cross_entropy(logits, label, alpha=0.3, beta=0.7), expected)
    number = (label != 255).sum().float()
    parts = [symmetric_cross_entropy(logits[i : i + 1], label[i : i + 1], normalizer=number) for i in range(2)]
    torch.testing.assert_close(sum(parts), symmetric_cross_entropy(logits, label))


def test_regularizers() -> None:
    logits, _ = case(5)
    p = logits.softmax(1)
    torch.testing.assert_close(confidence_regularizer(logits, "mrkld"), -p.log().mean())
    torch.testing.assert_close(confidence_regularizer(logits, "mrent"), (p * p.log()).sum(1).mean())
    even = torch.zeros(SHAPE)
    for kind in ("mrkld", "mrent"):
        assert confidence_regularizer(even, kind) < confidence_regularizer(logits, kind)
        far = torch.zeros(1, 2, 1, 1).index_fill(1, torch.tensor([0]), 1e4).requires_grad_()
        loss = confidence_regularizer(far, kind)
        assert torch.isfinite(loss)
        assert torch.isfinite(torch.autograd.grad(loss, far)[0]).all()


def test_structure_is_a_divergence_of_distances() -> None:
    draw = torch.Generator().manual_seed(1)
    student, teacher = (torch.rand(SHAPE, generator=draw).requires_grad_() for _ in range(2))
    counted = torch.rand(SHAPE[0], 1, *SHAPE[2:], generator=draw) < 0.6
    found = structure_divergence(student, teacher, counted, 3.0)
    p, q = (-3 * teacher).softmax(1), (-3 * student).softmax(1)
    expected = ((p * (p / q).log()).sum(1, keepdim=True) * counted).sum() / (SHAPE[1] * counted.sum())
    torch.testing.assert_close(found, expected)
    found.backward()
    assert teacher.grad is None
    assert student.grad is not None
    assert not student.grad.movedim(1, -1)[~counted[:, 0]].any()
    assert structure_divergence(teacher.detach(), teacher, counted).abs() < 1e-6
    number = SHAPE[1] * counted.sum().float()
    parts = [
        structure_divergence(student[i : i + 1], teacher[i : i + 1], counted[i : i + 1], 3.0, number) for i in (0, 1)
    ]
    torch.testing.assert_close(sum(parts), found)


def test_structure_where_nothing_counts() -> None:
    student = torch.rand(SHAPE).requires_grad_()
    found = structure_divergence(student, torch.full(SHAPE, torch.inf), torch.zeros(SHAPE, dtype=torch.bool))
    assert found.item() == 0.0
    assert not torch.autograd.grad(found, student)[0].any()


def test_mean_kd_in_both_forms() -> None:
    student, _ = case(7)
    teacher = case(8)[0]
    p, q = teacher.softmax(1).detach(), student.softmax(1)
    torch.testing.assert_close(mean_kd(student, teacher), (p * (p.log() - q.log())).mean())
    torch.testing.assert_close(mean_kd(student, teacher, "code"), (p * (p.log() - q)).mean())
    mean_kd(student, teacher, "code").backward()
    assert teacher.grad is None
