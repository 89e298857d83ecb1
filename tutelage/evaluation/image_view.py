"""Views of an image for a net: resized, mirrored, cropped window by window.

Views are lazy: a large image stays a uint8 array (or memory map), and only windows, or the rows of one row of windows
if it is resized, become floats.

Letters: B images, H x W pixels of the image, h x w of a window.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from tutelage.errors import TutelageError

Image = Tensor | NDArray[np.uint8]
"""RGB: floats (B, 3, H, W) in 0..1, or bytes (H, W, 3)."""
_ROWS_AT_ONCE = 64


def image_size(image: Image) -> tuple[int, int]:
    """Height and width of an image. Raises :class:`TutelageError` for an invalid image."""
    if isinstance(image, Tensor):
        if image.ndim == 4 and image.shape[1] == 3 and image.is_floating_point() and image.numel():
            return int(image.shape[2]), int(image.shape[3])
    elif image.ndim == 3 and image.shape[2] == 3 and image.dtype == np.uint8 and image.size:
        return int(image.shape[0]), int(image.shape[1])
    raise TutelageError(
        "image-array",
        f"invalid image: shape {tuple(image.shape)}, type {image.dtype}",
        "give RGB: floats (B, 3, H, W) in 0..1 as a tensor, or bytes (H, W, 3) as an array",
    )


class ImageView:
    """One size of an image, optionally mirrored left to right; read with :meth:`crop`."""

    def __init__(
        self,
        image: Image,
        size: tuple[int, int],
        flip: bool = False,
        antialias: bool = True,
        fill: tuple[float, float, float] = (0.0, 0.0, 0.0),
        device: torch.device | str | None = None,
    ) -> None:
        self.height, self.width = size
        self._image = image
        self._source_size = image_size(image)
        self._flip = flip
        self._antialias = antialias
        self._fill = fill
        self._device = device if device is not None else getattr(image, "device", "cpu")
        self._band: tuple[int, int, Tensor] | None = None

    def whole(self) -> Tensor:
        """The whole view: float (B, 3, height, width) in 0..1."""
        return self.crop(0, 0, self.height, self.width)

    def crop(self, top: int, left: int, height: int, width: int) -> Tensor:
        """A window: float (B, 3, h, w) in 0..1; pixels outside the view are filled."""
        rows = max(top, 0), min(top + height, self.height)
        columns = max(left, 0), min(left + width, self.width)
        if self._flip:
            columns = self.width - columns[1], self.width - columns[0]
        inside = self._read(*rows, *columns)
        if self._flip:
            inside = inside.flip(-1)
        if inside.shape[-2:] == (height, width):
            return inside
        window = torch.tensor(self._fill, dtype=inside.dtype, device=inside.device).view(1, 3, 1, 1)
        window = window.repeat(inside.shape[0], 1, height, width)
        y, x = max(-top, 0), max(-left, 0)
        window[:, :, y : y + inside.shape[-2], x : x + inside.shape[-1]] = inside
        return window

    def _read(self, top: int, bottom: int, left: int, right: int) -> Tensor:
        if (self.height, self.width) == self._source_size:
            return self._source(top, bottom, left, right)
        if self._band is None or self._band[:2] != (top, bottom):
            self._band = (top, bottom, self._resized(top, bottom))
        return self._band[2][..., left:right]

    def _source(self, top: int, bottom: int, left: int, right: int) -> Tensor:
        if isinstance(self._image, Tensor):
            return self._image[..., top:bottom, left:right].to(self._device, torch.float32)
        window = torch.from_numpy(np.array(self._image[top:bottom, left:right]))
        return window.to(self._device).permute(2, 0, 1)[None].float().div_(255)

    def _resized(self, top: int, bottom: int) -> Tensor:
        """Rows of the resized image: bilinear, equal to :func:`torch.nn.functional.interpolate` of the whole image."""
        height, width = self._source_size
        parts = []
        for start in range(top, bottom, _ROWS_AT_ONCE):
            stop = min(start + _ROWS_AT_ONCE, bottom)
            first, last, weights = _row_weights(start, stop, height, self.height, self._antialias)
            rows = self._source(first, last, 0, width)
            if width != self.width:
                size = (last - first, self.width)
                rows = F.interpolate(rows, size, mode="bilinear", align_corners=False, antialias=self._antialias)
            parts.append(weights.to(rows) @ rows)
        return torch.cat(parts, dim=2)


def _row_weights(start: int, stop: int, source_length: int, length: int, antialias: bool) -> tuple[int, int, Tensor]:
    """Weights of rows start..stop of ``length`` from rows first..last of ``source_length``: first, last, a matrix."""
    scale = source_length / length
    reach = max(scale, 1.0) if antialias else 1.0
    center = (torch.arange(start, stop, dtype=torch.float64) + 0.5) * scale
    first = max(0, math.floor(center[0].item() - reach))
    last = min(source_length, math.ceil(center[-1].item() + reach))
    distance = torch.arange(first, last, dtype=torch.float64) + 0.5 - center[:, None]
    weights = (1 - distance.abs() / reach).clamp_min(0)
    return first, last, weights / weights.sum(dim=1, keepdim=True)
