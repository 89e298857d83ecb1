"""Distillation losses on logits."""

# Legend: B batch, K classes, h w positions of the logits' grid.

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def pixel_kd(student_BKhw: Tensor, teacher_BKhw: Tensor, temperature: float = 1.0) -> Tensor:
    """T^2 times the mean over all B h w positions of KL(softmax(teacher/T) || softmax(student/T)).

    No ignore mask: padded and unlabelled positions count. Source: the classic 2015 form, per pixel, as in CIRKD.
    """
    student = F.log_softmax(student_BKhw.float() / temperature, dim=1)
    teacher = F.log_softmax(teacher_BKhw.detach().float() / temperature, dim=1)
    divergence = F.kl_div(student, teacher, reduction="sum", log_target=True)
    positions = student_BKhw.numel() // student_BKhw.shape[1]
    return temperature**2 * divergence / positions


def probability_mse(student_BKhw: Tensor, teacher_BKhw: Tensor) -> Tensor:
    """Mean over all B K h w elements of the squared difference of softmax probabilities; no gradient to the teacher."""
    with torch.no_grad():
        target = teacher_BKhw.float().softmax(1)
    return F.mse_loss(student_BKhw.float().softmax(1), target)
