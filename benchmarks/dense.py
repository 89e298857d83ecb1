"""The relational losses as their formulas read, every map in memory: what the blocked forms are measured against."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def pair_relations(student_BPC: Tensor, teacher_BPC: Tensor, temperature: float) -> Tensor:
    """Mean over ordered pairs of images and over positions of KL(teacher || student)."""
    total = student_BPC.new_zeros(())
    for mine, theirs in zip(student_BPC, teacher_BPC, strict=True):
        for other, their_other in zip(student_BPC, teacher_BPC, strict=True):
            log_S = F.log_softmax(mine @ other.T / temperature, dim=1)
            share_T = F.softmax(theirs @ their_other.T / temperature, dim=1)
            total = total + F.kl_div(log_S, share_T, reduction="batchmean")
    return total / len(student_BPC) ** 2


def bank_relations(student_NC: Tensor, teacher_NC: Tensor, bank_MC: Tensor, temperature: float) -> Tensor:
    """Mean over rows of KL(teacher || student) over the bank."""
    log_S = F.log_softmax(student_NC @ bank_MC.T / temperature, dim=1)
    share_T = F.softmax(teacher_NC @ bank_MC.T / temperature, dim=1)
    return F.kl_div(log_S, share_T, reduction="batchmean")


def memory_relations(
    student_NC: Tensor,
    teacher_NC: Tensor,
    queues: tuple[Tensor, Tensor],
    draws: tuple[Tensor, Tensor],
    temperature: float,
) -> Tensor:
    """Both memory losses: float32 queues (K, N, C), the same slots of all classes."""
    banks = [torch.cat([queue_NC[slots] for queue_NC in queue]) for queue, slots in zip(queues, draws, strict=True)]
    pixel, region = (bank_relations(student_NC, teacher_NC, bank, temperature) for bank in banks)
    return pixel + region
