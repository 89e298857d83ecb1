"""MobileNetV2 at output stride 8, without the 1280 layer (section 2.1 of CIRKD's specification)."""

from __future__ import annotations

from torch import Tensor, nn

from tutelage.nets.published.layers import init_convolutions

# Expansion, channels, blocks, stride, dilation of each stage; dilation replaces the stride of 64 and 160 channels.
_STAGES = (
    (1, 16, 1, 1, 1),
    (6, 24, 2, 2, 1),
    (6, 32, 3, 2, 1),
    (6, 64, 4, 1, 2),
    (6, 96, 3, 1, 2),
    (6, 160, 3, 1, 4),
    (6, 320, 1, 1, 4),
)
_LOST_STRIDE = (64, 160)
_LEVELS = (3, 6, 13, 17)


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise 3x3, linear 1x1; added to its input where shapes allow."""

    def __init__(self, inner: int, outer: int, expansion: int, stride: int, dilation: int) -> None:
        super().__init__()
        hidden = inner * expansion
        expand = [nn.Conv2d(inner, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU6(inplace=True)]
        self.conv = nn.Sequential(
            *(expand if expansion > 1 else ()),
            nn.Conv2d(hidden, hidden, 3, stride, dilation, dilation, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU6(inplace=True),
            nn.Conv2d(hidden, outer, 1, bias=False),
            nn.BatchNorm2d(outer),
        )
        self.adds = stride == 1 and inner == outer

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, outer, H / stride, W / stride), rounded up."""
        residual: Tensor = self.conv(x_BCHW)
        return x_BCHW + residual if self.adds else residual


class MobileNetV2(nn.Module):
    """Stem and 17 blocks of width 1."""

    def __init__(self) -> None:
        super().__init__()
        stem = (nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU6(inplace=True))
        self.features = nn.ModuleList([nn.Sequential(*stem)])
        width = 32
        for expansion, channels, blocks, stride, dilation in _STAGES:
            for block in range(blocks):
                # The first block of a dilated stage has half the dilation of the next ones.
                rate = dilation // 2 if block == 0 and channels in _LOST_STRIDE else dilation
                self.features.append(InvertedResidual(width, channels, expansion, stride if block == 0 else 1, rate))
                width = channels
        init_convolutions(self)

    def forward(self, image_B3HW: Tensor) -> list[Tensor]:
        """The outputs of blocks 3, 6, 13 and 17, at strides 4, 8, 8, 8."""
        x, levels = image_B3HW, []
        for number, block in enumerate(self.features):
            x = block(x)
            if number in _LEVELS:
                levels.append(x)
        return levels
