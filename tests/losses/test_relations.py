"""Relational losses: the blocked forms against the plain ones, and what must be exactly zero."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from tutelage.losses.options import SMALLEST_TEMPERATURE
from tutelage.losses.relations import bank_relations, pair_relations, rows_of, unit


def dense_pairs(student: Tensor, teacher: Tensor, temperature: float, group: int) -> Tensor:
    """As the paper writes it, every map in memory."""
    total = student.new_zeros(())
    for first in range(0, len(student), group):
        mine, theirs = student[first : first + group], teacher[first : first + group]
        part = student.new_zeros(())
        for i in range(len(mine)):
            for j in range(len(mine)):
                log_S = F.log_softmax(mine[i] @ mine[j].T / temperature, dim=1)
                log_T = F.log_softmax(theirs[i] @ theirs[j].T / temperature, dim=1)
                part = part + F.kl_div(log_S, log_T, reduction="batchmean", log_target=True)
        total = total + part / len(mine) ** 2 * len(mine) / len(student)
    return total


def dense_bank(
    student: Tensor, teacher: Tensor, bank: Tensor, valid: Tensor, temperature: float, soft: float
) -> Tensor:
    log_S, log_T = (F.log_softmax(rows @ bank.T / temperature / soft, dim=1) for rows in (student, teacher))
    divergence = F.kl_div(log_S, log_T, reduction="none", log_target=True).sum(1)
    return soft**2 * (divergence * valid).sum() / valid.sum().clamp(min=1)


def vectors(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return unit(torch.randn(*shape, generator=torch.Generator().manual_seed(seed))).to(dtype)


@settings(max_examples=40, deadline=None)
@given(
    images=st.integers(1, 4),
    positions=st.integers(1, 23),
    channels=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    group=st.integers(1, 5),
    block=st.integers(1, 30),
    temperature=st.sampled_from([0.03, 0.1, 1.0]),
    seed=st.integers(0, 999),
)
@example(images=3, positions=7, channels=(4, 5), group=2, block=4, temperature=0.1, seed=1)
@example(images=4, positions=5, channels=(3, 3), group=3, block=30, temperature=1.0, seed=2)
def test_blocks_change_nothing_about_pairs(
    images: int, positions: int, channels: tuple[int, int], group: int, block: int, temperature: float, seed: int
) -> None:
    student = vectors(seed, images, positions, channels[0]).requires_grad_()
    teacher = vectors(seed + 1, images, positions, channels[1])
    loss = pair_relations(student, teacher, temperature, group, block)
    expected = dense_pairs(student, teacher, temperature, group)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    ours, theirs = (torch.autograd.grad(3 * value, student)[0] for value in (loss, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * max(1.0, float(theirs.abs().max())))


def test_opposite_vectors_at_the_smallest_temperature_are_a_number() -> None:
    """All cosines of a row are -1: exp(-2 / tau) is what its sum is made of."""
    apart = torch.stack([torch.ones(3, 4), -torch.ones(3, 4)]) / 2
    near = unit(apart + 0.3 * vectors(0, 2, 3, 4)).requires_grad_()
    loss = pair_relations(near, apart, SMALLEST_TEMPERATURE, 2)
    torch.testing.assert_close(loss, dense_pairs(near, apart, SMALLEST_TEMPERATURE, 2), rtol=1e-4, atol=1e-5)
    assert torch.autograd.grad(loss, near)[0].isfinite().all()


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 50),
    block=st.integers(1, 45),
    softening=st.sampled_from([0.5, 1.0, 2.0]),
    share=st.sampled_from([0.0, 0.4, 1.0]),
    seed=st.integers(0, 999),
)
def test_blocks_change_nothing_about_the_bank(
    rows: int, columns: int, block: int, softening: float, share: float, seed: int
) -> None:
    student = vectors(seed, rows, 7).requires_grad_()
    teacher, bank = vectors(seed + 1, rows, 7), vectors(seed + 2, columns, 7)
    valid = torch.rand(rows, generator=torch.Generator().manual_seed(seed)) < share
    loss = bank_relations(student, teacher, bank, valid, 0.1, softening, block)
    expected = dense_bank(student, teacher, bank, valid, 0.1, softening)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    ours, theirs = (torch.autograd.grad(3 * value, student)[0] for value in (loss, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * max(1.0, float(theirs.abs().max())))


def test_no_valid_row_is_exactly_zero() -> None:
    student = vectors(0, 5, 4).requires_grad_()
    loss = bank_relations(student, vectors(1, 5, 4), vectors(2, 6, 4), torch.zeros(5, dtype=torch.bool))
    assert loss.item() == 0
    assert not torch.autograd.grad(loss, student)[0].any()


def test_equal_nets_have_no_loss_and_no_gradient() -> None:
    student = vectors(0, 2, 6, 4).requires_grad_()
    for loss in (
        pair_relations(student, student.detach(), 0.1, 2),
        bank_relations(student.flatten(0, 1), student.detach().flatten(0, 1), vectors(1, 9, 4)),
    ):
        assert abs(loss.item()) < 1e-6
        assert torch.autograd.grad(loss, student)[0].abs().max() < 1e-6


def test_vectors_of_length_zero_stay_zero_and_have_no_gradient() -> None:
    given = torch.randn(1, 3, 2, 2)
    given[:, :, 0, 1] = 0
    given.requires_grad_()
    rows = rows_of(given)
    assert not rows[0, 1].any()
    loss = pair_relations(rows, rows_of(torch.randn(1, 3, 2, 2)))
    (gradient,) = torch.autograd.grad(loss, given)
    assert torch.isfinite(gradient).all()
    assert not gradient[:, :, 0, 1].any()
    assert gradient.any()


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e5])
def test_half_precision_neither_overflows_nor_vanishes(scale: float) -> None:
    given = (vectors(0, 2, 8, 3, 3) * scale).half()
    assert torch.isfinite(rows_of(given)).all()
    norms = rows_of(given).norm(dim=2)
    assert ((norms - 1).abs() < 1e-3).all()


def test_bfloat16_products_are_near() -> None:
    student, teacher = vectors(0, 2, 30, 16), vectors(1, 2, 30, 16)
    exact = pair_relations(student, teacher)
    near = pair_relations(student.bfloat16().requires_grad_(), teacher)
    near.backward()
    assert near.dtype == torch.float32
    torch.testing.assert_close(near, exact, rtol=0.03, atol=0.0)


def test_the_teacher_gets_no_gradient() -> None:
    student, teacher = vectors(0, 1, 5, 4).requires_grad_(), vectors(1, 1, 5, 4).requires_grad_()
    pair_relations(student, teacher).backward()
    assert teacher.grad is None
