"""Settings of FixMatch, UniMatch and UniMatch V2 alike."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from tutelage.data.settings import ColourSettings, PartnerRule, ViewSettings
from tutelage.engine.settings import MethodSettings
from tutelage.methods.settings.common import TaskSettings, Weight


class StrongViewSettings(MethodSettings):
    """Settings of all methods with strong views."""

    weight: Weight = 1.0
    """Weight of the unlabelled loss beside the labelled one."""
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.95
    """Pixels whose pseudo label has at least this confidence are learned from; 0: all."""
    cutmix: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Probability, per image and strong view, that a box of another image is pasted."""
    partner: PartnerRule = "next"
    """Whose box: the `next` image's of the micro-batch, or that of the micro-batch in `reversed` order."""
    task: TaskSettings = TaskSettings()
    """The loss on labels."""


STRONG_VIEW = ViewSettings(
    colour=ColourSettings(probability=0.8, brightness=0.5, contrast=0.5, saturation=0.5, hue=0.25, grey=0.2, blur=0.5)
)
"""The published colours of a strong view, for recipes that name none."""
