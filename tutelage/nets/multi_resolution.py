"""A net on two scales: the whole image at half scale (context), and windows at full scale (detail).

        logits = up((1 - a) z_context) + up(a) z_detail        a: attention in 0..1, one map per class

One encoder and decoder compute both; the attention is a light head on the context's features. In training a method
uses one window of the image (:meth:`MultiResolution.forward_with_window`), outside of which only the context counts.
Otherwise the window slides over the image by half its size, and logits are averaged where windows overlap.
Source: HRDA (ECCV 2022), sections 3.2 to 3.4 and its code.

Dimensions: B batch, K classes, C channels, H W the image, h w the context's grid; detail logits have 2h x 2w cells.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tutelage.nets.segmentor import Prediction, Segmentor
from tutelage.nets.settings import MultiResolutionSettings, NetSettings


class Window(NamedTuple):
    """A window of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int


class WindowedPrediction(NamedTuple):
    """Prediction for an image with detail in one window."""

    context: Prediction
    """Prediction at half scale."""
    logits: Tensor
    """Both fused, (B, K, H / stride, W / stride), rounded up."""
    detail: Tensor
    """Logits of the window, (B, K, height / stride, width / stride)."""


def fuse(context_BKhw: Tensor, detail_BKhw: Tensor, attention_BKhw: Tensor, corner: tuple[int, int] = (0, 0)) -> Tensor:
    """Fuse context (B, K, h, w) and a window of detail that starts at a context cell to logits (B, K, 2h, 2w).

    ``attention`` is in 0..1 and counts as 0 outside the window. Products are computed on the context's grid and then
    upsampled, bilinear without corner alignment.
    """
    height, width = context_BKhw.shape[2:]
    high, wide = detail_BKhw.shape[2] // 2, detail_BKhw.shape[3] // 2
    top, left = corner
    beside = (left, width - left - wide, top, height - top - high)
    inside_BKhw = F.pad(attention_BKhw[..., top : top + high, left : left + wide], beside)
    padded_BKHW = F.pad(detail_BKhw, tuple(2 * side for side in beside))
    return _doubled((1.0 - inside_BKhw) * context_BKhw) + _doubled(inside_BKhw) * padded_BKHW


class ScaleAttention(nn.Module):
    """Every level to ``width`` channels on one grid, concatenated, one 1x1 convolution, then one map per class."""

    def __init__(self, channels: Sequence[int], width: int, classes: int) -> None:
        super().__init__()
        self.embed = nn.ModuleList([nn.Conv2d(one, width, 1) for one in channels])
        fuse = nn.Conv2d(len(channels) * width, width, 1, bias=False)
        self.fuse = nn.Sequential(fuse, nn.BatchNorm2d(width), nn.ReLU(inplace=True))
        self.classifier = nn.Conv2d(width, classes, 1)

    def forward(self, levels: Sequence[Tensor], grid: tuple[int, int]) -> Tensor:
        """Logits (B, K, h, w) of levels (B, C, ., .) of any grids; ``grid`` is (h, w)."""
        embedded = [
            F.interpolate(embed(level), size=grid, mode="bilinear", align_corners=False)
            for level, embed in zip(levels, self.embed, strict=True)
        ]
        logits_BKhw: Tensor = self.classifier(self.fuse(torch.cat(embedded, dim=1)))
        return logits_BKhw


class MultiResolution(Segmentor):
    """A segmentor at full and half scale, for nets with ``multi_resolution`` settings.

    Only the logits of a prediction are at full scale; embedding, features and auxiliary logits are the context's.
    """

    def __init__(self, settings: NetSettings, classes: int, taps: Iterable[str] = ()) -> None:
        super().__init__(settings, classes, taps)
        own = settings.multi_resolution or MultiResolutionSettings()
        self.window = own.detail
        # Without the finest level of a pyramid that begins at stride 2: four levels, as the Mix Transformers have.
        self.attended = min(len(self.spec.channels), 4)
        width = own.width or min(settings.channels, 256)
        self.attention = ScaleAttention(self.spec.channels[-self.attended :], width, classes)

    @property
    def unit(self) -> int:
        """Sides and corners of a window are multiples of this many pixels: a cell of the context's logits."""
        return 2 * self.stride

    def window_of(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of a window in an image (H, W): as set, else half of it; in whole units, inside it."""
        wanted = self.window or (-(-size[0] // 2), -(-size[1] // 2))
        height, width = (
            min(-(-side // self.unit), -(-whole // self.unit)) * self.unit
            for side, whole in zip(wanted, size, strict=True)
        )
        return height, width

    def forward(self, image_B3HW: Tensor) -> Prediction:
        """Prediction for RGB images (B, 3, H, W) in 0..1, not normalised, of any size, with detail everywhere."""
        context, attention_BKhw = self._context(image_B3HW)
        logits_BKHW = fuse(context.logits, self._detail_everywhere(self._padded_to_units(image_B3HW)), attention_BKhw)
        return context._replace(logits=self._at_image_size(logits_BKHW, image_B3HW))

    def forward_with_window(self, image_B3HW: Tensor, box: Window) -> WindowedPrediction:
        """Prediction with detail in one window only, whose sides and corner are whole units (:attr:`unit`)."""
        context, attention_BKhw = self._context(image_B3HW)
        filled = self._padded_to_units(image_B3HW)
        window = filled[..., box.top : box.top + box.height, box.left : box.left + box.width]
        detail_BKhw = super().forward(window).logits
        corner = (box.top // self.unit, box.left // self.unit)
        logits_BKHW = fuse(context.logits, detail_BKhw, attention_BKhw, corner)
        return WindowedPrediction(context, self._at_image_size(logits_BKHW, image_B3HW), detail_BKhw)

    def halved(self, image_B3HW: Tensor) -> Tensor:
        """The input of the context, (B, 3, H / 2, W / 2), rounded up."""
        # Bilinear to half an even side without corner alignment is the mean of 2 x 2 pixels.
        return F.avg_pool2d(image_B3HW, 2, ceil_mode=True)

    def _context(self, image_B3HW: Tensor) -> tuple[Prediction, Tensor]:
        context = super().forward(self.halved(image_B3HW))
        with self._autocast(image_B3HW):
            grid = (context.logits.shape[2], context.logits.shape[3])
            attention_BKhw = self.attention(context.features[-self.attended :], grid)
        return context, attention_BKhw.float().sigmoid()

    def _padded_to_units(self, image_B3HW: Tensor) -> Tensor:
        """Pad the image with the mean colour at the bottom and right, to whole units."""
        height, width = image_B3HW.shape[2:]
        if not (height % self.unit or width % self.unit):
            return image_B3HW
        shape = (*image_B3HW.shape[:2], -(-height // self.unit) * self.unit, -(-width // self.unit) * self.unit)
        filled = self.mean.to(image_B3HW.dtype).expand(shape).contiguous(memory_format=torch.channels_last)
        filled[..., :height, :width] = image_B3HW
        return filled

    def _detail_everywhere(self, image_B3HW: Tensor) -> Tensor:
        """Detail logits (B, K, H / stride, W / stride) of a whole image: means of windows that overlap by half."""
        size = (image_B3HW.shape[2], image_B3HW.shape[3])
        height, width = self.window_of(size)
        boxes = [
            Window(top, left, height, width)
            for top in _starts(size[0], height, self.unit)
            for left in _starts(size[1], width, self.unit)
        ]
        windows = [image_B3HW[..., b.top : b.top + b.height, b.left : b.left + b.width] for b in boxes]
        logits = super().forward(torch.cat(windows)).logits.chunk(len(boxes))
        grid = (size[0] // self.stride, size[1] // self.stride)
        total = logits[0].new_zeros((*logits[0].shape[:2], *grid))
        number = logits[0].new_zeros(grid)
        for box, part in zip(boxes, logits, strict=True):
            top, left = box.top // self.stride, box.left // self.stride
            rows, columns = slice(top, top + part.shape[2]), slice(left, left + part.shape[3])
            total[..., rows, columns] += part
            number[rows, columns] += 1.0
        return total / number

    def _at_image_size(self, logits_BKHW: Tensor, image_B3HW: Tensor) -> Tensor:
        height, width = image_B3HW.shape[2:]
        return logits_BKHW[..., : -(-height // self.stride), : -(-width // self.stride)]


def in_two_resolutions(net: Segmentor, settings: MultiResolutionSettings) -> MultiResolution:
    """A net of two resolutions with the weights of ``net``; the attention's weights come from torch's generator.

    A net that already has two resolutions is returned unchanged.
    """
    if isinstance(net, MultiResolution):
        return net
    made = MultiResolution(net.settings.model_copy(update={"multi_resolution": settings}), net.classes, net.taps)
    made.load_state_dict({**made.state_dict(), **net.state_dict()})
    made.load_report = net.load_report
    return made


def _starts(whole: int, part: int, unit: int) -> list[int]:
    """Starts of windows that overlap by half, in whole units; the last window ends at the image's end."""
    step = max(part // 2 // unit, 1) * unit
    return [*range(0, whole - part, step), whole - part]


def _doubled(map_BKhw: Tensor) -> Tensor:
    return F.interpolate(map_BKhw, scale_factor=2.0, mode="bilinear", align_corners=False)
