"""Supervised training, and the task loss that every other method shares.

    L = CE(up(z), y) + a * CE(up(z_aux), y) + d * Dice(up(z), y)

``up`` brings logits to the size of the labels by the rule of the settings. Cross-entropy may be weighted by class,
smoothed, or taken over the hard pixels alone (OHEM).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from tutelage.data.batch import Batch
from tutelage.engine.contract import Method, StepContext, TaskInfo
from tutelage.errors import RecipeError
from tutelage.losses.options import ResizeRule
from tutelage.losses.resize import resize_logits
from tutelage.losses.segmentation import cross_entropy, dice_loss, label_weight, ohem_cross_entropy
from tutelage.methods.settings.common import TaskSettings
from tutelage.methods.settings.supervised import SupervisedSettings
from tutelage.nets.segmentor import Prediction, Segmentor


class TaskLoss(nn.Module):
    """The task loss; holds the class weights as a buffer."""

    class_weight_K: Tensor | None

    def __init__(self, settings: TaskSettings, info: TaskInfo) -> None:
        super().__init__()
        self.settings = settings
        self.register_buffer("class_weight_K", _class_weights(settings, info))

    def counts(self, label_BHW: Tensor) -> Tensor:
        """The divisor of a cross-entropy over these labels."""
        return label_weight(label_BHW, self.class_weight_K)

    def forward(self, prediction: Prediction, stride: int, label_BHW: Tensor, normalizer: Tensor) -> dict[str, Tensor]:
        """The terms of one labelled batch."""
        settings = self.settings
        size = (label_BHW.shape[1], label_BHW.shape[2])
        logits_BKHW = resize_logits(prediction.logits, size, settings.resize, stride)
        terms: dict[str, Tensor] = {settings.loss: self._one(logits_BKHW, label_BHW, normalizer)}
        if settings.dice:
            terms["dice"] = settings.dice * dice_loss(logits_BKHW, label_BHW)
        if prediction.auxiliary is not None and settings.auxiliary:
            # The auxiliary head lies on another grid; only "corners" means the same there.
            rule: ResizeRule = "corners" if settings.resize == "corners" else "centers"
            auxiliary_BKHW = resize_logits(prediction.auxiliary, size, rule, stride)
            terms["auxiliary"] = settings.auxiliary * self._one(auxiliary_BKHW, label_BHW, normalizer)
        return terms

    def _one(self, logits_BKHW: Tensor, label_BHW: Tensor, normalizer: Tensor) -> Tensor:
        settings = self.settings
        if settings.loss == "ohem":
            return ohem_cross_entropy(
                logits_BKHW,
                label_BHW,
                threshold=settings.ohem_threshold,
                min_kept=settings.ohem_min_kept,
                class_weight_K=self.class_weight_K,
            )
        return cross_entropy(
            logits_BKHW,
            label_BHW,
            normalizer=normalizer,
            class_weight_K=self.class_weight_K,
            smoothing=settings.smoothing,
        )


def _class_weights(settings: TaskSettings, info: TaskInfo) -> Tensor | None:
    if settings.class_weights is None:
        return None
    if settings.class_weights == "balanced":
        counts = torch.as_tensor(info.pixel_counts(), dtype=torch.float64)
        share = counts / counts.sum().clamp(min=1)
        present = share > 0
        if not present.any():
            raise RecipeError(
                "no-labelled-pixels",
                "class_weights is balanced, but the training masks have no labelled pixel",
                "check the masks, or set class_weights to a list of numbers",
            )
        weight = torch.where(present, share[present].median() / share.clamp(min=1e-12), 1.0)
        return weight.float()
    if len(settings.class_weights) != info.classes:
        raise RecipeError(
            "class-weights-length",
            f"class_weights must have {info.classes} numbers, one per class, got {len(settings.class_weights)}",
            "give one weight per class, in the order of the class list",
        )
    return torch.tensor(settings.class_weights)


class Supervised(Method):
    """Labels alone: the baseline of everything, and how teachers are made."""

    Settings = SupervisedSettings

    def __init__(self, nets: Mapping[str, Segmentor], settings: SupervisedSettings, info: TaskInfo) -> None:
        super().__init__()
        self.student = nets["student"]
        self.task = TaskLoss(settings, info)

    def counts(self, batches: Mapping[str, Batch]) -> Mapping[str, Tensor]:
        """The weight of the valid labels."""
        return {"labeled": self.task.counts(batches["labeled"]["weak"].label)}

    def forward(self, batches: Mapping[str, Batch], pass_name: str, context: StepContext) -> dict[str, Tensor]:
        """One labelled batch."""
        view = batches["labeled"]["weak"]
        prediction = self.student(view.image)
        terms: dict[str, Tensor] = self.task(prediction, self.student.stride, view.label, context.normalizer("labeled"))
        return terms
