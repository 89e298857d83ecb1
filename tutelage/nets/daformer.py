"""DAFormer's decoder: all levels on one grid, fused by depthwise separable atrous convolutions.

Each level is projected linearly to ``width`` channels and resized to the finest grid; a 1x1 and three depthwise
separable 3x3 convolutions (rates 6, 12, 18) of their concatenation have ``width`` channels each, and a 3x3
convolution fuses them. No global pooling. Source: DAFormer (CVPR 2022), section 3.2 and its code.

Dimensions: B batch, C channels, D embedding, h w a level's grid.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tutelage.nets.published.layers import conv_norm_relu

RATES = (6, 12, 18)


class ContextFusion(nn.Module):
    """The decoder on the last four levels of a pyramid (B, C, h, w), finest first.

    ``channels`` is D, ``stride`` the embedding's: that of the finest of the four.
    """

    def __init__(self, channels: Sequence[int], strides: Sequence[int], width: int, dropout: float) -> None:
        super().__init__()
        self.embed = nn.ModuleList([nn.Conv2d(one, width, 1) for one in channels[-4:]])
        fused = width * len(self.embed)
        self.point = conv_norm_relu(fused, width, 1)
        self.atrous = nn.ModuleList([_separable(fused, width, rate) for rate in RATES])
        self.join = conv_norm_relu((len(RATES) + 1) * width, width, 3)
        self.dropout = nn.Dropout2d(dropout)
        self.channels = width
        self.stride = strides[-len(self.embed)]

    def forward(self, levels: tuple[Tensor, ...], tokens: tuple[Tensor, ...]) -> Tensor:
        """Embedding (B, D, H / stride, W / stride) of all levels (B, C, h, w) of an image (H, W)."""
        levels = levels[-len(self.embed) :]
        size = levels[0].shape[-2:]
        embedded = [
            F.interpolate(embed(level), size=size, mode="bilinear", align_corners=False)
            for level, embed in zip(levels, self.embed, strict=True)
        ]
        x_BChw = torch.cat(embedded, dim=1)
        branches = [self.point(x_BChw), *(branch(x_BChw) for branch in self.atrous)]
        embedding_BDhw: Tensor = self.dropout(self.join(torch.cat(branches, dim=1)))
        return embedding_BDhw


def _separable(inner: int, outer: int, rate: int) -> nn.Sequential:
    """A dilated 3x3 convolution of each channel, then 1x1, each with BatchNorm and ReLU."""
    depthwise = nn.Conv2d(inner, inner, 3, padding=rate, dilation=rate, groups=inner, bias=False)
    return nn.Sequential(depthwise, nn.BatchNorm2d(inner), nn.ReLU(inplace=True), *conv_norm_relu(inner, outer, 1))
