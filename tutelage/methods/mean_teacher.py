"""Mean Teacher for segmentation: a moving average of the student judges unlabelled images.

    L = CE(p_S(x_l), y) + w * MSE(softmax p_S, softmax p_T) over labelled and unlabelled images together

The mean runs over all images, classes and pixels at full size. Both nets see the same images. The teacher forwards
in batch-statistics mode with statistics of its own; its parameters follow the student's by a moving average after
every step (averaging at the start of step i + 1, as published, is averaging at the end of step i).
Source: the NeurIPS 2017 method in the segmentation form of the CPS repository.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from tutelage.data.batch import Batch
from tutelage.engine.contract import Method, StepContext, TaskInfo
from tutelage.losses.consistency import ramp_up
from tutelage.losses.distillation import probability_mse
from tutelage.losses.resize import over_image
from tutelage.methods.ema import average, decay_at, twin
from tutelage.methods.settings.mean_teacher import MeanTeacherSettings
from tutelage.methods.supervised import TaskLoss
from tutelage.nets.segmentor import Segmentor


class MeanTeacher(Method):
    """Few labels and many images: the student agrees with its own average."""

    Settings = MeanTeacherSettings

    def __init__(self, nets: Mapping[str, Segmentor], settings: MeanTeacherSettings, info: TaskInfo) -> None:
        super().__init__()
        self.student = nets["student"]
        self.ema = twin(self.student)
        self.task = TaskLoss(settings.task, info)
        self.settings = settings
        self.ema.mode(norm="batch", dropout=False)

    def exported(self) -> Mapping[str, nn.Module]:
        """The student, and its average beside it."""
        return {"student": self.student, "ema": self.ema}

    def counts(self, batches: Mapping[str, Batch]) -> Mapping[str, Tensor]:
        """The weight of the valid labels."""
        return {"labeled": self.task.counts(batches["labeled"]["weak"].label)}

    def forward(self, batches: Mapping[str, Batch], pass_name: str, context: StepContext) -> dict[str, Tensor]:
        """One labelled and one unlabelled batch, each seen by both nets."""
        labeled, unlabeled = batches["labeled"]["weak"], batches["unlabeled"]["weak"]
        with torch.no_grad():
            taught = [self._full(self.ema, self.ema(view.image).logits, view.image) for view in (labeled, unlabeled)]
        prediction = self.student(labeled.image)
        logits = [
            self._full(self.student, prediction.logits, labeled.image),
            self._full(self.student, self.student(unlabeled.image).logits, unlabeled.image),
        ]
        terms: dict[str, Tensor] = self.task(
            prediction, self.student.stride, labeled.label, context.normalizer("labeled")
        )
        # A mean over the pooled elements, so that the two batches may differ in size.
        sizes = [part.numel() for part in logits]
        parts = [
            probability_mse(mine, theirs) * (size / sum(sizes))
            for mine, theirs, size in zip(logits, taught, sizes, strict=True)
        ]
        weight = self.settings.weight * ramp_up(context.step, self.settings.ramp_steps)
        terms["consistency"] = weight * torch.stack(parts).sum()
        return terms

    def after_step(self, context: StepContext) -> None:
        """The average follows."""
        average(self.ema, self.student, decay_at(context.step + 1, self.settings.decay, self.settings.ramp_decay))

    def _full(self, net: Segmentor, logits: Tensor, image: Tensor) -> Tensor:
        return over_image(logits, image, self.settings.task.resize, net.stride)
