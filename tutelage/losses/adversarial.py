"""Output-space adversarial losses and entropy minimisation (AdaptSegNet, ADVENT)."""

# Legend: B batch, K classes, H W pixels.

from __future__ import annotations

import math
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
