"""Reading image and mask files: what is on the disk becomes arrays, and what cannot be read becomes a clear error.

The orientation that a camera wrote into EXIF is applied to image and mask alike, so that both are seen as a
viewer shows them. Masks are read as the integers that the file stores: a palette PNG by its index, never by its
colours, a 16-bit PNG with all its bits.
"""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from tutelage.errors import DataError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp")
MaskEncoding = Literal["index", "rgb", "first16"]


@contextmanager
def opened(path: Path, what: str = "image") -> Iterator[Image.Image]:
    """Open a file with Pillow; every way in which that can fail is a :class:`DataError` that names the file."""
    try:
        with warnings.catch_warnings():
            # A large image is legitimate here; one that is beyond Pillow's hard limit still raises.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                yield image
    except FileNotFoundError:
        raise DataError(f"{what} not found: {path}", "check the path, the list file and the root folder") from None
    except IsADirectoryError:
        raise DataError(f"{what} expected, but this is a folder: {path}", "name a file") from None
    except PermissionError:
        raise DataError(f"{what} may not be read: {path}", "change its permissions") from None
    except UnidentifiedImageError:
        kind = "is empty (0 bytes)" if path.stat().st_size == 0 else "is not an image that Pillow can read"
        raise DataError(f"{what} {kind}: {path}", "replace the file or take it out of the list") from None
    except Image.DecompressionBombError as error:
        raise DataError(f"{what} is too large to decode safely: {path} ({error})", "cut it into tiles first") from None
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error) as error:
        raise DataError(
            f"{what} is damaged or cut short: {path} ({error})", "replace the file or take it out of the list"
        ) from None


def read_image(path: Path) -> np.ndarray:
    """Read an image as (H, W, 3) uint8 RGB, upright.

    Raises :class:`DataError` for a file that is missing, unreadable or cut short.
    """
    with opened(path) as image:
        image.load()
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I") or image.mode == "F":  # 16-bit grey: keep its upper eight bits
            deep = np.asarray(image)
            grey = (deep.astype(np.float64) / 257.0).round() if deep.max(initial=0) > 255 else deep
            return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)
        return np.asarray(image.convert("RGB"))


def image_size(path: Path) -> tuple[int, int]:
    """The upright (height, width) of an image, read from its header alone."""
    with opened(path) as image:
        width, height = image.size
        turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
    return (width, height) if turned else (height, width)


def read_raw_mask(path: Path, encoding: MaskEncoding = "index") -> np.ndarray:
    """Read a mask as (H, W) integers: stored values (``index``), packed 24-bit colours (``rgb``), or the first
    channel of a 16-bit three-channel PNG (``first16``, SYNTHIA).

    Raises :class:`DataError` for unreadable files and for a colour image that is read by index.
    """
    if encoding == "first16":
        return _read_first16(path)
    with opened(path, "mask") as image:
        image.load()
        image = ImageOps.exif_transpose(image)
        if encoding == "rgb":
            colours = np.asarray(image.convert("RGB")).astype(np.uint32)
            return (colours[..., 0] << 16) | (colours[..., 1] << 8) | colours[..., 2]
        values = np.asarray(image)
    if values.ndim == 2:
        return values.astype(np.uint8) if values.dtype == bool else values
    if values.shape[2] in (2, 4):  # an alpha channel says nothing about classes
        values = values[..., :-1]
    if (values == values[..., :1]).all():
        return values[..., 0]
    raise DataError(
        f"mask holds colours, not class indices: {path}",
        "name the colours in the recipe (data.<name>.colours: {'128,0,0': building, ...})",
    )


def _read_first16(path: Path) -> np.ndarray:
    try:
        import cv2
    except ImportError:
        raise DataError(
            f"16-bit three-channel mask needs OpenCV to be read: {path}", "pip install 'tutelage[synthia]'"
        ) from None
    if not path.is_file():
        raise DataError(f"mask not found: {path}", "check the path, the list file and the root folder")
    values = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if values is None:
        raise DataError(f"mask is damaged or cut short: {path}", "replace the file or take it out of the list")
    return np.asarray(values[..., -1] if values.ndim == 3 else values)  # OpenCV keeps blue first: red is last
