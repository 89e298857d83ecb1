"""ProDA's head: an atrous pyramid with group norms, with channel attention before fusion.

Dimensions: B batch, C channels, D embedding, h w a level's grid.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_RATES = (6, 12, 18, 24)
_GROUPS = 32
_REDUCTION = 16


class PyramidAttention(nn.Module):
    """Five branches (1x1, and 3x3 at rates 6, 12, 18, 24), squeeze-excite over all of them, a 3x3 convolution.

    Convolutions have a bias and are drawn from N(0, 0.01); each is followed by a group norm, the branches by ReLU. The
    embedding is signed; dropout is per channel. ``extra_norm``: a BatchNorm of the level first, as in ProDA for
    encoders trained by SimCLRv2. Source: ProDA (CVPR 2021), its code.
    """

    def __init__(self, channels: int, width: int, stride: int, dropout: float = 0.1, extra_norm: bool = False) -> None:
        """``width``: D, a multiple of 32; ``stride``: the level's in pixels."""
        super().__init__()
        self.channels, self.stride = width, stride
        self.norm = nn.BatchNorm2d(channels) if extra_norm else nn.Identity()
        kernels = [(1, 0, 1), *((3, rate, rate) for rate in _RATES)]
        self.branches = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels, width, kernel, padding=padding, dilation=dilation),
                nn.GroupNorm(_GROUPS, width),
                nn.ReLU(inplace=True),
            )
            for kernel, padding, dilation in kernels
        )
        joined = width * len(self.branches)
        self.squeeze = nn.Sequential(
            nn.Linear(joined, joined // _REDUCTION), nn.ReLU(inplace=True), nn.Linear(joined // _REDUCTION, joined)
        )
        self.bottleneck = nn.Sequential(nn.Conv2d(joined, width, 3, padding=1), nn.GroupNorm(_GROUPS, width))
        self.dropout = nn.Dropout2d(dropout)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)

    def forward(self, levels: tuple[Tensor, ...], tokens: tuple[Tensor, ...]) -> Tensor:
        """Embedding (B, D, h, w) of the last of all levels (B, C, h, w)."""
        level_BChw = self.norm(levels[-1])
        joined = torch.cat([branch(level_BChw) for branch in self.branches], dim=1)
        share_BC = self.squeeze(joined.mean((2, 3))).sigmoid()
        embedding_BDhw: Tensor = self.dropout(self.bottleneck(joined * share_BC[..., None, None]))
        return embedding_BDhw
