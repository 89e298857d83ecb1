"""A decoded image of any size, read window by window.

Pillow holds four bytes a pixel; an array beside it would be three more, and every careless conversion as many again.
So the decoded image stays where it is, and only the windows that a net looks at become arrays.
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
"""The largest image that is decoded: 32,768 x 32,768 pixels, 4 GiB."""

STRIP_PIXELS = 1 << 22
"""How much of an image is worked on at once where all of it is."""

_limit_lock = threading.Lock()
_allowed: list[int] = []
_pillows_own: list[int | None] = []


@contextmanager
def allowing(max_pixels: int = MAX_PIXELS) -> Iterator[None]:
    """Within the block Pillow decodes images of up to ``max_pixels``.

    Pillow guards against bombs by one number for the whole process, which stops at 178 megapixels; an aerial image has
    more. Of blocks that are open at once, in several threads, the largest number counts; the last one to end puts
    Pillow's own back.
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
    # Pillow refuses what is beyond twice its number.
    Image.MAX_IMAGE_PIXELS = (max(_allowed) + 1) // 2 if _allowed else _pillows_own[0]


class DecodedImage:
    """A decoded image that is indexed like an array (H, W, 3) of RGB bytes, by two slices.

    It has as much of an array's face as :func:`tutelage.evaluation.inference.predict_labels` looks at.
    """

    ndim = 3
    dtype = np.dtype(np.uint8)

    def __init__(self, image: Image.Image) -> None:
        self.image = _eight_bits(image) if image.mode.startswith("I") or image.mode == "F" else image

    @staticmethod
    def read(path: Path, admit: Callable[[int], None] = lambda pixels: None) -> DecodedImage:
        """Decode a file, upright; ``admit`` is told its pixels before, and may wait.

        Raises :class:`~tutelage.errors.DataError` for a file that is missing, unreadable, cut short or too large.
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
        """The picture between two columns, without a copy."""
        return Columns(self, left, right)


class Columns:
    """Some columns of a picture, with as much of an array's face as the picture has."""

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
    """Rows from the top to the bottom, a few megapixels at a time."""
    step = max(1, STRIP_PIXELS // width)
    for start in range(0, height, step):
        yield slice(start, min(start + step, height))


def _eight_bits(image: Image.Image) -> Image.Image:
    """Deep grey values as :func:`tutelage.data.images.read_image` reads them: of 16 bits the upper eight."""

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
