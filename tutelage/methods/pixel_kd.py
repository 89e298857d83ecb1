"""Pixel-wise knowledge distillation: the student copies the teacher's class distribution at every position.

    L = L_task + w * T^2 * mean over positions of KL(softmax(z_T / T) || softmax(z_S / T))

The simplest combination of :mod:`tutelage.methods.distillation`, under its own name.
"""

from __future__ import annotations

from collections.abc import Mapping

from tutelage.engine.contract import TaskInfo
from tutelage.methods.distillation.distill import Distill
from tutelage.methods.settings.distill import DistillSettings, Losses
from tutelage.methods.settings.distill_terms import PixelKDTermSettings
from tutelage.methods.settings.pixel_kd import PixelKDSettings
from tutelage.nets.segmentor import Segmentor


class PixelKD(Distill):
    """A frozen teacher and labels teach the student on the same crops."""

    Settings = PixelKDSettings
    version = 2

    def __init__(self, nets: Mapping[str, Segmentor], settings: PixelKDSettings, info: TaskInfo) -> None:
        term = PixelKDTermSettings(weight=settings.weight, temperature=settings.temperature)
        losses = Losses(pixel_kd=term)
        super().__init__(nets, DistillSettings(losses=losses, task=settings.task, cache=settings.cache), info)
