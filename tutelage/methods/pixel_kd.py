"""Pixel-wise knowledge distillation: the student copies the teacher's class distribution at every position.

    L = L_task + w * T^2 * mean over positions of KL(softmax(z_T / T) || softmax(z_S / T))

Taken on the student's grid; a teacher whose logits lie on another grid is resized to it. Ignored and padded
positions count. Source: the classic 2015 form, per pixel, as CIRKD and its baselines use it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from tutelage.data.views import Batch
from tutelage.engine.contract import Facts, Method, Needs, Tick
from tutelage.losses.distillation import pixel_kd
from tutelage.losses.resize import resize_logits
from tutelage.methods.supervised import TaskLoss, TaskSettings, Weight
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


class PixelKD(Method):
    """A frozen teacher and labels teach the student on the same crops."""

    Settings = PixelKDSettings
    streams = {"labeled": Needs(labels=True, views=("weak",), about="images with masks")}
    teachers = ("teacher",)

    def __init__(self, nets: Mapping[str, Segmentor], settings: PixelKDSettings, facts: Facts) -> None:
        super().__init__()
        self.student = nets["student"]
        self.teacher = nets["teacher"]
        self.task = TaskLoss(settings.task, facts)
        self.settings = settings

    def counts(self, batches: Mapping[str, Batch]) -> Mapping[str, Tensor]:
        """The weight of the valid labels."""
        return {"labeled": self.task.counts(batches["labeled"]["weak"].label)}

    def forward(self, batches: Mapping[str, Batch], pass_name: str, tick: Tick) -> dict[str, Tensor]:
        """One labelled batch, seen by both nets."""
        view = batches["labeled"]["weak"]
        with torch.no_grad():
            taught = self.teacher(view.image).logits
        prediction = self.student(view.image)
        terms: dict[str, Tensor] = self.task(prediction, self.student.stride, view.label, tick.share("labeled"))
        grid = (prediction.logits.shape[2], prediction.logits.shape[3])
        if taught.shape[2:] != prediction.logits.shape[2:]:
            taught = resize_logits(taught, grid, "centers", self.teacher.stride)
        terms["pixel_kd"] = self.settings.weight * pixel_kd(prediction.logits, taught, self.settings.temperature)
        return terms
