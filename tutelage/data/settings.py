"""Settings of images, views and streams. This module does not import torch; the code that uses the settings does."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from tutelage.data.augmentation import AugmentSettings
from tutelage.data.randaugment import CutoutSettings, RandAugmentSettings
from tutelage.data.rare_classes import SamplerSettings
from tutelage.settings import Ref, Settings

Probability = Annotated[float, Field(ge=0, le=1)]


Strength = Annotated[float, Field(ge=0, le=1)]


class ColourSettings(Settings):
    """Random colour jitter, greyscale conversion and blur. The defaults change nothing."""

    probability: Probability = 1.0
    """Probability of the colour jitter (brightness, contrast, saturation and hue together)."""
    brightness: Strength = 0.0
    """b: the brightness factor is drawn from [1 - b, 1 + b]."""
    contrast: Strength = 0.0
    """c: the contrast factor is drawn from [1 - c, 1 + c], around the image's mean grey."""
    saturation: Strength = 0.0
    """s: the saturation factor is drawn from [1 - s, 1 + s]."""
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """h: the hue shift is drawn from [-h, h], in full turns."""
    grey: Probability = 0.0
    """Probability of converting the image to greyscale."""
    blur: Probability = 0.0
    """Probability of Gaussian blur."""
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """Range of the standard deviation of the blur, in pixels."""


class ViewSettings(Settings):
    """One view of a sample."""

    colour: ColourSettings = ColourSettings()
    """Random colour jitter, greyscale conversion and blur."""
    augment: AugmentSettings | None = None
    """Geometry of this view; null: the geometry that the views of the stream share."""
    randaugment: RandAugmentSettings | None = None
    """Random colour and geometry operations applied to the crop; null: none."""
    cutout: CutoutSettings | None = None
    """Square that is erased after all other operations; null: none."""


class StreamSettings(Settings):
    """A stream of training batches."""

    data: Annotated[str | list[str], Ref("data", use="train", trains=True)]
    """Data sets of the stream: `name/split`, `name`, or the name of an `annotate` stage (pseudo labels) or of a
    `transform` stage. Several are pooled."""
    batch: Annotated[int, Field(gt=0)] = 8
    """Images per step, over all micro-batches and processes together."""
    augment: AugmentSettings = AugmentSettings()
    """Geometry that the views share."""
    views: dict[str, ViewSettings] = {}
    """Settings of the method's views. A view that is not listed has the method's defaults, for most views no
    augmentation beyond the shared geometry."""
    draws_of: Annotated[str, Ref("stream")] | None = None
    """Name of another stream whose random draws this one shares (same order, same crops)."""
    repeat: list[Annotated[int, Field(gt=0)]] | Literal["equal"] | None = None
    """Repetitions of each pooled data set in one round, one number per data set; `equal`: repeat each so that all are
    seen about as often as the largest."""
    weights: Annotated[str, Ref("fit", fits=("transferability",))] | None = None
    """`fit` stage of `transferability` on these images: per-pixel loss weights, for methods that weight pixels."""
    sampler: SamplerSettings | None = None
    """Sampler for rare classes: `kind: rare_classes` or `kind: small_classes`; null: every image once per round. A
    stream with `draws_of` needs the data and the sampler of the other stream."""


Window = Literal["symmetric", "corners"]


class StyleSettings(Settings):
    """Style transfer from one image to another."""

    kind: Literal["fda", "statistics"] = "fda"
    """`fda`: low-frequency amplitudes of the style image; `statistics`: its mean and standard deviation per CIELAB
    channel."""
    beta: Annotated[float, Field(ge=0, le=0.5)] = 0.01
    """fda: half-width of the frequency window, as a fraction of the shorter side."""
    window: Window = "symmetric"
    """fda: frequencies -b..b (`symmetric`), or -b..b-1 as in the published training code (`corners`)."""
    clip: bool = False
    """fda: clip the result to [0, 1]; the published code does not. Results of `statistics` are always clipped."""


Share = Annotated[float, Field(gt=0, le=1)]


class BoxSettings(Settings):
    """Boxes of the CutMix mask of CPS."""

    count: Annotated[int, Field(gt=0)] = 3
    """Boxes per image."""
    area: tuple[Share, Share] = (0.25, 0.5)
    """Smallest and largest area of a box as a fraction of the image; divided by the number of boxes."""

    @model_validator(mode="after")
    def _ordered(self) -> BoxSettings:
        if self.area[0] > self.area[1]:
            raise ValueError(f"area must be [smallest, largest], got {list(self.area)}")
        return self


ClassesFrom = Literal["image", "batch"]
"""Labels to draw from: those of the image itself, or those of all images of the micro-batch."""


PartnerRule = Literal["next", "reversed"]
"""Partner of image i of B: ``next`` is image (i + 1) mod B; ``reversed`` is image B - 1 - i, so that the middle image
of an odd batch is its own partner (UniMatch V2)."""


Mixing = Literal["cutmix", "classmix", "cutout"]
"""``cutmix``: a rectangle of the next image is pasted; ``classmix``: all but half of an image's classes are replaced by
the next image; ``cutout``: a rectangle is erased."""
