"""DeepLabV3+ of CAG-UDA, PBAL and BiSMAP (domain adaptation): multi-grid, and a decoder of their own.

Differences from DeepLabV3+ of 2018: no separable convolutions, one 3x3 convolution after the concatenation (BiSMAP:
two), no dropout in the pyramid but before the classifier, a last stage whose dilations increase from block to block,
and Kaiming initialisation of every new convolution. The embedding is the space of these methods' prototypes: at the
stride of the first level, non-negative, after dropout. All resizing aligns corners.

Dimensions: B batch, C channels, D embedding, h w a level's grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tutelage.nets.published.layers import conv_norm_relu

Flavour = Literal["pbal", "bismap"]

# The low level's channels, for an embedding of 256; other widths scale it.
_LOW_LEVEL = 48


def set_multigrid(encoder: Any) -> None:
    """Multiply the dilations of the last stage of a ResNet of bottlenecks by 1, 2 and 4, block by block, in place.

    At output stride 16 they become 2, 4 and 8. No tensor changes its name or shape. Source: DeepLabV3 (2017), 4.2.1.
    """
    base = encoder.layer4[-1].conv2.dilation[0]
    for block, factor in zip(encoder.layer4, (1, 2, 4), strict=True):
        block.conv2.dilation = block.conv2.padding = (base * factor, base * factor)


class PlainASPP(nn.Module):
    """Atrous spatial pyramid pooling: 1x1, a 3x3 for each of ``rates``, the whole image; without dropout."""

    def __init__(self, channels: int, width: int, rates: Sequence[int]) -> None:
        super().__init__()
        self.point = conv_norm_relu(channels, width, 1)
        self.atrous = nn.ModuleList([conv_norm_relu(channels, width, 3, dilation=rate) for rate in rates])
        self.whole = nn.Sequential(nn.AdaptiveAvgPool2d(1), *conv_norm_relu(channels, width, 1))
        self.project = conv_norm_relu((len(rates) + 2) * width, width, 1)

    def forward(self, x_BChw: Tensor) -> Tensor:
        """(B, width, h, w)."""
        # A bilinear map of one pixel is that pixel everywhere.
        whole = self.whole(x_BChw).expand(-1, -1, *x_BChw.shape[-2:])
        branches = [self.point(x_BChw), *(branch(x_BChw) for branch in self.atrous), whole]
        projected: Tensor = self.project(torch.cat(branches, dim=1))
        return projected


class Fusion(nn.Module):
    """The pyramid's map, upsampled, with a finer level of few channels; ``depth`` 3x3 convolutions; dropout."""

    def __init__(self, low_channels: int, width: int, depth: int, dropout: nn.Module) -> None:
        super().__init__()
        few = max(8, round(_LOW_LEVEL * width / 256))
        self.low_level = conv_norm_relu(low_channels, few, 1)
        widths = [width + few, *[width] * depth]
        layers = (layer for inner, outer in pairwise(widths) for layer in conv_norm_relu(inner, outer, 3))
        self.fuse = nn.Sequential(*layers)
        self.dropout = dropout

    def forward(self, x_BChw: Tensor, low_BChw: Tensor) -> Tensor:
        """(B, width, H, W) of a map of any grid and a level of the grid (H, W)."""
        x_BCHW = F.interpolate(x_BChw, size=low_BChw.shape[-2:], mode="bilinear", align_corners=True)
        fused: Tensor = self.dropout(self.fuse(torch.cat([x_BCHW, self.low_level(low_BChw)], dim=1)))
        return fused


class MultigridDeepLab(nn.Module):
    """The decoder of either method: BiSMAP's has a second 3x3 convolution and drops whole channels.

    ``channels`` and ``strides`` are the encoder's levels, finest first; the finest of stride 4 or more is the low one.
    """

    def __init__(
        self, flavour: Flavour, channels: Sequence[int], strides: Sequence[int], width: int, dropout: float
    ) -> None:
        super().__init__()
        self.low = next(index for index, stride in enumerate(strides) if stride >= 4)
        # Rates 6, 12, 18 belong to stride 16 and are doubled at 8 (Chen et al. 2017, section 4.1).
        rates = (6, 12, 18) if strides[-1] == 16 else (12, 24, 36)
        self.aspp = PlainASPP(channels[-1], width, rates)
        depth, drop = (1, nn.Dropout(dropout)) if flavour == "pbal" else (2, nn.Dropout2d(dropout))
        self.fusion = Fusion(channels[self.low], width, depth, drop)
        self.channels = width
        self.stride = strides[self.low]
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight)

    def forward(self, levels: tuple[Tensor, ...], tokens: tuple[Tensor, ...]) -> Tensor:
        """Embedding (B, D, H / stride, W / stride) of all levels (B, C, h, w) of an image (H, W)."""
        embedding_BDhw: Tensor = self.fusion(self.aspp(levels[-1]), levels[self.low])
        return embedding_BDhw
