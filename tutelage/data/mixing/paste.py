"""Pasting a partner's pixels into images, labels and confidences.

Legend: B batch, C channels, H W pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tutelage.data.settings import PartnerRule


def paste(own: Tensor, partner: Tensor, mask_BHW: Tensor) -> Tensor:
    """Values of ``partner`` where the mask is true, else of ``own``: (B, H, W) or (B, C, H, W); mask bool or 0/1."""
    mask = mask_BHW.bool()
    return torch.where(mask[:, None] if own.ndim == 4 else mask, partner, own)


def partners(values_B: Tensor, rule: PartnerRule = "next") -> Tensor:
    """The batch reordered so that index i holds the partner of image i."""
    return values_B.roll(-1, 0) if rule == "next" else values_B.flip(0)
