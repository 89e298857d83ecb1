"""Reading image and mask files as arrays; a file that cannot be read raises an error that names it.

The EXIF orientation is applied to images and masks alike, so that both are upright as in a viewer. Masks are read as
the integers that the file stores: a palette PNG by its indices, never by its colours, a 16-bit PNG with all its bits.
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
_REPLACE = "replace the file, or remove it from the list"


@contextmanager
def opened(path: Path, what: str = "image") -> Iterator[Image.Image]:
    """Open a file with Pillow; ``what`` names the kind of file in messages.

    Raises :class:`DataError`: ``missing-file``, ``unreadable-file``, ``unreadable-image``, ``image-size``.
    """
    try:
        with warnings.catch_warnings():
            # Large images are legitimate here; one above Pillow's hard limit still raises.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            # Given a path, Pillow memory-maps an uncompressed TIFF and garbles it if its orientation is rotated.
            with open(path, "rb") as file, Image.open(file) as image:
                yield image
    except FileNotFoundError:
        raise DataError(
            "file-missing", f"{what} not found: {path}", "check the path, the list file and the root folder"
        ) from None
    except IsADirectoryError:
        raise DataError("file-missing", f"{what} is a folder, expected a file: {path}", "name a file") from None
    except PermissionError:
        raise DataError("file-unreadable", f"no permission to read {what}: {path}", "change its permissions") from None
    except UnidentifiedImageError:
        kind = "is empty (0 bytes)" if path.stat().st_size == 0 else "is not in an image format that Pillow can read"
        raise DataError("image-unreadable", f"{what} {kind}: {path}", _REPLACE) from None
    except Image.DecompressionBombError as error:
        raise DataError(
            "image-large", f"{what} is too large to decode safely: {path} ({error})", "cut it into tiles"
        ) from None
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error) as error:
        raise DataError("image-unreadable", f"{what} is damaged or truncated: {path} ({error})", _REPLACE) from None


def read_image(path: Path) -> np.ndarray:
    """Read an image as (H, W, 3) uint8 RGB, upright. Raises :class:`DataError` as :func:`opened` does."""
    with opened(path) as image:
        image.load()
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I") or image.mode == "F":  # 16-bit grey: keep the upper eight bits
            deep = np.asarray(image)
            grey = (deep.astype(np.float64) / 257.0).round() if deep.max(initial=0) > 255 else deep
            return np.repeat(grey.clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)
        return np.asarray(image.convert("RGB"))


def image_size(path: Path) -> tuple[int, int]:
    """Upright (height, width) of an image, read from its header alone."""
    with opened(path) as image:
        width, height = image.size
        if isinstance(image, TiffImageFile):  # some versions of Pillow rotate this size already: use the stored one
            width, height = image.tag_v2[256], image.tag_v2[257]
        # Pillow decodes a whole PNG to find a late orientation; scanning its chunks costs nothing.
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
    """Read a mask as (H, W) integers.

    ``index``: stored values; ``rgb``: packed 24-bit colours; ``first16``: first channel of a 16-bit three-channel PNG
    (SYNTHIA). Raises :class:`DataError` as :func:`opened` does, ``mask-colours`` and ``mask-format`` for a mask read by
    index that stores colours, fractions or several 16-bit channels, and ``missing-package`` (OpenCV, ``first16``).
    """
    if encoding == "first16":
        return _read_first16(path)
    with opened(path, "mask") as image:
        tiles = getattr(image, "tile", ())
        if encoding == "index" and len(image.getbands()) > 1 and any(";16" in str(tile[3]) for tile in tiles):
            raise DataError(  # Pillow would keep the upper eight bits of each value: every id would become 0
                "mask-format",
                f"mask has several 16-bit channels, expected class indices in one channel: {path}",
                "write it as a greyscale PNG (8 or 16 bits)",
            )
        image.load()
        image = ImageOps.exif_transpose(image)
        if encoding == "rgb":
            colours = np.asarray(image.convert("RGB")).astype(np.uint32)
            return (colours[..., 0] << 16) | (colours[..., 1] << 8) | colours[..., 2]
        values = np.asarray(image)
    if values.dtype.kind == "f":
        if not (values == np.rint(values)).all():
            raise DataError(
                "mask-format",
                f"mask holds fractions, expected class indices: {path}",
                "write it as an 8-bit greyscale PNG",
            )
        values = values.astype(np.int64)
    if values.ndim == 2:
        return values.astype(np.uint8) if values.dtype == bool else values
    if values.shape[2] in (2, 4):  # drop the alpha channel
        values = values[..., :-1]
    if (values == values[..., :1]).all():
        return values[..., 0]
    raise DataError(
        "mask-colours",
        f"mask holds colours, expected class indices: {path}",
        "map the colours to classes in the recipe (data.<name>.colours: {'128,0,0': building, ...})",
    )


def _read_first16(path: Path) -> np.ndarray:
    try:
        import cv2
    except ImportError:
        raise DataError(
            "package-missing",
            f"reading a 16-bit three-channel mask needs OpenCV: {path}",
            "pip install 'tutelage[synthia]'",
        ) from None
    if not path.is_file():
        raise DataError("file-missing", f"mask not found: {path}", "check the path, the list file and the root folder")
    values = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if values is None:
        raise DataError("image-unreadable", f"mask is damaged or truncated: {path}", _REPLACE)
    return np.asarray(values[..., 2] if values.ndim == 3 else values)  # OpenCV's order is blue, green, red
