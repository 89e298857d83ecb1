"""Settings of DAFormer."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from tutelage.data.settings import ClassesFrom, ColourSettings
from tutelage.methods.settings.common import Decay, Weight
from tutelage.methods.settings.mixed_self_training import MixedSettings
from tutelage.settings import Settings


class FeatureDistanceSettings(Settings):
    """The distance of the encoder's features to those of its start."""

    weight: Weight = 0.005
    """Weight of the distance."""
    things: list[int | str] | None = None
    """Names or numbers of the classes whose features are compared; null: all. Published: thing classes of ImageNet."""
    share: Annotated[float, Field(gt=0, le=1)] = 0.75
    """A cell of the features belongs to the class that covers at least this share of it."""


class DAFormerSettings(MixedSettings):
    """DAFormer."""

    implementation: ClassVar[str] = "tutelage.methods.daformer:DAFormer"

    feature_distance: FeatureDistanceSettings | None = FeatureDistanceSettings()
    """The distance to the encoder's first features; null: none."""
    classes_from: ClassesFrom = "batch"
    """Half of whose classes is pasted: each source `image`'s, or those of the whole (micro-)`batch`."""
    decay: Decay = 0.999
    """Decay of the moving average, at most; it begins with 1 - 1/n."""
    reduction: Literal["valid", "all"] = "all"
    """The loss on source labels is divided by the number of valid pixels, or of all."""
    colour: ColourSettings = ColourSettings(
        probability=0.8, brightness=0.2, contrast=0.2, saturation=0.2, hue=0.2, blur=0.5, blur_sigma=(0.15, 1.15)
    )
    """Colours of mixed images. Whether they change is drawn once a step, how much for each image."""

    first_update: ClassVar[int] = 1
