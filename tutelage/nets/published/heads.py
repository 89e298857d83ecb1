"""Heads of the published nets (section 2.2 of CIRKD's specification): from levels to the distilled feature f.

Bilinear resizing aligns corners only in PSPNet. All but SegFormer have global pooling before a BatchNorm, so that
training needs at least two images per batch.

Dimensions: B batch, C channels, D embedding, h w a level's grid.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tutelage.nets.published.layers import conv_norm_relu
from tutelage.nets.settings import NetSettings

_BINS = (1, 2, 3, 6)


class Head(nn.Module):
    """A decoder: ``channels`` is D, ``stride`` the embedding's in pixels."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.channels = channels
        self.stride = stride

    def forward(self, levels: tuple[Tensor, ...], tokens: tuple[Tensor, ...]) -> Tensor:
        """The distilled feature (B, D, H / stride, W / stride) of all levels (B, C, h, w) of an image (H, W)."""
        raise NotImplementedError


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling at rates 12, 24, 36, all branches ``width`` wide."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.point = conv_norm_relu(channels, width, 1)
        self.atrous = nn.ModuleList([conv_norm_relu(channels, width, 3, dilation=rate) for rate in (12, 24, 36)])
        self.whole = nn.Sequential(nn.AdaptiveAvgPool2d(1), *conv_norm_relu(channels, width, 1))
        self.project = nn.Sequential(*conv_norm_relu(5 * width, width, 1), nn.Dropout(0.5))

    def forward(self, x_BChw: Tensor) -> Tensor:
        """(B, width, h, w)."""
        # A bilinear map of one pixel is that pixel everywhere.
        whole = self.whole(x_BChw).expand(-1, -1, *x_BChw.shape[-2:])
        branches = [self.point(x_BChw), *(branch(x_BChw) for branch in self.atrous), whole]
        projected: Tensor = self.project(torch.cat(branches, dim=1))
        return projected


class DeepLabV3(Head):
    """ASPP, then a 3x3 convolution."""

    def __init__(self, channels: int, width: int, dropout: float) -> None:
        super().__init__(width, 8)
        self.aspp = ASPP(channels, width)
        self.bottleneck = nn.Sequential(*conv_norm_relu(width, width, 3), nn.Dropout(dropout))

    def forward(self, levels: tuple[Tensor, ...], tokens: tuple[Tensor, ...]) -> Tensor:
        """f of the last level."""
        feature_BDhw: Tensor = self.bottleneck(self.aspp(levels[-1]))
        return feature_BDhw


class PSPNet(Head):
    """Means over 1, 2, 3 and 6 bins per side, each to a quarter of the channels, with the level; a 3x3 convolution."""

    def __init__(self, channels: int, width: int, dropout: float) -> None:
        super().__init__(width, 8)
        self.pyramid = nn.ModuleList([conv_norm_relu(channels, channels // 4, 1) for _ in _BINS])
        fused = channels + len(_BINS) * (channels // 4)
        self.bottleneck = nn.Sequential(*conv_norm_relu(fused, width, 3), nn.Dropout(dropout))

    def forward(self, levels: tuple[Tensor, ...], tokens: tuple[Tensor, ...]) -> Tensor:
        """f of the last level."""
        x_BChw = levels[-1]
        size = x_BChw.shape[-2:]
        means = [conv(F.adaptive_avg_pool2d(x_BChw, bins)) for conv, bins in zip(self.pyramid, _BINS, strict=True)]
        means = [F.interpolate(mean, size=size, mode="bilinear", align_corners=True) for mean in means]
        feature_BDhw: Tensor = self.bottleneck(torch.cat([x_BChw, *means], dim=1))
        return feature_BDhw


class UPerNet(Head):
    """The "lite" UPerNet: bins on stage 4, laterals from stages 1 to 3, fused at stride 4, output at stride 8.

    The bins are resized before their 1x1 convolutions, 512 wide for any ``width``.
    """

    def __init__(self, channels: tuple[int, ...], width: int, dropout: float) -> None:
        super().__init__(width, 8)
        *finer, last = channels
        self.pyramid = nn.ModuleList([conv_norm_relu(last, 512, 1) for _ in _BINS])
        self.fuse_pyramid = conv_norm_relu(last + len(_BINS) * 512, width, 3)
        self.lateral = nn.ModuleList([conv_norm_relu(one, width, 1) for one in finer])
        self.smooth = nn.ModuleList([conv_norm_relu(width, width, 3) for _ in finer])
        self.bottleneck = nn.Sequential(*conv_norm_relu(len(channels) * width, width, 3, stride=2), nn.Dropout(dropout))

    def forward(self, levels: tuple[Tensor, ...], tokens: tuple[Tensor, ...]) -> Tensor:
        """f of all levels."""
        *finer, last = levels
        means = [
            conv(_resized(F.adaptive_avg_pool2d(last, bins), last))
            for conv, bins in zip(self.pyramid, _BINS, strict=True)
        ]
        top = self.fuse_pyramid(torch.cat([last, *means], dim=1))
        merged = [top]
        for level, lateral, smooth in zip(reversed(finer), reversed(self.lateral), reversed(self.smooth), strict=True):
            side = lateral(level)
            top = side + _resized(top, side)
            merged.insert(0, smooth(top))
        feature_BDhw: Tensor = self.bottleneck(torch.cat([_resized(level, merged[0]) for level in merged], dim=1))
        return feature_BDhw


class SegFormer(Head):
    """Every stage to ``width`` channels at stride 4, concatenated from the last to the first, one 1x1 convolution."""

    def __init__(self, channels: tuple[int, ...], width: int, dropout: float) -> None:
        super().__init__(width, 4)
        self.embed = nn.ModuleList([nn.Linear(one, width) for one in channels])
        fuse = nn.Conv2d(len(channels) * width, width, 1)
        self.fuse = nn.Sequential(fuse, nn.BatchNorm2d(width), nn.ReLU(inplace=True), nn.Dropout(dropout))

    def forward(self, levels: tuple[Tensor, ...], tokens: tuple[Tensor, ...]) -> Tensor:
        """f of all levels."""
        embedded = [
            _resized(embed(level.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), levels[0])
            for level, embed in zip(levels, self.embed, strict=True)
        ]
        feature_BDhw: Tensor = self.fuse(torch.cat(embedded[::-1], dim=1))
        return feature_BDhw


def make_head(settings: NetSettings, channels: tuple[int, ...]) -> Head:
    """The head of ``settings``, for levels of ``channels``; convolutions keep torch's initialisation."""
    width = settings.channels

    def dropout(own: float) -> float:
        return own if settings.dropout is None else settings.dropout

    match settings.decoder:
        case "deeplabv3":
            return DeepLabV3(channels[-1], width, dropout(0.1))
        case "pspnet":
            return PSPNet(channels[-1], width, dropout(0.1))
        case "upernet":
            return UPerNet(channels, width, dropout(0.0))
        case _:
            return SegFormer(channels, width, dropout(0.0))


def _resized(x_BChw: Tensor, like: Tensor) -> Tensor:
    """Bilinear, without corner alignment, to the grid of another map."""
    return F.interpolate(x_BChw, size=like.shape[-2:], mode="bilinear", align_corners=False)
