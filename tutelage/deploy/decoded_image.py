"""A decoded image of any size, read by windows.

Pillow uses four bytes per pixel; an array would need three more, and each careless conversion as many again. So the
decoded image stays in Pillow, and only the windows that a net reads become arrays.
"""

# Legend: H W pixels of the picture, h w of a window.

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from tutelage.data.images import opened

Bytes = NDArray[np.uint8]

MAX_PIXELS = 1 << 30
"""Largest image to decode: 32,768 x 32,768 pixels, 4 GiB."""

STRIP_PIXELS = 1 << 22
"""Pixels to process at once where the whole image is processed."""

_limit_lock = threading.Lock()
_allowed: list[int] = []
_pillows_own: list[int | None] = []


@contextmanager
def allowing(max_pixels: int = MAX_PIXELS) -> Iterator[None]:
    """Allow Pillow to decode images of up to ``max_pixels`` within the block.

    Pillow's limit against decompression bombs is one number per process, 178 megapixels; aerial images are larger. If
    several blocks are open at once, in several threads, the largest number applies; the last one to end restores
    Pillow's limit.
    """
    with _limit_lock:
        if not _allowed:
            _pillows_own[:] = [Image.MAX_IMAGE_PIXELS]
        _allowed.append(max_pixels)
        _set_limit()
    try:
        yield
    finally:
        with _limit_lock:
            _allowed.remove(max_pixels)
            _set_limit()


def _set_limit() -> None:
    # Pillow raises an error above twice this number.
    Image.MAX_IMAGE_PIXELS = (max(_allowed) + 1) // 2 if _allowed else _pillows_own[0]


class DecodedImage:
    """A decoded image that is indexed like an array (H, W, 3) of RGB bytes, by two slices.

    It has only the part of an array's interface that :func:`tutelage.evaluation.inference.predict_labels` uses.
    """

    ndim = 3
    dtype = np.dtype(np.uint8)

    def __init__(self, image: Image.Image) -> None:
        self.image = _eight_bits(image) if image.mode.startswith("I") or image.mode == "F" else image

    @staticmethod
    def read(path: Path, admit: Callable[[int], None] = lambda pixels: None) -> DecodedImage:
        """Decode a file and apply its EXIF orientation; ``admit`` gets its number of pixels before and may block.

        Raises :class:`~tutelage.errors.DataError` for a file that is missing, unreadable, truncated or too large.
        """
        with opened(path) as image:
            admit(image.width * image.height)
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            return DecodedImage(image)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and 3."""
        return self.image.height, self.image.width, 3

    @property
    def size(self) -> int:
        """Number of values, as numpy counts them."""
        return self.image.height * self.image.width * 3

    def __getitem__(self, window: tuple[slice, slice]) -> Bytes:
        top, bottom, _ = window[0].indices(self.image.height)
        left, right, _ = window[1].indices(self.image.width)
        return np.asarray(self.image.crop((left, top, right, bottom)).convert("RGB"))

    def columns(self, left: int, right: int) -> Columns:
        """The image between two columns, without a copy."""
        return Columns(self, left, right)


class Columns:
    """A range of columns of an image, with the same interface as the image."""

    ndim = 3
    dtype = np.dtype(np.uint8)

    def __init__(self, picture: DecodedImage, left: int, right: int) -> None:
        self._picture, self._left, self._width = picture, left, right - left

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and 3."""
        return self._picture.shape[0], self._width, 3

    @property
    def size(self) -> int:
        """Number of values, as numpy counts them."""
        return self._picture.shape[0] * self._width * 3

    def __getitem__(self, window: tuple[slice, slice]) -> Bytes:
        left, right, _ = window[1].indices(self._width)
        return self._picture[window[0], slice(self._left + left, self._left + right)]


def strips(height: int, width: int) -> Iterator[slice]:
    """Row slices from top to bottom, a few megapixels each."""
    step = max(1, STRIP_PIXELS // width)
    for start in range(0, height, step):
        yield slice(start, min(start + step, height))


def _eight_bits(image: Image.Image) -> Image.Image:
    """Convert deep grey values like :func:`tutelage.data.images.read_image`: the upper eight of 16 bits."""

    def part(rows: slice) -> NDArray[Any]:
        return np.asarray(image.crop((0, rows.start, image.width, rows.stop)))

    every = list(strips(image.height, image.width))
    highest = max(part(rows).max() for rows in every)
    result = Image.new("L", image.size)
    for rows in every:
        deep = part(rows)
        grey = (deep.astype(np.float64) / 257.0).round() if highest > 255 else deep
        result.paste(Image.fromarray(grey.clip(0, 255).astype(np.uint8)), (0, rows.start))
    return result
