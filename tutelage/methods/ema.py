"""A teacher that is the moving average of its student."""

from __future__ import annotations

import copy
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

Net = TypeVar("Net", bound=nn.Module)


def twin(net: Net) -> Net:
    """A copy of a net that is never trained: the start of a moving average."""
    teacher = copy.deepcopy(net)
    teacher.requires_grad_(False)
    return teacher


def decay_at(step: int, decay: float, ramp: bool) -> float:
    """The decay of the average that follows update ``step`` (from 0).

    With ``ramp`` it is min(1 - 1/(step + 1), decay): the first update copies, early ones forget fast.
    """
    return min(1.0 - 1.0 / (step + 1), decay) if ramp else decay


@torch.no_grad()
def average(
    teacher: nn.Module,
    student: nn.Module,
    decay: float,
    buffers: Literal["own", "copy", "average"] = "own",
) -> None:
    """teacher ← decay * teacher + (1 - decay) * student, for parameters, in two fused operations.

    ``buffers``: the teacher's own (its forwards update them), a copy of the student's, or averaged too. Integer
    buffers (numbers of batches seen) are copied where others are averaged: averaging truncates them.
    """
    mine = list(teacher.parameters())
    _lerp(mine, list(student.parameters()), 1.0 - decay)
    if buffers == "own":
        return
    pairs = [(mine, theirs) for mine, theirs in zip(teacher.buffers(), student.buffers(), strict=True)]
    floating = [(m, t) for m, t in pairs if m.is_floating_point()] if buffers == "average" else []
    _lerp([m for m, _ in floating], [t for _, t in floating], 1.0 - decay)
    for own, theirs in pairs:
        if buffers == "copy" or not own.is_floating_point():
            own.copy_(theirs)


def _lerp(mine: list[Tensor] | list[nn.Parameter], theirs: list[Tensor] | list[nn.Parameter], weight: float) -> None:
    if mine:
        torch._foreach_lerp_([m.data for m in mine], [t.data for t in theirs], weight)
