"""Distillation losses on numbers that can be checked by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tutelage.losses.distillation import pixel_kd, probability_mse


def logits(*positions: tuple[float, ...]) -> Tensor:
    """(1, K, 1, n): the logits of n positions."""
    return torch.tensor(positions).t()[None, :, None, :].clone()


def random_logits(seed: int, shape: tuple[int, ...] = (2, 5, 3, 4)) -> Tensor:
    return 3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_kd_by_hand() -> None:
    student, teacher = logits((0.0, 0.0)), logits((math.log(3), 0.0))
    expected = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert pixel_kd(student, teacher).item() == pytest.approx(expected)
    both = pixel_kd(logits((0.0, 0.0), (7.0, 7.0)), logits((math.log(3), 0.0), (1.0, 1.0)))
    assert both.item() == pytest.approx(expected / 2), "a mean over positions; the second agrees"


def test_kd_at_a_temperature_by_hand() -> None:
    share = math.sqrt(3) / (1 + math.sqrt(3))  # softmax(ln 3 / 2, 0)
    divergence = share * math.log(share / 0.5) + (1 - share) * math.log((1 - share) / 0.5)
    found = pixel_kd(logits((0.0, 0.0)), logits((math.log(3), 0.0)), temperature=2.0)
    assert found.item() == pytest.approx(4 * divergence, rel=1e-5)


def test_kd_is_zero_only_between_equals_and_ignores_shifts() -> None:
    teacher = random_logits(0)
    assert pixel_kd(teacher + 5, teacher).item() == pytest.approx(0, abs=1e-6)
    assert pixel_kd(random_logits(1), teacher) > 0.1


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_the_gradient_of_kd(temperature: float) -> None:
    student, teacher = random_logits(1).requires_grad_(), random_logits(2).requires_grad_()
    pixel_kd(student, teacher, temperature).backward()
    difference = (student / temperature).softmax(1) - (teacher / temperature).softmax(1)
    torch.testing.assert_close(student.grad, temperature * difference.detach() / (2 * 3 * 4))
    assert teacher.grad is None


def test_mse_by_hand() -> None:
    found = probability_mse(logits((0.0, 0.0), (math.log(4), 0.0)), logits((math.log(3), 0.0), (math.log(4), 0.0)))
    assert found.item() == pytest.approx((2 * 0.25**2 + 0) / 4)


def test_the_gradient_of_mse_reaches_the_student_alone() -> None:
    student, teacher = random_logits(1).requires_grad_(), random_logits(2).requires_grad_()
    probability_mse(student, teacher).backward()
    own = random_logits(1).requires_grad_()
    ((own.softmax(1) - teacher.detach().softmax(1)) ** 2).mean().backward()
    torch.testing.assert_close(student.grad, own.grad)
    assert teacher.grad is None


@pytest.mark.parametrize("loss", [pixel_kd, probability_mse])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_single(loss, dtype: torch.dtype) -> None:  # type: ignore[no-untyped-def]
    student, teacher = random_logits(1).to(dtype), random_logits(2).to(dtype)
    found = loss(student, teacher)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, loss(student.float(), teacher.float()))


@pytest.mark.parametrize("loss", [pixel_kd, probability_mse])
def test_extreme_logits_stay_finite(loss) -> None:  # type: ignore[no-untyped-def]
    student = logits((1e4, -1e4, 0.0), (-1e4, 1e4, 0.0)).requires_grad_()
    value = loss(student, logits((-1e4, 1e4, 0.0), (-1e4, 1e4, 0.0)))
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(student.grad).all()
