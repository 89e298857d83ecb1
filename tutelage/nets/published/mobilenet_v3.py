"""MobileNetV3 small and large at output stride 8 (section 2.1 of CIRKD's specification).

The stem and the blocks of original stride 2 pad as TensorFlow does, by the input's size; without a stride that is the
usual symmetric padding. The block whose stride dilation replaces already has the full rate.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

import tutelage.torchvision_operators  # noqa: F401  (before timm)
from tutelage.nets.published.layers import ConvNorm, init_convolutions, named

from timm.layers import make_divisible  # isort: skip


class BlockSpec(NamedTuple):
    """One block: kernel, expanded and outer channels, squeeze-excite, hard-swish (or ReLU), stride, dilation."""

    kernel: int
    expanded: int
    outer: int
    excites: bool
    swish: bool
    stride: int = 1
    dilation: int = 1


_SMALL = (
    BlockSpec(3, 16, 16, True, False, stride=2),
    BlockSpec(3, 72, 24, False, False, stride=2),
    BlockSpec(3, 88, 24, False, False),
    BlockSpec(5, 96, 40, True, True, dilation=2),
    BlockSpec(5, 240, 40, True, True, dilation=2),
    BlockSpec(5, 240, 40, True, True, dilation=2),
    BlockSpec(5, 120, 48, True, True, dilation=2),
    BlockSpec(5, 144, 48, True, True, dilation=2),
    BlockSpec(5, 288, 96, True, True, dilation=4),
    BlockSpec(5, 576, 96, True, True, dilation=4),
    BlockSpec(5, 576, 96, True, True, dilation=4),
)
_LARGE = (
    BlockSpec(3, 16, 16, False, False),
    BlockSpec(3, 64, 24, False, False, stride=2),
    BlockSpec(3, 72, 24, False, False),
    BlockSpec(5, 72, 40, True, False, stride=2),
    BlockSpec(5, 120, 40, True, False),
    BlockSpec(5, 120, 40, True, False),
    BlockSpec(3, 240, 80, False, True, dilation=2),
    BlockSpec(3, 200, 80, False, True, dilation=2),
    BlockSpec(3, 184, 80, False, True, dilation=2),
    BlockSpec(3, 184, 80, False, True, dilation=2),
    BlockSpec(3, 480, 112, True, True, dilation=2),
    BlockSpec(3, 672, 112, True, True, dilation=2),
    BlockSpec(5, 672, 160, True, True, dilation=4),
    BlockSpec(5, 960, 160, True, True, dilation=4),
    BlockSpec(5, 960, 160, True, True, dilation=4),
)


class SqueezeExcite(nn.Module):
    """Gate per channel: mean, 1x1 to a quarter, ReLU, 1x1, clamp((x + 3) / 6, 0, 1)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = make_divisible(channels // 4, 8)
        self.conv1 = named(conv=nn.Conv2d(channels, squeezed, 1))
        self.conv2 = named(conv=nn.Conv2d(squeezed, channels, 1))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """The map, gated."""
        squeezed = F.relu(self.conv1(F.adaptive_avg_pool2d(x_BCHW, 1)))
        return x_BCHW * F.hardsigmoid(self.conv2(squeezed))


class InvertedBottleneck(nn.Module):
    """1x1 expansion, depthwise convolution, squeeze-excite, linear 1x1; added to its input where shapes allow."""

    def __init__(self, inner: int, row: BlockSpec) -> None:
        super().__init__()
        activation = nn.Hardswish if row.swish else nn.ReLU
        self.expand_conv = nn.Identity() if inner == row.expanded else ConvNorm(inner, row.expanded, 1, activation)
        self.depthwise_conv = ConvNorm(
            row.expanded,
            row.expanded,
            row.kernel,
            activation,
            stride=row.stride,
            dilation=row.dilation,
            groups=row.expanded,
            same=row.stride == 2,
        )
        self.se = SqueezeExcite(row.expanded) if row.excites else nn.Identity()
        self.linear_conv = ConvNorm(row.expanded, row.outer, 1)
        self.adds = row.stride == 1 and inner == row.outer

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, outer, H / stride, W / stride), rounded up."""
        residual: Tensor = self.linear_conv(self.se(self.depthwise_conv(self.expand_conv(x_BCHW))))
        return x_BCHW + residual if self.adds else residual


class MobileNetV3(nn.Module):
    """Stem ``layer0``, blocks, and a last 1x1 convolution; ``levels`` are the output layers."""

    def __init__(self, size: str) -> None:
        super().__init__()
        rows, self.levels = (_SMALL, (1, 3, 8, 12)) if size == "small" else (_LARGE, (3, 6, 12, 16))
        self.layer0 = ConvNorm(3, 16, 3, nn.Hardswish, stride=2, same=True)
        width = 16
        for number, row in enumerate(rows, start=1):
            self.add_module(f"layer{number}", InvertedBottleneck(width, row))
            width = row.outer
        self.add_module(f"layer{len(rows) + 1}", ConvNorm(width, 6 * width, 1, nn.Hardswish))
        init_convolutions(self)

    def forward(self, image_B3HW: Tensor) -> list[Tensor]:
        """The outputs of four layers, at strides 4, 8, 8, 8."""
        x, levels = image_B3HW, []
        for number, layer in enumerate(self.children()):
            x = layer(x)
            if number in self.levels:
                levels.append(x)
        return levels
