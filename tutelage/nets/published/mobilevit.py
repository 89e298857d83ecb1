"""MobileViT-XXS at output stride 8 (section 2.1 of CIRKD's specification).

Dimensions: B batch, C channels, H W a grid, P the 4 places in a 2x2 patch, N patches.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tutelage.nets.published.layers import ConvNorm, init_convolutions, named

_HEADS = 4


class MobileViTInvertedResidual(nn.Module):
    """1x1 to twice the channels, depthwise 3x3, linear 1x1; added to its input where shapes allow."""

    def __init__(self, inner: int, outer: int, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        hidden = 2 * inner
        self.conv = nn.Sequential(
            ConvNorm(inner, hidden, 1, nn.SiLU),
            ConvNorm(hidden, hidden, 3, nn.SiLU, stride=stride, dilation=dilation, groups=hidden),
            ConvNorm(hidden, outer, 1),
        )
        self.adds = stride == 1 and inner == outer

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, outer, H / stride, W / stride), rounded up."""
        residual: Tensor = self.conv(x_BCHW)
        return x_BCHW + residual if self.adds else residual


class MobileViTAttention(nn.Module):
    """Self-attention with 4 heads; not torch's module, whose fast path hides its cost from the counter."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_proj = nn.Linear(width, 3 * width)
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj.weight)
        nn.init.zeros_(self.in_proj.bias)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x_BNC: Tensor) -> Tensor:
        """(B, N, C) of tokens (B, N, C)."""
        batch, tokens, width = x_BNC.shape
        queries, keys, values = (
            self.in_proj(x_BNC).reshape(batch, tokens, 3, _HEADS, width // _HEADS).permute(2, 0, 3, 1, 4)
        )
        attended = F.scaled_dot_product_attention(queries, keys, values)
        projected: Tensor = self.out_proj(attended.transpose(1, 2).reshape(batch, tokens, width))
        return projected


class TransformerLayer(nn.Module):
    """Attention and two linear layers with SiLU, each after a layer norm and added to its input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ln1 = nn.LayerNorm(width)
        self.attn = named(attn=MobileViTAttention(width))
        self.ln2 = nn.LayerNorm(width)
        hidden = nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU())
        self.ffn = named(layers=nn.Sequential(hidden, nn.Linear(2 * width, width)))

    def forward(self, x_BNC: Tensor) -> Tensor:
        """(B, N, C) of tokens (B, N, C)."""
        x_BNC = x_BNC + self.attn(self.ln1(x_BNC))
        mixed: Tensor = x_BNC + self.ffn(self.ln2(x_BNC))
        return mixed


class MobileViTBlock(nn.Module):
    """Local convolutions, attention among the pixels at one position of every 2x2 patch, fusion with the input."""

    def __init__(self, channels: int, width: int, depth: int) -> None:
        super().__init__()
        pointwise = named(conv=nn.Conv2d(channels, width, 1, bias=False))
        self.local_rep = nn.Sequential(ConvNorm(channels, channels, 3, nn.SiLU), pointwise)
        self.global_rep = nn.Sequential(*(TransformerLayer(width) for _ in range(depth)), nn.LayerNorm(width))
        self.conv_proj = ConvNorm(width, channels, 1)
        self.conv_fusion = ConvNorm(2 * channels, channels, 3, nn.SiLU)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) of a map of any size."""
        within = self.local_rep(x_BCHW)
        height, width = within.shape[-2:]
        rows, columns = (height + 1) // 2, (width + 1) // 2
        within = _resized(within, (2 * rows, 2 * columns))
        batch, channels = within.shape[:2]
        patches = within.reshape(batch, channels, rows, 2, columns, 2).permute(0, 3, 5, 2, 4, 1)
        mixed = self.global_rep(patches.reshape(batch * 4, rows * columns, channels))
        folded = mixed.reshape(batch, 2, 2, rows, columns, channels).permute(0, 5, 3, 1, 4, 2)
        across = _resized(folded.reshape(batch, channels, 2 * rows, 2 * columns), (height, width))
        fused: Tensor = self.conv_fusion(torch.cat([x_BCHW, self.conv_proj(across)], dim=1))
        return fused


def _resized(x_BCHW: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize bilinearly without corner alignment; no operation for an equal size."""
    # In an exported graph the size is unknown, so it always resizes; to an equal size that changes nothing.
    if not torch.compiler.is_exporting() and tuple(x_BCHW.shape[-2:]) == size:
        return x_BCHW
    return F.interpolate(x_BCHW, size=size, mode="bilinear", align_corners=False)


class MobileViTXXS(nn.Module):
    """Stem, five stages, the last three with a MobileViT block, 1x1 to 320 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvNorm(3, 16, 3, nn.SiLU, stride=2)
        self.layers = nn.ModuleList(
            [
                nn.Sequential(MobileViTInvertedResidual(16, 16)),
                nn.Sequential(
                    MobileViTInvertedResidual(16, 24, 2),
                    MobileViTInvertedResidual(24, 24),
                    MobileViTInvertedResidual(24, 24),
                ),
                nn.Sequential(MobileViTInvertedResidual(24, 48, 2), MobileViTBlock(48, 64, 2)),
                nn.Sequential(MobileViTInvertedResidual(48, 64, dilation=2), MobileViTBlock(64, 80, 4)),
                nn.Sequential(MobileViTInvertedResidual(64, 80, dilation=4), MobileViTBlock(80, 96, 3)),
            ]
        )
        self.conv_1x1_exp = ConvNorm(80, 320, 1, nn.SiLU)
        init_convolutions(self)

    def forward(self, image_B3HW: Tensor) -> list[Tensor]:
        """The outputs of stages 2, 3 and 4 and of the last convolution, at strides 4, 8, 8, 8."""
        x, levels = self.stem(image_B3HW), []
        for stage in self.layers:
            x = stage(x)
            levels.append(x)
        return [*levels[1:4], self.conv_1x1_exp(x)]
