"""TriKD's dual-frequency decoder: channel gates from high or low frequencies, pyramid pooling, a top-down path.

After arXiv 2309.12557 and its released code. Only the gates use frequencies: a channel's weight is a function of the
mean magnitude of its low-pass or high-pass part; the features themselves are not filtered. Two behaviours of the
released code are optional here: its Gaussian is centred one bin off the zero frequency for even sizes
(``published``), so that the filtered map is complex and needs complex transforms, while a correctly centred Gaussian
(``centred``) keeps it real; and its neck outputs a vision transformer's levels in reverse order.

All resizing aligns corners. The 1x1 pooling branch normalises one value per image, so that training needs at least
two images per batch.

Dimensions: B batch, C channels, D embedding, H W a map, h w a level's grid.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tutelage.nets.devices import without_autocast
from tutelage.nets.settings import Centre, FrequencySettings, Neck

Band = Literal["low", "high"]

# Band of the gates of levels 0, 1 and 2; level 3 is pooled instead.
BANDS: tuple[Band, ...] = ("high", "high", "low")

POOL_SIDES = (1, 2, 3, 6)

# Scale of each level relative to the tokens' grid, finest first or as in the released code.
NECK_SCALES: dict[Neck, tuple[float, ...]] = {"corrected": (4, 2, 1, 0.5), "published": (0.5, 1, 2, 4)}

NECK_WIDTH = 448

_ALL = slice(None)


# Bands


def _distances(
    side: int, bins: slice, centre: Centre, cutoff: float, relative: bool, device: torch.device | str | None
) -> Tensor:
    """Signed distances of an axis' bins, from the zero frequency on, from the centre in units of the cut-off."""
    bin_number = torch.arange(side, device=device)[bins]
    frequency = (bin_number + side // 2) % side - side // 2
    if centre == "published":
        frequency = frequency + (1 - side % 2)
    return frequency / (cutoff * side / 2 if relative else cutoff)


def _mask(rows: Tensor, columns: Tensor, band: Band) -> Tensor:
    exponent = -(rows.square()[:, None] + columns.square()) / 2
    return torch.exp(exponent) if band == "low" else -torch.expm1(exponent)


class _RealFilter(torch.autograd.Function):
    """A map (B, C, H, W) filtered by a centred mask, given on the half spectrum (H, W // 2 + 1).

    Such a filter is self-adjoint: its gradient uses the same filter. torch's own backward of a half spectrum uses the
    full complex one.
    """

    @staticmethod
    def forward(ctx: Any, map_BCHW: Tensor, mask_HX: Tensor) -> Tensor:
        ctx.save_for_backward(mask_HX)
        filtered_BCHW: Tensor = torch.fft.irfft2(torch.fft.rfft2(map_BCHW).mul_(mask_HX), s=map_BCHW.shape[-2:])
        return filtered_BCHW

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (mask_HX,) = ctx.saved_tensors
        return _filter(gradients[0], mask_HX), None


def _filter(map_BCHW: Tensor, mask_HX: Tensor) -> Tensor:
    filtered_BCHW: Tensor = _RealFilter.apply(map_BCHW, mask_HX)  # type: ignore[no-untyped-call]
    return filtered_BCHW


def band_mean(
    map_BCHW: Tensor, band: Band, *, centre: Centre = "centred", cutoff: float = 10.0, relative: bool = False
) -> Tensor:
    """Mean magnitude (B, C) of each channel's low-pass or high-pass part, |IFFT2(FFT2(x) mask)|, at least in float32.

    The mask of ``low`` is exp(-d^2 / (2 cutoff^2)) at a distance of d bins from the centre; of ``high``: 1 minus that.
    ``cutoff`` counts bins, or with ``relative`` half sides (the highest frequency of each axis is 1). The centre is the
    zero frequency, or ``published``: one bin below it on axes of even size.
    """
    part_BCHW = _part(map_BCHW, band, centre, cutoff, relative)
    if part_BCHW.is_complex():  # torch's complex norm is slow
        part_BCHW = part_BCHW.abs()
    sum_BC: Tensor = torch.linalg.vector_norm(part_BCHW, ord=1, dim=(-2, -1))
    return sum_BC / (part_BCHW.shape[-2] * part_BCHW.shape[-1])


def _part(map_BCHW: Tensor, band: Band, centre: Centre, cutoff: float, relative: bool) -> Tensor:
    """The band: real for a centred mask, which has equal weights for a frequency and its negative; else complex."""
    with without_autocast(map_BCHW.device):
        map_BCHW = map_BCHW.to(torch.promote_types(map_BCHW.dtype, torch.float32))
        (height, width), device = map_BCHW.shape[-2:], map_BCHW.device
        rows = _distances(height, _ALL, centre, cutoff, relative, device)
        if centre == "published":
            mask_HW = _mask(rows, _distances(width, _ALL, centre, cutoff, relative, device), band)
            part_BCHW: Tensor = torch.fft.ifft2(torch.fft.fft2(map_BCHW) * mask_HW)
        else:
            half = slice(width // 2 + 1)
            mask_HX = _mask(rows, _distances(width, half, centre, cutoff, relative, device), band)
            part_BCHW = _filter(map_BCHW, mask_HX)
        return part_BCHW


class FrequencyChannelAttention(nn.Module):
    """Channels weighted by their content in one band, then projected: W_p ((1 + a) x), a = sigmoid(W_a band_mean(x)).

    ``residual=False`` omits the 1 (a variant in TriKD's code). No norm and no activation.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int,
        band: Band,
        settings: FrequencySettings | None = None,
        *,
        residual: bool = True,
    ) -> None:
        super().__init__()
        self.band: Band = band
        self.settings = settings or FrequencySettings()
        self.residual = residual
        self.attn = nn.Conv2d(channels, channels, 1, bias=False)
        self.proj = nn.Conv2d(channels, out_channels, 1, bias=False)
        for layer in (self.attn, self.proj):
            nn.init.kaiming_normal_(layer.weight, a=1)

    def gate(self, map_BCHW: Tensor) -> Tensor:
        """Weights (B, C, 1, 1) in 0..1 of the channels of ``map_BCHW``, at least in float32."""
        settings = self.settings
        with without_autocast(map_BCHW.device):
            mean_BC = band_mean(
                map_BCHW,
                self.band,
                centre=settings.centre,
                cutoff=settings.bound,
                relative=settings.relative,
            )
            return torch.sigmoid(F.conv2d(mean_BC[..., None, None], self.attn.weight.to(mean_BC.dtype)))

    def forward(self, map_BCHW: Tensor) -> Tensor:
        """Projected map (B, O, H, W)."""
        gate_BC11 = self.gate(map_BCHW).to(map_BCHW.dtype)
        weighted_BCHW = map_BCHW * ((1 + gate_BC11) if self.residual else gate_BC11)
        projected_BOHW: Tensor = self.proj(weighted_BCHW)
        return projected_BOHW


# The decoder


class DualFrequencyDecoder(nn.Module):
    """Fuse four levels, finest first, to an embedding of ``width`` channels on the finest grid (TriKD's decoder).

    Levels 0 and 1 have gates on high frequencies, level 2 on low ones, level 3 has pyramid pooling; then follow a
    top-down path, a 3x3 convolution per level, and one of all levels.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: Sequence[int],
        width: int = 256,
        settings: FrequencySettings | None = None,
        pool_sides: Sequence[int] = POOL_SIDES,
    ) -> None:
        super().__init__()
        *fine, last = out_channels
        self.lateral = nn.ModuleList(
            FrequencyChannelAttention(given, kept, band, settings)
            for given, kept, band in zip(in_channels[:-1], fine, BANDS, strict=True)
        )
        self.pool_sides = tuple(pool_sides)
        self.ppm = nn.ModuleList(conv_norm_relu(in_channels[-1], last, 1) for _ in pool_sides)
        self.ppm_fuse = conv_norm_relu(in_channels[-1] + len(pool_sides) * last, last, 3)
        self.topdown = nn.ModuleList(
            nn.Conv2d(coarse, kept, 1) for kept, coarse in zip(fine, out_channels[1:], strict=True)
        )
        self.smooth = nn.ModuleList(conv_norm_relu(kept, kept, 3) for kept in fine)
        self.fuse = conv_norm_relu(sum(out_channels), width, 3)
        self.channels = width

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Embedding (B, D, h, w) on the grid of the first of four ``levels`` (B, C, h, w)."""
        refined = [lateral(level) for lateral, level in zip(self.lateral, levels[:-1], strict=True)]
        refined.append(self._pooled(levels[-1]))
        for finer, topdown in reversed(list(enumerate(self.topdown))):
            refined[finer] = refined[finer] + resize(topdown(refined[finer + 1]), _size(refined[finer]))
        smoothed = [smooth(level) for smooth, level in zip(self.smooth, refined[:-1], strict=True)]
        size = _size(smoothed[0])
        merged = torch.cat([resize(level, size) for level in (*smoothed, refined[-1])], dim=1)
        embedding_BDhw: Tensor = self.fuse(merged)
        return embedding_BDhw

    def _pooled(self, level_BChw: Tensor) -> Tensor:
        """Pyramid pooling (Zhao et al. 2017) of the coarsest level."""
        means = [
            resize(branch(F.adaptive_avg_pool2d(level_BChw, side)), _size(level_BChw))
            for side, branch in zip(self.pool_sides, self.ppm, strict=True)
        ]
        fused_BOhw: Tensor = self.ppm_fuse(torch.cat([level_BChw, *means], dim=1))
        return fused_BOhw


class MultiLevelNeck(nn.Module):
    """A pyramid of four levels from four maps of one size (a vision transformer's), each resized by its factor."""

    def __init__(self, in_channels: Sequence[int], channels: int, scales: Sequence[float]) -> None:
        super().__init__()
        self.scales = tuple(scales)
        self.lateral = nn.ModuleList(conv_norm_relu(given, channels, 1) for given in in_channels)
        self.smooth = nn.ModuleList(conv_norm_relu(channels, channels, 3) for _ in scales)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Levels (B, channels, floor(scale * h), floor(scale * w)) of ``maps`` (B, C, h, w), in their order."""
        levels = []
        for map_BChw, lateral, smooth, scale in zip(maps, self.lateral, self.smooth, self.scales, strict=True):
            height, width = _size(map_BChw)
            size = (math.floor(height * scale), math.floor(width * scale))
            levels.append(smooth(resize(lateral(map_BChw), size)))
        return levels


def conv_norm_relu(in_channels: int, out_channels: int, kernel: int) -> nn.Sequential:
    """Convolution without bias on the same grid, BatchNorm, ReLU."""
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=False),
            bn=nn.BatchNorm2d(out_channels),
            relu=nn.ReLU(inplace=True),
        )
    )


def resize(map_BChw: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize bilinearly with aligned corners."""
    return F.interpolate(map_BChw, size=size, mode="bilinear", align_corners=True)


def _size(map_BChw: Tensor) -> tuple[int, int]:
    return map_BChw.shape[-2], map_BChw.shape[-1]
