"""Self-distillation on two domains: a net starts anew, or goes on, under its trained predecessor.

    L = CE(source) + T(z, y) + w mean over pixels and classes of p_T (log p_T - log p)

y are pseudo labels that an `annotate` stage wrote, T is cross-entropy, or a CE + b RCE. The teacher, in evaluation
mode, sees the image that the student sees. These are stages 2 and 3 of ProDA (CVPR 2021), stage 3 of PBAL, and the
two distillations of BiSMAP, which weighs the source's pixels besides.

Legend: B batch, K classes, H W pixels of a view, h w the grid of targets.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from tutelage.data.batch import Batch, View
from tutelage.engine.contract import Method, Pass, StepContext, TaskInfo
from tutelage.losses.regions import shrink_labels
from tutelage.losses.resize import over_image
from tutelage.losses.segmentation import IGNORE, cross_entropy
from tutelage.losses.symmetric import mean_kd, symmetric_cross_entropy
from tutelage.methods.settings.self_distill import SelfDistillSettings
from tutelage.methods.supervised import TaskLoss
from tutelage.methods.target_grid import TargetGrid
from tutelage.nets.segmentor import Prediction, Segmentor


class SelfDistill(Method):
    """Labels of one domain, pseudo labels and a teacher for the other: a net is distilled into a better start."""

    Settings = SelfDistillSettings

    def __init__(self, nets: Mapping[str, Segmentor], settings: SelfDistillSettings, info: TaskInfo) -> None:
        super().__init__()
        self.student = nets["student"]
        self.teacher = nets["teacher"]
        self.task = TaskLoss(settings.task, info)
        self.grid = TargetGrid(settings.grid, settings.task.resize)
        self.settings = settings

    def passes(self, step: int) -> tuple[Pass, ...]:
        """The source first, by itself; gradients add up."""
        return (Pass("source", {"student"}), Pass("target", {"student"}))

    def counts(self, batches: Mapping[str, Batch]) -> Mapping[str, Tensor]:
        """Valid labels of the source, and pseudo labels on their grid."""
        label_Bhw = self._labels(batches["target"][self.settings.view])
        source = batches["source"]["weak"]
        weighted = "weight" in source.maps  # as in BiSMAP, pixels and not their weights are counted
        labelled = (source.label != IGNORE).sum().float() if weighted else self.task.counts(source.label)
        return {"source": labelled, "target": (label_Bhw != IGNORE).sum().float()}

    def forward(self, batches: Mapping[str, Batch], pass_name: str, context: StepContext) -> dict[str, Tensor]:
        """The source's labels, or the target's and the teacher."""
        if pass_name == "source":
            view = batches["source"]["weak"]
            return self._source(self.student(view.image), view, context)
        return self._target(batches["target"][self.settings.view], context)

    def _source(self, prediction: Prediction, view: View, context: StepContext) -> dict[str, Tensor]:
        if "weight" not in view.maps:
            terms: dict[str, Tensor] = self.task(
                prediction, self.student.stride, view.label, context.normalizer("source")
            )
            return terms
        logits_BKHW = over_image(prediction.logits, view.image, self.settings.task.resize, self.student.stride)
        loss_BHW = F.cross_entropy(logits_BKHW.float(), view.label, ignore_index=IGNORE, reduction="none")
        return {"cross_entropy": (loss_BHW * view.maps["weight"]).sum() / context.normalizer("source")}

    def _target(self, view: View, context: StepContext) -> dict[str, Tensor]:
        settings, normalizer = self.settings, context.normalizer("target")
        label_Bhw = self._labels(view)
        student_BKhw = self.grid.bring(self.student(view.image).logits, view, self.student.stride)
        if settings.target_loss == "symmetric":
            target = symmetric_cross_entropy(
                student_BKhw, label_Bhw, alpha=settings.alpha, beta=settings.beta, normalizer=normalizer
            )
        else:
            target = cross_entropy(student_BKhw, label_Bhw, normalizer=normalizer)
        terms = {"pseudo_labels": target}
        if settings.kd:
            with torch.no_grad():
                teacher_BKhw = self.grid.bring(self.teacher(view.image).logits, view, self.teacher.stride)
            terms["kd"] = settings.kd * mean_kd(student_BKhw, teacher_BKhw, settings.form)
        return terms

    def _labels(self, view: View) -> Tensor:
        """The view's pseudo labels on the grid: (B, h, w)."""
        return shrink_labels(view.label, self.grid.size(view))
