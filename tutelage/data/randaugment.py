"""RandAugment and cutout: random operations from a list, and an erased square, on top of a view's crop.

Pillow applies the colour operations to the crop in the order in which they were drawn. The geometric operations are
composed into one affine map, in that order too, and the crop is resampled once. Pixels that one operation moves out of
the crop can thus be moved back by another, nothing is blurred twice, and the geometry of the view stays exact:
:func:`tutelage.data.batch.warp` replays it. Published implementations resample the image for each operation and fill
the empty pixels each time, so that later colour operations change the fill, too.

Legend: H W pixels of the view.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import numpy as np
from PIL import Image, ImageEnhance, ImageOps
from pydantic import Field, model_validator

from tutelage.data.augmentation import Geometry, take_map, take_valid
from tutelage.data.draws import generator
from tutelage.data.labels import IGNORE
from tutelage.settings import Settings

Probability = Annotated[float, Field(ge=0, le=1)]
Byte = Annotated[int, Field(ge=0, le=255)]
Level = Annotated[int, Field(ge=0, le=10)]


class RandAugmentSettings(Settings):
    """Random operations as in FixMatch. The defaults are those of ProDA and BiSMAP, apart from their flips."""

    operations: Annotated[int, Field(ge=1)] = 2
    """Operations drawn per image, with replacement."""
    probability: Probability = 0.5
    """Probability of applying each drawn operation."""
    magnitudes: tuple[Level, Level] = (1, 9)
    """Range of the magnitude, in tenths of each operation's maximum."""
    geometric: bool = True
    """Whether to include rotation, shear and translation; if false, only colours change."""
    flip: Probability = 0.0
    """Probability of a horizontal flip before the operations (ProDA: 0.5)."""
    fill: Byte = 127
    """Grey level of pixels from outside the crop; they are marked invalid."""

    @model_validator(mode="after")
    def _range(self) -> RandAugmentSettings:
        if self.magnitudes[0] > self.magnitudes[1]:
            raise ValueError(f"magnitudes must be [smallest, largest], got {list(self.magnitudes)}")
        return self


class CutoutSettings(Settings):
    """One square that is erased from every image; its pixels are marked invalid."""

    share: Annotated[float, Field(gt=0, le=1)] = 1 / 3
    """Side of the square as a fraction of a side of the view, see `of` (ProDA: 1/3; BiSMAP: 0.2)."""
    of: Literal["shorter", "width"] = "shorter"
    """Side of the view that `share` refers to: the shorter side (ProDA) or the width (BiSMAP)."""
    fill: Byte = 127
    """Grey level of the square (BiSMAP: 0)."""


class Operation(NamedTuple):
    """One operation and its strength, in the operation's own unit."""

    name: str
    amount: float


Enhance = Callable[[Image.Image, float], Image.Image]

_COLOUR: dict[str, Enhance] = {
    "autocontrast": lambda image, _: ImageOps.autocontrast(image),
    "brightness": lambda image, factor: ImageEnhance.Brightness(image).enhance(factor),
    "colour": lambda image, factor: ImageEnhance.Color(image).enhance(factor),
    "contrast": lambda image, factor: ImageEnhance.Contrast(image).enhance(factor),
    "equalise": lambda image, _: ImageOps.equalize(image),
    "identity": lambda image, _: image,
    "posterise": lambda image, bits: ImageOps.posterize(image, int(bits)),
    "sharpness": lambda image, factor: ImageEnhance.Sharpness(image).enhance(factor),
    "solarise": lambda image, threshold: ImageOps.solarize(image, int(threshold)),
}
_GEOMETRIC = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
OPERATIONS = (*_COLOUR, *_GEOMETRIC)
"""The 14 operations of FixMatch."""


@dataclass(frozen=True)
class Alteration:
    """Operations and cutout drawn for one crop."""

    operations: tuple[Operation, ...] = ()
    """Applied operations, in order."""
    flip: bool = False
    cutout: tuple[int, int, int, int] = (0, 0, 0, 0)
    """Left, top, right, bottom in pixels of the view; the last two are exclusive. An empty box: no cutout."""
    fills: tuple[int, int] = (127, 127)
    """Grey levels outside the crop and in the cutout."""


class Cut(NamedTuple):
    """A view before colour augmentation on the device."""

    image_HW3: np.ndarray
    """uint8."""
    valid_HW: np.ndarray
    """bool."""
    maps: dict[str, np.ndarray]
    """(H, W) uint8 each; in invalid pixels `label` is 255 and other maps are 0."""
    geometry: Geometry


def draw_alteration(
    randaugment: RandAugmentSettings | None,
    cutout: CutoutSettings | None,
    size: tuple[int, int],
    seed: int,
    stream: str,
    position: int,
) -> Alteration:
    """Draw the alteration of a crop (H, W) at one position of a stream; a pure function of its arguments."""
    operations: tuple[Operation, ...] = ()
    flip = False
    if randaugment is not None:
        operations = _drawn(randaugment, size, generator(seed, stream, "randaugment", position))
        flip = bool(generator(seed, stream, "randaugment flip", position).random() < randaugment.flip)
    fills = (127 if randaugment is None else randaugment.fill, 127 if cutout is None else cutout.fill)
    box = (0, 0, 0, 0) if cutout is None else _box(cutout, size, generator(seed, stream, "cutout", position))
    return Alteration(operations, flip, box, fills)


def alter(crop: Cut, source: Mapping[str, np.ndarray], alteration: Alteration) -> Cut:
    """Apply an alteration to a crop; ``source`` holds the maps of the whole image, by name.

    Pixels from outside the crop or inside the cutout are invalid: one grey level in the image, 255 in the label, 0 in
    other maps. The maps are resampled once, from the source by the new geometry (nearest pixel).
    """
    image, valid, maps, geometry = crop
    coloured = Image.fromarray(np.ascontiguousarray(image))
    for name, amount in alteration.operations:
        if name in _COLOUR:
            coloured = _COLOUR[name](coloured, amount)
    matrix = crop_matrix(alteration, geometry.size)
    if not np.array_equal(matrix, np.eye(3)):
        height, width = geometry.size
        coloured = coloured.transform(
            (width, height), Image.Transform.AFFINE, matrix[:2].ravel().tolist(), Image.Resampling.BILINEAR
        )
        own = np.vstack((geometry.matrix, (0.0, 0.0, 1.0)))
        geometry = Geometry((own @ matrix)[:2], geometry.source, geometry.size)
        shown = take_valid(Geometry(matrix[:2], geometry.size, geometry.size))
        valid = take_valid(geometry) & shown
        maps = {name: take_map(values, geometry, _nothing(name)) for name, values in source.items()}
    result, valid = np.array(coloured), valid.copy()
    result[~valid] = alteration.fills[0]
    left, top, right, bottom = alteration.cutout
    result[top:bottom, left:right] = alteration.fills[1]
    valid[top:bottom, left:right] = False
    maps = {name: np.where(valid, values, np.asarray(_nothing(name), values.dtype)) for name, values in maps.items()}
    return Cut(result, valid, maps, geometry)


def crop_matrix(alteration: Alteration, size: tuple[int, int]) -> np.ndarray:
    """Matrix (3, 3) from (x, y, 1) in the altered crop of ``size`` (H, W) to (x, y, 1) in the crop.

    Pillow's conventions: shears keep the top or the left edge, rotation keeps the centre. The centre of pixel i is
    i + 0.5.
    """
    width = size[1]
    matrix = np.eye(3)
    if alteration.flip:
        matrix = np.array([[-1.0, 0.0, width], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    for operation in alteration.operations:
        # The map goes from result to input: the operation applied last is inverted first.
        matrix = matrix @ _back(operation, size)
    return matrix


def _back(operation: Operation, size: tuple[int, int]) -> np.ndarray:
    """Matrix from coordinates after a geometric operation to coordinates before it; identity for colour operations."""
    height, width = size
    amount = operation.amount
    back = np.eye(3)
    match operation.name:
        case "shear_x":
            back[0, 1] = amount
        case "shear_y":
            back[1, 0] = amount
        case "translate_x":
            back[0, 2] = amount
        case "translate_y":
            back[1, 2] = amount
        case "rotate":
            cosine, sine = math.cos(math.radians(amount)), math.sin(math.radians(amount))
            turn = np.array([[cosine, -sine], [sine, cosine]])
            centre = np.array([width / 2, height / 2])
            back[:2, :2] = turn
            back[:2, 2] = centre - turn @ centre
    return back


def _drawn(settings: RandAugmentSettings, size: tuple[int, int], draw: np.random.Generator) -> tuple[Operation, ...]:
    names = OPERATIONS if settings.geometric else tuple(_COLOUR)
    low, high = settings.magnitudes
    operations = []
    for _ in range(settings.operations):
        name = names[draw.integers(len(names))]
        level, coin, positive = int(draw.integers(low, high + 1)), draw.random(), draw.random() < 0.5
        if coin < settings.probability and name != "identity":
            operations.append(Operation(name, _amount(name, level, 1 if positive else -1, size)))
    return tuple(operations)


def _amount(name: str, level: int, sign: int, size: tuple[int, int]) -> float:
    """Strength of an operation at a level of 0 to 10 (parameters of ProDA and FixMatch)."""
    height, width = size
    match name:
        case "brightness" | "colour" | "contrast" | "sharpness":
            return 0.9 * level / 10 + 0.05
        case "posterise":
            return 4 * level // 10 + 4
        case "solarise":
            return 256 - 256 * level // 10
        case "rotate":
            return sign * (30 * level // 10)
        case "shear_x" | "shear_y":
            return sign * 0.3 * level / 10
        case "translate_x":
            return sign * (3 * level * width // 100)
        case "translate_y":
            return sign * (3 * level * height // 100)
        case _:
            return 0.0


def _box(settings: CutoutSettings, size: tuple[int, int], draw: np.random.Generator) -> tuple[int, int, int, int]:
    """A square around a random point; as published, moved inside at the left and top, clipped right and bottom."""
    height, width = size
    # 1e-6: 1 / 3 as a float is slightly less than a third.
    side = int(settings.share * (width if settings.of == "width" else min(size)) + 1e-6)
    x, y = draw.uniform(0, width), draw.uniform(0, height)
    left, top = int(max(0.0, x - side / 2)), int(max(0.0, y - side / 2))
    return left, top, min(width, left + side), min(height, top + side)


def _nothing(name: str) -> int:
    return IGNORE if name == "label" else 0
