"""Samplers for rare classes: they choose the next image and its crop.

    rare_classes   f_c = fraction of class c among all labelled pixels;  P(c) = softmax((1 - f_c) / T) over the classes
                   that occur. Draw c from P, then an image uniformly from those with enough pixels of c, then crops
                   until one has enough pixels of c.
    small_classes  every image once per round; with some probability the crop is centred on a pixel of a class with few
                   pixels.

The first is from DAFormer (CVPR 2022), for labelled source data; the second is from class-balanced self-training (CBST,
ECCV 2018), for pseudo labels. Both are functions of (seed, stream, position).
"""

# Legend: N images of the stream, C classes, H W pixels.

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from tutelage.data.augmentation import Geometry
from tutelage.data.draws import generator
from tutelage.errors import DataError
from tutelage.settings import Settings

# DAFormer requires 3000 pixels, counted in GTA5's masks and again in its crops.
_OF_IMAGE = 3000 / (1914 * 1052)
_OF_CROP = 3000 / (512 * 512)


class RareClassSettings(Settings):
    """Rare-class sampling of DAFormer: draw a class, rare classes more often, then an image that contains it."""

    kind: Literal["rare_classes"] = "rare_classes"
    temperature: Annotated[float, Field(gt=0)] = 0.01
    """T: smaller values draw the rarest classes more often."""
    pixels: Annotated[int, Field(ge=0)] | None = None
    """An image is drawn for a class only if its mask has more pixels of the class than this. Null: 3000 for a mask of
    1914x1052 and a crop of 512x512 as published, and in proportion for other sizes. If no image has as many, the images
    with more than half of the largest count are used."""
    crop_share: Annotated[float, Field(ge=0)] = 0.5
    """A crop must contain more than this fraction of `pixels`, or one pixel if no image has enough."""
    tries: Annotated[int, Field(gt=0)] = 10
    """Crops to try; if none contains enough pixels, the last one is kept."""


class SmallClassSettings(Settings):
    """Crops centred on the smallest classes, as in CBST."""

    kind: Literal["small_classes"] = "small_classes"
    share: Annotated[float, Field(gt=0, le=1)] = 0.001
    """A class is small if it has less than this fraction of all labelled pixels."""
    probability: Annotated[float, Field(ge=0, le=1)] = 0.8
    """Probability of centring the crop on a pixel of a small class, for images that contain one."""


SamplerSettings = Annotated[RareClassSettings | SmallClassSettings, Field(discriminator="kind")]
"""Settings of a sampler, by `kind`."""


def class_probabilities(pixels_NC: NDArray[np.integer], temperature: float) -> NDArray[np.float64]:
    """P(c) (C,) of rare-class sampling from pixel counts per image and class; 0 for classes that never occur.

    Raises :class:`DataError` (``sampler-labels``) if no class occurs. Source: DAFormer (CVPR 2022), equations 9 and 10.
    """
    pixels_C = pixels_NC.sum(0).astype(np.float64)
    if not pixels_C.any():
        raise DataError(
            "sampler-labels",
            "sampler needs labelled pixels, but the masks of its stream have none",
            "check the masks, or remove `sampler`",
        )
    exponent_C = np.where(pixels_C > 0, (1.0 - pixels_C / pixels_C.sum()) / temperature, -np.inf)
    chance_C = np.exp(exponent_C - exponent_C.max())
    share_C: NDArray[np.float64] = chance_C / chance_C.sum()
    return share_C


class RareClassSampler:
    """Draws a class, then an image that contains it."""

    def __init__(
        self, settings: RareClassSettings, pixels_NC: NDArray[np.integer], area_N: NDArray[np.integer]
    ) -> None:
        """``pixels_NC``: pixels of each class in each mask; ``area_N``: all pixels of each mask."""
        self.settings = settings
        chance_C = class_probabilities(pixels_NC, settings.temperature)
        self._cumulated_C, self._last = chance_C.cumsum(), int(np.flatnonzero(chance_C)[-1])
        bound_N = area_N * _OF_IMAGE if settings.pixels is None else np.full(len(area_N), settings.pixels)
        enough_NC = pixels_NC > bound_N[:, None]
        self._rare_C: NDArray[np.bool_] = np.logical_not(enough_NC.any(axis=0))  # no image has enough of these
        # More than half of the largest count: the image with the largest is always included.
        many_NC = 2 * pixels_NC > pixels_NC.max(0, initial=0)
        self._images = [np.flatnonzero(column) for column in np.where(self._rare_C, many_NC, enough_NC).T]

    def draw(self, seed: int, stream: str, position: int) -> tuple[int, int]:
        """Draw the class and the image index of one position."""
        draw = generator(seed, stream, "rare class", position)
        # side="right" never selects a class of probability 0; min() because rounding may leave the sum below 1.
        chosen = min(int(np.searchsorted(self._cumulated_C, draw.random(), side="right")), self._last)
        images = self._images[chosen]
        return chosen, int(images[draw.integers(len(images))])

    def shows(self, class_: int, label_HW: NDArray[np.integer]) -> bool:
        """Whether the label of a crop contains enough pixels of a class."""
        shown, settings = int(np.count_nonzero(label_HW == class_)), self.settings
        if self._rare_C[class_]:
            return shown > 0
        pixels = label_HW.size * _OF_CROP if settings.pixels is None else settings.pixels
        return shown > settings.crop_share * pixels


class SmallClassSampler:
    """Centres crops on classes with few pixels."""

    def __init__(self, settings: SmallClassSettings, pixels_NC: NDArray[np.integer]) -> None:
        """``pixels_NC``: pixels of each class in each mask."""
        self.settings = settings
        pixels_C = pixels_NC.sum(0)
        self.classes: NDArray[np.int64] = np.flatnonzero((pixels_C > 0) & (pixels_C < settings.share * pixels_C.sum()))

    def point(self, label_HW: NDArray[np.integer], seed: int, stream: str, position: int) -> tuple[float, float] | None:
        """Centre (y, x) of a random pixel of a small class in this mask; ``None``: leave the crop unchanged."""
        draw = generator(seed, stream, "small class", position)
        if draw.random() >= self.settings.probability:
            return None
        present = np.bincount(label_HW.ravel(), minlength=256)[self.classes] > 0
        if not present.any():
            return None
        places = np.flatnonzero(label_HW.ravel() == draw.choice(self.classes[present]))
        row, column = divmod(int(places[draw.integers(len(places))]), label_HW.shape[1])
        return row + 0.5, column + 0.5


def centred(geometry: Geometry, point: tuple[float, float]) -> Geometry:
    """A crop of the same size, scale and flip around a point (y, x) of the source, shifted to lie inside the source."""
    step_y, step_x = float(geometry.matrix[1, 1]), abs(float(geometry.matrix[0, 0]))
    scaled = (round(geometry.source[0] / step_y), round(geometry.source[1] / step_x))
    (height, width), (y, x) = geometry.size, point
    top = min(max(round(y / step_y - height / 2), 0), max(scaled[0] - height, 0))
    left = min(max(round(x / step_x - width / 2), 0), max(scaled[1] - width, 0))
    return Geometry.crop(geometry.source, scaled, (top, left), geometry.size, bool(geometry.matrix[0, 0] < 0))
