"""Pictures on the page: photographs, class maps in their palette, maps of differences; all as data URIs.

Their total size is bounded: where it would be exceeded, all pictures are made smaller; if that does not suffice, some
are omitted.
"""

# Legend: H W pixels of a picture.

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tutelage.report.content import IGNORE, GalleryImage, ReportContent
from tutelage.report.formatting import known, percent

Bytes = NDArray[np.uint8]
Colour = tuple[int, int, int]

WIDEST, TALLEST = 480, 640
BUDGET = 3_600_000
"""Maximum total size of all pictures, in characters."""

ONLY_SECOND: Colour = (0, 98, 214)
ONLY_FIRST: Colour = (230, 140, 0)
BOTH_WRONG: Colour = (190, 60, 150)
"""Where two nets differ: only the second is right, only the first, neither. Distinguishable by colour-blind people."""

DOUBT: Colour = (8, 48, 107)
CERTAIN: Colour = (247, 247, 250)
"""Confidence 0 and 1."""

# Share of the full size, and quality of the JPEGs, from the best on.
LEVELS = ((1.0, 82), (0.8, 78), (0.65, 74), (0.5, 70), (0.35, 65), (0.25, 60))
_HATCH: tuple[Colour, Colour] = ((214, 214, 214), (150, 150, 150))
_HATCH_IDS = (254, 255)
_HATCH_PERIOD = 6


@dataclass(frozen=True)
class Panel:
    """One picture on the page."""

    title: str
    alt: str
    source: str
    """A data URI."""
    width: int
    height: int
    note: str = ""
    differs: bool = False
    """Whether it is a map of differences."""


@dataclass(frozen=True)
class Shown:
    """All panels of one :class:`~tutelage.report.content.GalleryImage`."""

    name: str
    panels: tuple[Panel, ...]


def shrunk(image: Bytes, maps: Mapping[str, Bytes]) -> tuple[Bytes, dict[str, Bytes]]:
    """An image (H, W, 3) and class maps (H, W) of one size, reduced to at most 480 wide and 640 high."""
    height, width = image.shape[:2]
    scale = min(1.0, WIDEST / width, TALLEST / height)
    return scaled(image, scale), {name: scaled(ids, scale) for name, ids in maps.items()}


def scaled(array: Bytes, scale: float) -> Bytes:
    """An image resized with smoothing, or a class map by nearest neighbours."""
    if scale >= 1:
        return array
    height, width = array.shape[:2]
    rule = Image.Resampling.NEAREST if array.ndim == 2 else Image.Resampling.LANCZOS
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(Image.fromarray(np.ascontiguousarray(array)).resize(size, rule))


def shown(content: ReportContent, budget: int = BUDGET) -> tuple[dict[int, Shown], int]:
    """The galleries' pictures by index, and the number omitted to limit the page's size."""
    wanted = list(dict.fromkeys(index for gallery in content.galleries for index in gallery.pictures))
    for scale, quality in LEVELS:
        result = {index: _shown(content, content.pictures[index], scale, quality) for index in wanted}
        if sum(_size(one) for one in result.values()) <= budget:
            return result, 0
    total = 0
    kept: dict[int, Shown] = {}
    for index in wanted:
        total += _size(result[index])
        if total > budget:
            break
        kept[index] = result[index]
    return kept, len(wanted) - len(kept)


def _size(one: Shown) -> int:
    return sum(len(panel.source) for panel in one.panels)


def _shown(content: ReportContent, picture: GalleryImage, scale: float, quality: int) -> Shown:
    maps = {"": picture.truth, **{f"={label}": ids for label, ids in picture.predictions.items()}}
    image = scaled(picture.image, scale)
    small_maps = {name: scaled(ids, scale) for name, ids in maps.items()}
    predictions = {label: small_maps[f"={label}"] for label in picture.predictions}
    small = replace(picture, image=image, truth=small_maps[""], predictions=predictions)
    return Shown(picture.name, tuple(_panels(content, small, quality)))


def _panels(content: ReportContent, picture: GalleryImage, quality: int) -> Iterator[Panel]:
    """Image, truth, each net's prediction, then the student's differences from the baseline and from the teacher."""
    height, width = picture.truth.shape
    palette = [one.colour for one in content.classes]
    name, predictions = picture.name, picture.predictions

    def panel(title: str, alt: str, source: str, note: str = "", differs: bool = False) -> Panel:
        return Panel(title, alt, source, width, height, note, differs)

    yield panel("Image", f"Image {name}", jpeg(picture.image, quality))
    yield panel("Truth", f"True classes of {name}", png(picture.truth, palette))
    student = content.student
    order = [
        label for label in (content.baseline, student, content.teacher) if label is not None and label in predictions
    ]
    for label in dict.fromkeys(order):
        score = picture.scores.get(label)
        note = f"mIoU {percent(score)}" if known(score) else ""
        alt = f"Classes that {label} predicts for {name}" + (f", {note}" if note else "")
        yield panel(label, alt, png(predictions[label], palette), note)
    for other in dict.fromkeys((content.baseline, content.teacher)):
        if other is not None and other != student and other in predictions and student in predictions:
            drawn = difference(picture.image, picture.truth, predictions[other], predictions[student])
            alt = f"Where {other} and {student} differ on {name}"
            yield panel(f"{student} against {other}", alt, jpeg(drawn, quality, sharp=True), differs=True)


def difference(image: Bytes, truth: Bytes, first: Bytes, second: Bytes) -> Bytes:
    """(H, W, 3): pale grey where two maps agree or the truth is ignored, else coloured by which one is right."""
    grey = image.astype(np.float32).mean(axis=2) if image.ndim == 3 else image.astype(np.float32)
    result = np.repeat((150 + 0.4 * grey).clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)
    differ = (first != second) & (truth != IGNORE)
    result[differ & (second == truth)] = ONLY_SECOND
    result[differ & (first == truth)] = ONLY_FIRST
    result[differ & (first != truth) & (second != truth)] = BOTH_WRONG
    return result


def jpeg(image: Bytes, quality: int, sharp: bool = False) -> str:
    """An RGB image (H, W, 3) as a data URI; ``sharp`` keeps the full resolution of colours."""
    buffer = io.BytesIO()
    picture = Image.fromarray(np.ascontiguousarray(image))
    subsampling = 0 if sharp else 2
    try:
        picture.save(buffer, "JPEG", quality=quality, optimize=True, subsampling=subsampling)
    except OSError:  # Pillow's buffer for an optimised file is too small for pure noise
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=quality, subsampling=subsampling)
    return _uri("image/jpeg", buffer)


def png(ids: Bytes, palette: Sequence[Colour]) -> str:
    """A class map (H, W) in its palette as a data URI; other values are hatched."""
    rows, columns = np.indices(ids.shape)
    hatch = np.where((rows + columns) % _HATCH_PERIOD < _HATCH_PERIOD // 2, *_HATCH_IDS).astype(np.uint8)
    picture = Image.fromarray(np.where(ids < len(palette), ids, hatch))
    filled = [*palette, *[(0, 0, 0)] * (_HATCH_IDS[0] - len(palette)), *_HATCH]
    picture.putpalette([channel for colour in filled for channel in colour])
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return _uri("image/png", buffer)


def heat_map(share: NDArray[np.float64]) -> str:
    """Shares (K, K) in 0..1, NaN for none, as a data URI: one pixel each, pale to dark blue on a log scale."""
    level = np.nan_to_num(log_level(share))
    low, high = np.array([247.0, 247.0, 250.0]), np.array([8.0, 48.0, 107.0])
    colours = low + level[..., None] ** 0.8 * (high - low)
    buffer = io.BytesIO()
    Image.fromarray(colours.round().astype(np.uint8)).save(buffer, "PNG", optimize=True)
    return _uri("image/png", buffer)


def log_level(share: NDArray[np.float64]) -> NDArray[np.float64]:
    """Shares in 0..1 → 0..1 on a logarithmic scale from 0.1 %, so that small confusions stay visible."""
    floor = 1e-3
    level: NDArray[np.float64] = 1 - np.log(np.maximum(share, floor)) / np.log(floor)
    return level


def _uri(kind: str, buffer: io.BytesIO) -> str:
    return f"data:{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
