"""LR-ASPP: the light decoder of MobileNetV3 (Howard et al. 2019, section 6.4).

The paper sums two 1x1 classifiers, one on the gated high-level branch and one on low-level features of stride 8.
A sum of two 1x1 convolutions is one 1x1 convolution of the concatenation, so the concatenation is the embedding and
the net's ordinary classifier does the rest. The gate pools over the whole image, where the paper uses a 49x49
window, which depends on the image size.

Dimensions: B batch, C channels, h w the stride-8 grid.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class LRASPP(nn.Module):
    """Gated high-level branch and low-level features, concatenated on the stride-8 grid.

    ``high`` and ``low`` are the channels of the encoder's last level and of its first level of stride 8; ``width``
    is that of the high branch (128 in the paper). Low-level features wider than ``width // 2`` are projected to
    that many channels, so that an encoder with a wide stride-8 level does not make the embedding large.
    """

    def __init__(self, high: int, low: int, width: int = 128) -> None:
        super().__init__()
        self.branch = nn.Sequential(nn.Conv2d(high, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True))
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(high, width, 1, bias=False), nn.Sigmoid())
        kept = min(low, width // 2)
        self.low: nn.Module = nn.Identity()
        if kept < low:
            self.low = nn.Sequential(nn.Conv2d(low, kept, 1, bias=False), nn.BatchNorm2d(kept), nn.ReLU(inplace=True))
        self.channels = width + kept

    def forward(self, high_BCHW: Tensor, low_BChw: Tensor) -> Tensor:
        """Embedding (B, width + low, h, w) of high-level (B, C, H, W) and low-level (B, C, h, w) features."""
        gated = self.branch(high_BCHW) * self.gate(high_BCHW)
        gated_BChw = F.interpolate(gated, size=low_BChw.shape[-2:], mode="bilinear", align_corners=False)
        return torch.cat([gated_BChw, self.low(low_BChw)], dim=1)
