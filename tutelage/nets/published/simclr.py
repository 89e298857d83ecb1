"""SimCLRv2's ResNets of width 1, with and without selective kernels, and the names in their converted files.

A selective kernel computes two maps with one convolution and weights them by channel, softmax over the two, from the
means of their sum. At the start of a stage the shortcut is a mean over 2x2 and a 1x1 convolution, also at stride 1.
Without selective kernels the net is torchvision's ResNet, and its files fit every encoder of that layout.
Source: SimCLRv2 (NeurIPS 2020), appendix; as BiSMAP uses it (sections 2.1 and 2.2 of its specification).

Dimensions: B batch, C channels, H W a grid.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tutelage.errors import TutelageError

_BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}

NAMES: dict[str, tuple[tuple[int, ...], bool]] = {
    f"simclrv2_r{depth}_1x_sk{int(selective)}": (blocks, selective)
    for depth, blocks in _BLOCKS.items()
    for selective in (False, True)
}
"""Encoders by name: the blocks of each stage, and whether they have selective kernels."""

CHANNELS = (256, 512, 1024, 2048)
"""Channels of their four levels."""

_RATIO = 1 / 16
_FEWEST = 32
_FILE_STEM = "net.0.0.weight"
_FILE_BLOCK = re.compile(r"net\.([1-4])\.blocks\.(\d+)\.(.+)")

# Name of a tensor in a converted file, within its block → here.
_SHORTCUT = {
    "projection.shortcut": "downsample.0",
    "projection.shortcut.2": "downsample.0",
    "projection.bn.0": "downsample.1",
}
_PLAIN_BLOCK = {
    "net.0": "conv1",
    "net.1.0": "bn1",
    "net.2": "conv2",
    "net.3.0": "bn2",
    "net.4": "conv3",
    "net.5.0": "bn3",
}
_SELECTIVE_BLOCK = {
    "net.0": "conv1",
    "net.1.0": "bn1",
    "net.2.main_conv.0": "select.conv",
    "net.2.main_conv.1.0": "select.bn",
    "net.2.mixing_conv.0": "select.squeeze",
    "net.2.mixing_conv.1.0": "select.squeeze_bn",
    "net.2.mixing_conv.2": "select.excite",
    "net.3": "conv3",
    "net.4.0": "bn3",
}
_STEM = {
    "net.0.0": "conv1",
    "net.0.1.0": "bn1",
    "net.0.2": "conv2",
    "net.0.3.0": "bn2",
    "net.0.4": "conv3",
    "net.0.5.0": "bn3",
}


class SelectiveKernel(nn.Module):
    """3x3 to twice ``outer`` channels, then the two halves weighted by channel.

    The weights are computed from max(``outer`` times ``ratio``, ``fewest``) channels.
    """

    def __init__(
        self, inner: int, outer: int, stride: int, dilation: int = 1, *, ratio: float = _RATIO, fewest: int = _FEWEST
    ) -> None:
        super().__init__()
        hidden = max(int(outer * ratio), fewest)
        self.conv = nn.Conv2d(inner, 2 * outer, 3, stride, dilation, dilation, bias=False)
        self.bn = nn.BatchNorm2d(2 * outer)
        self.squeeze = nn.Conv2d(outer, hidden, 1, bias=False)
        self.squeeze_bn = nn.BatchNorm2d(hidden)
        self.excite = nn.Conv2d(hidden, 2 * outer, 1, bias=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, outer, H / stride, W / stride), rounded up."""
        first, second = F.relu(self.bn(self.conv(x_BCHW))).chunk(2, 1)
        mean = (first + second).mean((2, 3), keepdim=True)
        one, other = self.excite(F.relu(self.squeeze_bn(self.squeeze(mean)))).chunk(2, 1)
        share = torch.sigmoid(one - other)  # softmax over two
        selected: Tensor = share * first + (1.0 - share) * second
        return selected


class Bottleneck(nn.Module):
    """1x1, 3x3 or a selective kernel with the stride, 1x1 to four times ``width``; with a shortcut.

    ``first``: the block starts a stage, and its shortcut is projected.
    """

    def __init__(self, inner: int, width: int, stride: int, dilation: int, selective: bool, first: bool) -> None:
        super().__init__()
        outer = 4 * width
        self.conv1 = nn.Conv2d(inner, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.select: SelectiveKernel | None = SelectiveKernel(width, width, stride, dilation) if selective else None
        if not selective:
            self.conv2 = nn.Conv2d(width, width, 3, stride, dilation, dilation, bias=False)
            self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outer, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outer)
        self.downsample: nn.Sequential | None = None
        if first:
            self.downsample = nn.Sequential(
                nn.Conv2d(inner, outer, 1, 1 if selective else stride, bias=False), nn.BatchNorm2d(outer)
            )
        self.stride = stride

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, 4 width, H / stride, W / stride), rounded up, of (B, inner, H, W)."""
        y = F.relu(self.bn1(self.conv1(x_BCHW)))
        y = F.relu(self.bn2(self.conv2(y))) if self.select is None else self.select(y)
        y = self.bn3(self.conv3(y))
        shortcut = x_BCHW
        if self.downsample is not None:
            if self.select is not None:
                shortcut = F.avg_pool2d(F.pad(shortcut, (0, 1, 0, 1)), 2, self.stride)
            shortcut = self.downsample(shortcut)
        return F.relu(y + shortcut)


class SimCLRResNet(nn.Module):
    """The encoder ``name``, one of :data:`NAMES`; below ``output_stride`` 32 its last stages are dilated instead.

    The first block of a dilated stage keeps the dilation of the stage before, as in timm's nets.
    """

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    layer4: nn.Sequential

    def __init__(self, name: str, output_stride: int = 32) -> None:
        super().__init__()
        blocks, self.selective = NAMES[name]
        if self.selective:
            self.conv1, self.bn1 = nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32)
            self.conv2, self.bn2 = nn.Conv2d(32, 32, 3, 1, 1, bias=False), nn.BatchNorm2d(32)
            self.conv3, self.bn3 = nn.Conv2d(32, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64)
        else:
            self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        inner, reached, dilation = 64, 4, 1
        for number, count in enumerate(blocks):
            width, strided = 64 << number, number > 0 and reached < output_stride
            before, dilation = dilation, dilation if strided or number == 0 else 2 * dilation
            reached *= 2 if strided else 1
            first = Bottleneck(inner, width, 2 if strided else 1, before, self.selective, True)
            inner = 4 * width
            others = [Bottleneck(inner, width, 1, dilation, self.selective, False) for _ in range(count - 1)]
            self.add_module(f"layer{number + 1}", nn.Sequential(first, *others))
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight)

    def stem(self, image_B3HW: Tensor) -> Tensor:
        """(B, 64, H / 4, W / 4), rounded up."""
        x = F.relu(self.bn1(self.conv1(image_B3HW)))
        if self.selective:
            x = F.relu(self.bn2(self.conv2(x)))
            x = F.relu(self.bn3(self.conv3(x)))
        return F.max_pool2d(x, 3, 2, 1)

    def forward(self, image_B3HW: Tensor) -> list[Tensor]:
        """The four stages' outputs, finest first."""
        x = self.stem(image_B3HW)
        levels = []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
            levels.append(x)
        return levels


def is_simclr_file(tensors: dict[str, Tensor]) -> bool:
    """Whether tensors have the names of SimCLRv2's converted files."""
    return _FILE_STEM in tensors and "net.1.blocks.0.net.0.weight" in tensors


def renamed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of a converted file to torchvision's layout; the classifier keeps its name.

    Raises TutelageError for an unknown tensor.
    """
    selective = any(".mixing_conv." in name for name in tensors)
    block = _SHORTCUT | (_SELECTIVE_BLOCK if selective else _PLAIN_BLOCK)
    result = {}
    for name, tensor in tensors.items():
        if name.startswith("fc."):
            result[name] = tensor
            continue
        found = _FILE_BLOCK.fullmatch(name)
        layer, leaf = (found[3] if found else name).rsplit(".", 1)
        own = (block if found else _STEM).get(layer)
        if own is None:
            raise TutelageError(
                "weights-mismatch",
                f"unknown tensor {name} in a converted SimCLRv2 file",
                "use an unchanged file such as r101_1x_sk0.pth",
            )
        result[(f"layer{found[1]}.{found[2]}." if found else "") + f"{own}.{leaf}"] = tensor
    return result
