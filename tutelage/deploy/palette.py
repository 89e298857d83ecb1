"""Class maps as images: with a palette, or over the input image."""

# Legend: H W pixels.

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from tutelage.deploy.decoded_image import Bytes, strips

Palette = Sequence[tuple[int, int, int]]


def coloured(labels_HW: Bytes, palette: Palette) -> Image.Image:
    """A class map as a palette image: pixels are class indices, viewers show the colours. No copy is made."""
    height, width = labels_HW.shape
    image = Image.frombuffer("P", (width, height), np.ascontiguousarray(labels_HW), "raw", "P", 0, 1)
    image.putpalette([channel for colour in palette for channel in colour])
    return image


def overlaid(image: Image.Image, labels_HW: Bytes, palette: Palette, alpha: float) -> Image.Image:
    """Blend the classes' colours over an image with weight ``alpha``, in place if it is an RGB image.

    Pixels whose class has no colour are unchanged. Works in strips of rows, to keep only one copy of a large image.
    """
    result = image if image.mode == "RGB" else Image.new("RGB", image.size)
    # In 256ths: blending is one multiplication and addition of 16 bits, with half a step for rounding.
    share = round(alpha * 256)
    table = np.full((256, 3), 128, dtype=np.uint16)
    table[: len(palette)] += np.array(palette, dtype=np.uint16) * np.uint16(share)
    keep = np.full(256, 256, dtype=np.uint16)
    keep[: len(palette)] = 256 - share
    for rows in strips(*labels_HW.shape):
        part = image.crop((0, rows.start, image.width, rows.stop)).convert("RGB")
        ids = labels_HW[rows]
        mixed = np.asarray(part).astype(np.uint16)
        mixed *= keep[ids][..., None]
        mixed += table[ids]
        result.paste(Image.fromarray((mixed >> 8).astype(np.uint8)), (0, rows.start))
    return result
