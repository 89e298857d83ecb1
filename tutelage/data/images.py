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
from PIL.TiffImagePlugin import TiffImageFile

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
            # Given a path, Pillow maps a plain TIFF into memory, and garbles it where it is stored on its side.
            with open(path, "rb") as file, Image.open(file) as image:
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
            return np.repeat(grey.clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)
        return np.asarray(image.convert("RGB"))


def image_size(path: Path) -> tuple[int, int]:
    """The upright (height, width) of an image, read from its header alone."""
    with opened(path) as image:
        width, height = image.size
        if isinstance(image, TiffImageFile):  # some versions of Pillow turn this size already: take the stored one
            width, height = image.tag_v2[256], image.tag_v2[257]
        # Pillow decodes a whole PNG in search of a late orientation; looking through its chunks costs nothing.
        plain = image.format == "PNG" and "Raw profile type exif" not in image.info and not _has_exif_chunk(path)
        turned = not plain and image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
    return (width, height) if turned else (height, width)


def _has_exif_chunk(png: Path) -> bool:
    with open(png, "rb") as file:
        file.seek(8)
        while len(head := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            if kind == b"eXIf":
                return True
            file.seek(length + 4, 1)
    return False


def read_raw_mask(path: Path, encoding: MaskEncoding = "index") -> np.ndarray:
    """Read a mask as (H, W) integers: stored values (``index``), packed 24-bit colours (``rgb``), or the first
    channel of a 16-bit three-channel PNG (``first16``, SYNTHIA).

    Raises :class:`DataError` for unreadable files, and for a mask of colours or fractions that is read by index.
    """
    if encoding == "first16":
        return _read_first16(path)
    with opened(path, "mask") as image:
        tiles = getattr(image, "tile", ())
        if encoding == "index" and len(image.getbands()) > 1 and any(";16" in str(tile[3]) for tile in tiles):
            raise DataError(  # Pillow would keep the upper eight bits of each value: every id would become 0
                f"mask has several channels of 16 bits, which cannot be read as class indices: {path}",
                "write it as a grey PNG (8 or 16 bits)",
            )
        image.load()
        image = ImageOps.exif_transpose(image)
        if encoding == "rgb":
            colours = np.asarray(image.convert("RGB")).astype(np.uint32)
            return (colours[..., 0] << 16) | (colours[..., 1] << 8) | colours[..., 2]
        values = np.asarray(image)
    if values.dtype.kind == "f":
        if not (values == np.rint(values)).all():
            raise DataError(f"mask holds fractions, not class indices: {path}", "write it as an 8-bit grey PNG")
        values = values.astype(np.int64)
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
    return np.asarray(values[..., 2] if values.ndim == 3 else values)  # OpenCV's order is blue, green, red
