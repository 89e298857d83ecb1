"""Output-space adversarial losses: domains (AdaptSegNet, ADVENT), entropy, and a student against its teacher."""

# Legend: B batch, K classes, H W pixels.

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

SOURCE, TARGET = 0.0, 1.0


def self_information(logits_BKHW: Tensor) -> Tensor:
    """Weighted self-information -p log2(p + 1e-30) / log2 K per class (B, K, H, W). Source: ADVENT, eq. 5."""
    probability = logits_BKHW.float().softmax(1)
    return -probability * torch.log2(probability + 1e-30) / math.log2(logits_BKHW.shape[1])


def entropy(logits_BKHW: Tensor) -> Tensor:
    """Mean over B H W of the normalised entropy, in 0..1. Source: ADVENT, eq. 3."""
    return self_information(logits_BKHW).sum(1).mean()


def domain_loss(scores: Tensor, domain: float, kind: Literal["bce", "least_squares"] = "bce") -> Tensor:
    """How far a discriminator's scores are from naming ``domain`` (0 source, 1 target); mean over all scores."""
    wanted = torch.full_like(scores, domain)
    if kind == "bce":
        return F.binary_cross_entropy_with_logits(scores, wanted)
    return F.mse_loss(scores, wanted)


def fooling_loss(student_scores: Tensor) -> Tensor:
    """The loss of a net from its critic: minus the mean of all scores."""
    return -student_scores.mean()


def critic_loss(
    student_scores: Tensor, teacher_scores: Tensor, kind: Literal["hinge", "wasserstein"] = "hinge"
) -> Tensor:
    """How badly a critic scores the teacher above the student; mean over all scores.

    ``hinge``: mean relu(1 - teacher) + mean relu(1 + student); ``wasserstein``: mean student - mean teacher.
    Source: structured knowledge distillation (CVPR 2019), holistic term, as in CIRKD.
    """
    if kind == "hinge":
        return F.relu(1.0 - teacher_scores).mean() + F.relu(1.0 + student_scores).mean()
    return student_scores.mean() - teacher_scores.mean()


def gradient_penalty(
    critic: Callable[[Tensor], Tensor], student_BKhw: Tensor, teacher_BKhw: Tensor, alpha_B111: Tensor
) -> Tensor:
    """Mean over images of (the length of the critic's gradient at alpha teacher + (1 - alpha) student - 1)^2.

    ``alpha``: a number in 0..1 per image. Source: WGAN-GP (2017), as in CIRKD.
    """
    between = (alpha_B111 * teacher_BKhw.detach() + (1.0 - alpha_B111) * student_BKhw.detach()).requires_grad_()
    with torch.enable_grad():
        (slope,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    length_B: Tensor = torch.linalg.vector_norm(slope.flatten(1), dim=1)
    return (length_B - 1.0).square().mean()
