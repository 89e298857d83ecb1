"""Settings of images, views and streams; the code that reads them stands beside this module and imports torch."""

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
    """Random changes of colour and sharpness; the default changes nothing."""

    probability: Probability = 1.0
    """Probability of the colour jitter (brightness, contrast, saturation and hue together)."""
    brightness: Strength = 0.0
    """Brightness factor is drawn from 1 - b to 1 + b."""
    contrast: Strength = 0.0
    """Contrast factor is drawn from 1 - c to 1 + c, around the image's mean grey."""
    saturation: Strength = 0.0
    """Saturation factor is drawn from 1 - s to 1 + s."""
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Hue is turned by -h to h of a full circle."""
    grey: Probability = 0.0
    """Probability of a grey image."""
    blur: Probability = 0.0
    """Probability of Gaussian blur."""
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """Range of the blur's standard deviation in pixels."""


class ViewSettings(Settings):
    """One view of a sample."""

    colour: ColourSettings = ColourSettings()
    """Random changes of colour and sharpness."""
    augment: AugmentSettings | None = None
    """A geometry of its own; null: the one that the stream's views share."""
    randaugment: RandAugmentSettings | None = None
    """Random operations on top of the crop, of colour and geometry; null: none."""
    cutout: CutoutSettings | None = None
    """A square that is left out, after all else; null: none."""


class StreamSettings(Settings):
    """A stream of training batches."""

    data: Annotated[str | list[str], Ref("data", use="train", trains=True)]
    """Data set(s): `name/split`, `name`, or the name of an `annotate` stage (pseudo labels) or of a `transform` stage;
    several are pooled."""
    batch: Annotated[int, Field(gt=0)] = 8
    """Images per step, over all micro-batches and processes together."""
    augment: AugmentSettings = AugmentSettings()
    """Geometry that the views share."""
    views: dict[str, ViewSettings] = {}
    """Settings of the views that the method asks for; a view left out is as the method says, mostly plain."""
    draws_of: Annotated[str, Ref("stream")] | None = None
    """Name of another stream whose random draws this one shares (same order, same crops)."""
    repeat: list[Annotated[int, Field(gt=0)]] | Literal["equal"] | None = None
    """For pooled data sets: how often each is repeated in one round; ``equal``: so often that all are seen about as
    often as the largest."""
    weights: Annotated[str, Ref("fit", fits=("transferability",))] | None = None
    """A `fit` stage of `transferability` made of these images: how much each labelled pixel counts, for methods that
    weigh pixels."""
    sampler: SamplerSettings | None = None
    """Looks for rare classes in the masks: `kind: rare_classes` or `kind: small_classes`; null: images in turn. A
    stream that shares the draws of one with a sampler needs the same data and the same sampler."""


Window = Literal["symmetric", "corners"]


class StyleSettings(Settings):
    """How an image takes on the style of another."""

    kind: Literal["fda", "statistics"] = "fda"
    """`fda`: the style's low-frequency amplitudes; `statistics`: its mean and deviation per channel of CIELAB."""
    beta: Annotated[float, Field(ge=0, le=0.5)] = 0.01
    """fda: half-width of the window of frequencies, as a share of the shorter side."""
    window: Window = "symmetric"
    """fda: frequencies -b..b (`symmetric`), or -b..b-1 as in the published training code (`corners`)."""
    clip: bool = False
    """fda: bring the result back to 0..1; the published code does not. Results of `statistics` always are."""


Share = Annotated[float, Field(gt=0, le=1)]


class BoxSettings(Settings):
    """The boxes that decide which pixels come from the partner."""

    count: Annotated[int, Field(gt=0)] = 3
    """Boxes of each image."""
    area: tuple[Share, Share] = (0.25, 0.5)
    """Smallest and largest area of a box as a share of the image; divided by the number of boxes."""

    @model_validator(mode="after")
    def _ordered(self) -> BoxSettings:
        if self.area[0] > self.area[1]:
            raise ValueError(f"area {list(self.area)}: the first number is the smallest area, the second the largest")
        return self


ClassesFrom = Literal["image", "batch"]
"""Whose labels are drawn from: each image's own, or those of all images of the micro-batch."""


PartnerRule = Literal["next", "reversed"]
"""Which image of the batch is pasted: the one after it (the last takes the first), or the batch from its end, where the
middle of an odd number is its own partner (UniMatch V2)."""


Mixing = Literal["cutmix", "classmix", "cutout"]
"""cutmix: a rectangle comes from the next image; classmix: all but half of an image's classes do; cutout: a rectangle
is erased."""
