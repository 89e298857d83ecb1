"""Layers that several published nets share.

Dimensions: B batch, C channels, H W a grid.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

import tutelage.torchvision_operators  # noqa: F401  (before timm)

from timm.layers import Conv2dSame  # isort: skip


class ConvNorm(nn.Module):
    """Convolution without bias, BatchNorm, activation; ``same`` pads as TensorFlow does, by the input's size."""

    def __init__(
        self,
        inner: int,
        outer: int,
        kernel: int,
        activation: type[nn.Module] = nn.Identity,
        *,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        same: bool = False,
    ) -> None:
        super().__init__()
        conv, padding = (Conv2dSame, 0) if same else (nn.Conv2d, dilation * (kernel - 1) // 2)
        self.conv = conv(inner, outer, kernel, stride, padding, dilation, groups, bias=False)
        self.bn = nn.BatchNorm2d(outer)
        self.activation = activation()

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, outer, H / stride, W / stride), rounded up, of a map (B, inner, H, W)."""
        activated: Tensor = self.activation(self.bn(self.conv(x_BCHW)))
        return activated


def named(**layers: nn.Module) -> nn.Sequential:
    """Layers in order under the names that the published files give them."""
    return nn.Sequential(OrderedDict(layers))


def conv_norm_relu(inner: int, outer: int, kernel: int, *, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    """The convolution of all heads: no bias, BatchNorm, ReLU."""
    conv = nn.Conv2d(inner, outer, kernel, stride, dilation * (kernel - 1) // 2, dilation, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outer), nn.ReLU(inplace=True))


def init_convolutions(encoder: nn.Module) -> None:
    """Kaiming-normal by fan-out for every convolution of an encoder (section 2.1)."""
    for layer in encoder.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
