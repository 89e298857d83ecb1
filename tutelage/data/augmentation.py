"""Geometric augmentation: one affine record per view, applied to the image, its label and later maps.

A :class:`Geometry` is the affine map from output pixels to source pixels (continuous coordinates; the centre of
pixel i is i + 0.5). The image is resampled with Pillow, only inside the crop; a label is gathered by index;
:func:`tutelage.data.batch.warp` replays the record on maps that are computed later (pseudo labels, cached teacher
outputs).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from PIL import Image
from pydantic import Field, model_validator

from tutelage.data.draws import generator
from tutelage.data.labels import IGNORE
from tutelage.settings import Settings

FILL = (124, 116, 104)  # ImageNet's mean colour: zero after most nets' normalisation
_SUPPORT = 4  # source pixels around a crop that the resampling filter may read, times the reduction factor

Positive = Annotated[int, Field(gt=0)]


class AugmentSettings(Settings):
    """Random resize, crop and flip."""

    crop: tuple[Positive, Positive] | None = None
    """Height and width of the crop in pixels; null: the whole image (all images must then have one size)."""
    resize: tuple[Positive, Positive] | None = None
    """Height and width to which every image is resized before the random scale; null: the image's own size."""
    scale: tuple[float, float] = (1.0, 1.0)
    """Range of the random scale factor."""
    scale_steps: Annotated[int, Field(ge=2)] | None = None
    """Number of equally spaced scale factors to draw from; null: draw uniformly from the range."""
    flip: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Probability of a horizontal flip."""
    class_cap: Annotated[float, Field(gt=0, le=1)] | None = None
    """Largest fraction of one class in a crop, ignored pixels excluded; needs labels. Null: no limit."""
    class_cap_attempts: Positive = 10
    """Crops to try for `class_cap`; if none meets it, the last one is kept."""

    @model_validator(mode="after")
    def _range(self) -> AugmentSettings:
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale must be [smallest, largest] with factors above 0, got {list(self.scale)}")
        return self


@dataclass(frozen=True)
class Geometry:
    """Affine map of a view: ``matrix`` (2, 3) takes output (x, y, 1) to source (x, y).

    ``source`` and ``size`` are height and width of the source image and of the view, in pixels.
    """

    matrix: np.ndarray
    source: tuple[int, int]
    size: tuple[int, int]

    @staticmethod
    def crop(
        source: tuple[int, int], scaled: tuple[int, int], offset: tuple[int, int], size: tuple[int, int], flip: bool
    ) -> Geometry:
        """The source (H, W) resized to ``scaled``, cut at ``offset`` (top, left) to ``size``, then flipped."""
        step_y, step_x = source[0] / scaled[0], source[1] / scaled[1]
        matrix = np.array([[step_x, 0.0, offset[1] * step_x], [0.0, step_y, offset[0] * step_y]])
        if flip:
            matrix[0] = [-step_x, 0.0, (offset[1] + size[1]) * step_x]
        return Geometry(matrix, source, size)


def draw_geometry(
    settings: AugmentSettings,
    source: tuple[int, int],
    label: np.ndarray | None,
    seed: int,
    stream: str,
    position: int,
) -> Geometry:
    """Draw the geometry of the view at one position of a stream; a pure function of its arguments.

    ``source`` is the image's (H, W); ``label`` (H, W) is needed for ``class_cap`` alone.
    """
    height, width = settings.resize or source
    low, high = settings.scale
    if high > low:
        scale_draw = generator(seed, stream, "scale", position)
        if settings.scale_steps is None:
            factor = float(scale_draw.uniform(low, high))
        else:
            factor = float(np.linspace(low, high, settings.scale_steps)[scale_draw.integers(settings.scale_steps)])
    else:
        factor = low
    scaled = (max(int(height * factor + 0.5), 1), max(int(width * factor + 0.5), 1))
    size = settings.crop or scaled
    flip = settings.flip > 0 and bool(generator(seed, stream, "flip", position).random() < settings.flip)
    capped = settings.class_cap is not None and label is not None
    for attempt in range(settings.class_cap_attempts if capped else 1):
        place = generator(seed, stream, "crop", position, attempt)
        top = int(place.integers(max(scaled[0] - size[0], 0) + 1))
        left = int(place.integers(max(scaled[1] - size[1], 0) + 1))
        geometry = Geometry.crop(source, scaled, (top, left), size, flip)
        if settings.class_cap is None or label is None:
            break
        counts = np.bincount(take_map(label, geometry).ravel(), minlength=256)[:IGNORE]
        if counts.max() <= settings.class_cap * counts.sum() and np.count_nonzero(counts) > 1:
            break
    return geometry


def _axis(step: float, origin: float, length: int, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """Source indices of ``length`` output pixels along one axis, and whether each lies inside the source."""
    index: np.ndarray = np.floor(step * (np.arange(length) + 0.5) + origin).astype(np.int64)
    inside = (index >= 0) & (index < limit)
    return np.clip(index, 0, limit - 1), inside


def _straight(geometry: Geometry) -> bool:
    """Whether rows of the view are rows of the source."""
    return bool(geometry.matrix[0, 1] == 0.0 and geometry.matrix[1, 0] == 0.0)


def _places(geometry: Geometry) -> tuple[np.ndarray, np.ndarray]:
    """Source coordinates y and x (h, w) of the view's pixels."""
    (xx, xy, x0), (yx, yy, y0) = geometry.matrix
    y, x = np.arange(geometry.size[0])[:, None] + 0.5, np.arange(geometry.size[1]) + 0.5
    return yx * x + yy * y + y0, xx * x + xy * y + x0


def _inside(y: np.ndarray, x: np.ndarray, source: tuple[int, int]) -> np.ndarray:
    inside: np.ndarray = (y >= 0) & (y < source[0]) & (x >= 0) & (x < source[1])
    return inside


def take_map(values: np.ndarray, geometry: Geometry, fill: int = IGNORE) -> np.ndarray:
    """Resample a label or weight map (H, W) by a geometry: the nearest source pixel, ``fill`` outside the source."""
    if not _straight(geometry):
        y, x = _places(geometry)
        # Same rounding as data.batch.warp, which accepts maps of any resolution.
        row = np.floor(y * values.shape[0] / geometry.source[0]).astype(np.int64).clip(0, values.shape[0] - 1)
        column = np.floor(x * values.shape[1] / geometry.source[1]).astype(np.int64).clip(0, values.shape[1] - 1)
        return np.where(_inside(y, x, geometry.source), values[row, column], np.asarray(fill, values.dtype))
    rows, row_inside = _axis(geometry.matrix[1, 1], geometry.matrix[1, 2], geometry.size[0], values.shape[0])
    columns, column_inside = _axis(geometry.matrix[0, 0], geometry.matrix[0, 2], geometry.size[1], values.shape[1])
    result: np.ndarray = np.take(np.take(values, rows, axis=0), columns, axis=1)
    if not row_inside.all():
        result[~row_inside] = fill
    if not column_inside.all():
        result[:, ~column_inside] = fill
    return result


def take_valid(geometry: Geometry) -> np.ndarray:
    """(h, w) bool: true where an output pixel lies in the source, false in padding."""
    if not _straight(geometry):
        return _inside(*_places(geometry), geometry.source)
    _, rows = _axis(geometry.matrix[1, 1], geometry.matrix[1, 2], geometry.size[0], geometry.source[0])
    _, columns = _axis(geometry.matrix[0, 0], geometry.matrix[0, 2], geometry.size[1], geometry.source[1])
    inside: np.ndarray = rows[:, None] & columns
    return inside


def take_image(image: np.ndarray, geometry: Geometry) -> np.ndarray:
    """Resample an image (H, W, 3) uint8 by a geometry: bilinear, antialiased when reduced, mean colour outside.

    Equal to resizing the whole image and cropping, but only the crop is computed. For geometries that crop, scale and
    flip; :func:`tutelage.data.randaugment.alter` rotates and shears the result.
    """
    height, width = geometry.size
    step_x, step_y = abs(geometry.matrix[0, 0]), geometry.matrix[1, 1]
    flip = geometry.matrix[0, 0] < 0
    left = geometry.matrix[0, 2] - (width * step_x if flip else 0.0)
    top = geometry.matrix[1, 2]
    # Whole output pixels that lie inside the source; padding is only to the right and below.
    inner_w = min(width, round((image.shape[1] - left) / step_x))
    inner_h = min(height, round((image.shape[0] - top) / step_y))
    right, bottom = min(left + inner_w * step_x, image.shape[1]), min(top + inner_h * step_y, image.shape[0])
    if step_x == 1.0 and step_y == 1.0:
        x, y = round(left), round(top)
        result = image[y : y + inner_h, x : x + inner_w]
    else:
        # Pillow gets only the part of the source that the filter reads.
        margin_x, margin_y = int(_SUPPORT * max(step_x, 1.0)), int(_SUPPORT * max(step_y, 1.0))
        x0, y0 = max(int(left) - margin_x, 0), max(int(top) - margin_y, 0)
        x1, y1 = min(int(right) + margin_x + 1, image.shape[1]), min(int(bottom) + margin_y + 1, image.shape[0])
        part = Image.fromarray(np.ascontiguousarray(image[y0:y1, x0:x1]))
        box = (left - x0, top - y0, right - x0, bottom - y0)
        result = np.asarray(part.resize((inner_w, inner_h), Image.Resampling.BILINEAR, box=box))
    if (inner_h, inner_w) != (height, width):
        padded = np.empty((height, width, 3), dtype=np.uint8)
        padded[:] = FILL
        padded[:inner_h, :inner_w] = result
        result = padded
    return result[:, ::-1] if flip else result
