"""Pixel-wise knowledge distillation: the student copies the teacher's class distribution at every position.

    L = L_task + w * T^2 * mean over positions of KL(softmax(z_T / T) || softmax(z_S / T))

The simplest combination of :mod:`tutelage.methods.distillation`, under its own name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field

from tutelage.engine.contract import TaskInfo
from tutelage.methods.distillation.cache import CacheSettings
from tutelage.methods.distillation.distill import Distill, DistillSettings, Losses
from tutelage.methods.distillation.pixel_kd import PixelKDTermSettings
from tutelage.methods.supervised import TaskSettings, Weight
from tutelage.nets.segmentor import Segmentor
from tutelage.settings import Settings


class PixelKDSettings(Settings):
    """Pixel-wise distillation from a trained teacher."""

    temperature: Annotated[float, Field(gt=0)] = 1.0
    """T: above 1, both distributions are softened."""
    weight: Weight = 1.0
    """w: weight of the distillation term."""
    task: TaskSettings = TaskSettings()
    """The loss on labels beside it."""
    cache: CacheSettings | None = None
    """Replay what the teacher said once of every image; null: it sees every crop. The manual's page on training says
    when that pays."""

    def cache_temperature(self) -> float:
        """T."""
        return self.temperature


class PixelKD(Distill):
    """A frozen teacher and labels teach the student on the same crops."""

    Settings = PixelKDSettings
    version = 2

    def __init__(self, nets: Mapping[str, Segmentor], settings: PixelKDSettings, info: TaskInfo) -> None:
        term = PixelKDTermSettings(weight=settings.weight, temperature=settings.temperature)
        losses = Losses(pixel_kd=term)
        super().__init__(nets, DistillSettings(losses=losses, task=settings.task, cache=settings.cache), info)
