"""Settings of masked consistency, the term of MIC."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from tutelage.data.settings import ColourSettings
from tutelage.methods.settings.common import Decay, Weight
from tutelage.settings import Settings


class MaskedConsistencySettings(Settings):
    """Masked target images, with the host's own pseudo labels and colours."""

    weight: Weight = 1.0
    """Weight of the term."""
    ratio: Annotated[float, Field(ge=0, le=1)] = 0.7
    """Share of blocks that are hidden, on average."""
    block: Annotated[int, Field(gt=0)] = 32
    """Side of a block in pixels; published 32 for crops of 512, 64 for crops of 1024."""
    colours: bool = True
    """Whether colours of the masked image change, too; published, except for real sources (Cityscapes to ACDC)."""


class MaskedConsistencyWithAverageSettings(MaskedConsistencySettings):
    """Masked target images, with pseudo labels by a moving average, for a host without one."""

    threshold: Annotated[float, Field(ge=0, le=1)] = 0.968
    """A pseudo label of at least this confidence is sure."""
    decay: Decay = 0.999
    """Decay of the moving average, at most; it begins with 1 - 1/n."""
    colour: ColourSettings = ColourSettings(
        probability=0.8, brightness=0.2, contrast=0.2, saturation=0.2, hue=0.2, blur=0.5, blur_sigma=(0.15, 1.15)
    )
    """Colours of masked images. Whether they change is drawn once a step, how much for each image."""
