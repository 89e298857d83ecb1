"""Image statistics of a data set: every image is decoded once, the results are cached by fingerprint.

Besides size, mode and orientation, three summaries of each image are stored for comparisons without decoding it again:
a digest of its pixels, a perceptual hash, and a thumbnail of 16 by 16 pixels.
"""

# Legend: N images.

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from tutelage.data.colour import GREY
from tutelage.data.dataset import Dataset
from tutelage.data.fact_cache import Progress, cache_file, gather, load, store
from tutelage.data.images import opened, read_image
from tutelage.errors import DataError

VERSION = 1
"""Increase it when the statistics or their storage change."""
THUMBNAIL = 16
BINS = 6
"""Bins per channel of the colour histogram."""
_ORIENTATION = 0x0112
_COLUMNS = ("sizes", "orientations", "digests", "hashes", "thumbnails", "colours", "lumas", "modes", "faults")


@dataclass(frozen=True)
class Pictures:
    """Statistics of all images; an image that cannot be read has zeros and an entry in ``faults``."""

    sizes: np.ndarray
    """(N, 2) upright height and width."""
    orientations: np.ndarray
    """(N,) EXIF orientation, 1 if there is none."""
    digests: np.ndarray
    """(N,) bytes: equal pixels have equal digests."""
    hashes: np.ndarray
    """(N,) uint64 difference hashes on a grid of 9 by 8; similar images differ in few bits."""
    thumbnails: np.ndarray
    """(N, 16, 16, 3) uint8 RGB."""
    colours: np.ndarray
    """(N, 216) normalised colour histograms, 6 bins per channel."""
    lumas: np.ndarray
    """(N,) mean brightness, 0..255."""
    modes: tuple[str, ...]
    """Pillow mode of each image."""
    faults: dict[int, str]
    """Sample index → message of the error that reading its image raised."""

    @property
    def read(self) -> np.ndarray:
        """(N,) bool: true for images that could be read."""
        present: np.ndarray = self.sizes[:, 0] > 0
        return present


def read_pictures(
    dataset: Dataset, *, workers: int = 2, progress: Progress | None = None, cache: Path | None = None
) -> Pictures:
    """Compute the statistics of every image, or load them from the cache if the data are unchanged.

    Files that cannot be read are recorded in ``faults``; nothing is raised for them.
    """
    try:
        kept = cache_file("images", VERSION, dataset.fingerprint, cache)
    except DataError:
        kept = None
    stored = None if kept is None else load(kept, _COLUMNS)
    if stored is not None and len(stored["sizes"]) == len(dataset):
        return _unpacked(dataset, stored)
    rows = gather(_measure, [sample.image for sample in dataset.samples], workers, progress)
    found = Pictures(
        sizes=np.array([row.size for row in rows], np.int64).reshape(-1, 2),
        orientations=np.array([row.orientation for row in rows], np.int64),
        digests=np.array([row.digest for row in rows], "S32"),
        hashes=np.array([row.hash for row in rows], np.uint64),
        thumbnails=np.array([row.thumbnail for row in rows], np.uint8).reshape(-1, THUMBNAIL, THUMBNAIL, 3),
        colours=np.array([row.colours for row in rows], np.float32).reshape(-1, BINS**3),
        lumas=np.array([row.luma for row in rows], np.float32),
        modes=tuple(row.mode for row in rows),
        faults={index: row.fault for index, row in enumerate(rows) if row.fault},
    )
    if kept is not None:
        store(kept, _packed(dataset, found))
    return found


@dataclass(frozen=True)
class _PictureRow:
    size: tuple[int, int]
    orientation: int
    digest: str
    hash: int
    thumbnail: np.ndarray
    colours: np.ndarray
    luma: float
    mode: str
    fault: str


def _measure(path: Path) -> _PictureRow:
    try:
        with opened(path) as image:
            mode = image.mode
            orientation = int(image.getexif().get(_ORIENTATION, 1) or 1)
        pixels = read_image(path)
    except DataError as error:
        nothing = np.zeros((THUMBNAIL, THUMBNAIL, 3), np.uint8)
        return _PictureRow((0, 0), 1, "", 0, nothing, np.zeros(BINS**3, np.float32), 0.0, "", error.message)
    upright = Image.fromarray(pixels)
    digest = hashlib.blake2b(repr(pixels.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(pixels).data)
    # A reduced copy is enough for the rest; reduce() averages, so that only detail is lost.
    factor = max(min(upright.size) // 64, 1)
    small = upright.reduce(factor) if factor > 1 else upright
    thumbnail = np.asarray(small.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX))
    small_HW3 = np.asarray(small)
    bins = (small_HW3.astype(np.uint16) * BINS) >> 8
    index = (bins[..., 0] * BINS + bins[..., 1]) * BINS + bins[..., 2]
    colours = np.bincount(index.ravel(), minlength=BINS**3) / index.size
    return _PictureRow(
        (pixels.shape[0], pixels.shape[1]),
        orientation,
        digest.hexdigest(),
        difference_hash(small),
        thumbnail,
        colours.astype(np.float32),
        float(small_HW3.mean((0, 1)) @ np.array(GREY)),
        mode,
        "",
    )


def difference_hash(image: Image.Image) -> int:
    """64-bit difference hash: whether each cell of a grid of 9 by 8 is brighter than its left neighbour."""
    grid = np.asarray(ImageOps.grayscale(image).resize((9, 8), Image.Resampling.BOX)).astype(np.int16)
    return int.from_bytes(np.packbits(grid[:, 1:] > grid[:, :-1]).tobytes(), "big")


def _packed(dataset: Dataset, found: Pictures) -> dict[str, np.ndarray]:
    """The columns to store. Paths in messages become a placeholder: equal data may be in another folder."""
    faults = {
        str(index): message.replace(str(dataset.samples[index].image), "\x1f")
        for index, message in found.faults.items()
    }
    arrays: dict[str, np.ndarray] = {name: getattr(found, name) for name in _COLUMNS[:-2]}
    arrays["modes"] = np.frombuffer(json.dumps(found.modes).encode(), np.uint8)
    arrays["faults"] = np.frombuffer(json.dumps(faults).encode(), np.uint8)
    return arrays


def _unpacked(dataset: Dataset, arrays: dict[str, np.ndarray]) -> Pictures:
    columns = {name: arrays[name] for name in _COLUMNS[:-2]}
    faults = {
        int(index): message.replace("\x1f", str(dataset.samples[int(index)].image))
        for index, message in json.loads(arrays["faults"].tobytes()).items()
    }
    return Pictures(**columns, modes=tuple(json.loads(arrays["modes"].tobytes())), faults=faults)
