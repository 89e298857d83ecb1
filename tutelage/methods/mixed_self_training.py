"""The base of DACS, DAFormer, HRDA and MIC: target images with pseudo labels, pasted over with source images.

    source   L_S = CE(student(x_S), y_S)
    mixed    L_M = sum over pixels of w CE(student(T(x_M)), y_M) / their number
             x_M, y_M    the source's image and labels where m, else the target's image and pseudo labels; T: colours
             w           1 where m, else q: the share of target pixels whose pseudo label is sure
    masked   L_K = the same with weight q, of target images with most blocks hidden (masked consistency, optional)

m shows half of the source's classes (:mod:`tutelage.data.mixing.classmix`). The pseudo labels are those of a moving
average of the student. Each line is a pass of its own: published codes go backward after each, which bounds memory.

q is taken over the whole step, all micro-batches and processes: the average labels the target images when the step's
counts are made, which is before its first pass.

Legend: B images, K classes, H W pixels, h w a map's grid.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from tutelage.data.batch import Batch, View, places
from tutelage.data.mixing import paste
from tutelage.data.mixing.classmix import class_masks, draw_scores
from tutelage.data.mixing.recolour import draw_colours, recoloured
from tutelage.engine.contract import Method, Pass, StepContext, TaskInfo
from tutelage.errors import RecipeError
from tutelage.losses.resize import over_image
from tutelage.methods.ema import average, decay_at, twin
from tutelage.methods.masked_consistency import (
    AverageLabels,
    TargetPseudoLabels,
    masked_images,
    mixed_loss,
    number_of,
)
from tutelage.methods.settings.mixed_self_training import MarginSettings, MixedSettings
from tutelage.methods.supervised import TaskLoss
from tutelage.nets.segmentor import Prediction, Segmentor


class MixedSelfTraining(Method):
    """The student, its average, and the passes that the papers share."""

    def __init__(self, nets: Mapping[str, Segmentor], settings: MixedSettings, info: TaskInfo) -> None:
        super().__init__()
        self.student = nets["student"]
        self.ema = twin(self.student)
        self.ema.mode(norm="batch", dropout=False)
        self.task = TaskLoss(settings.task, info)
        self.mixing = settings
        self.classes = info.classes
        self.pseudo_labels = AverageLabels(settings.threshold, self._average_logits)

    def passes(self, step: int) -> tuple[Pass, ...]:
        """Source, mixed images, and masked ones with masked consistency; each goes backward before the next."""
        names = ("source", "mixed") if self.mixing.masked_consistency is None else ("source", "mixed", "masked")
        return tuple(Pass(name, {"student"}) for name in names)

    def exported(self) -> Mapping[str, nn.Module]:
        """The student, and its average beside it."""
        return {"student": self.student, "ema": self.ema}

    def counts(self, batches: Mapping[str, Batch]) -> Mapping[str, Tensor]:
        """The divisor of the source's loss, the number of target pixels, and how many of them are sure."""
        label = batches["source"]["weak"].label
        number = self.task.counts(label) if self.mixing.reduction == "valid" else number_of(label)
        return {"source": number, **self.pseudo_labels.counts(batches["target"])}

    def forward(self, batches: Mapping[str, Batch], pass_name: str, context: StepContext) -> dict[str, Tensor]:
        """One pass over a source and a target batch."""
        source, target = batches["source"]["weak"], batches["target"]
        if pass_name == "source":
            return self.source_terms(source, context)
        pseudo = self.pseudo_labels.of(target)
        weight_BHW = self._weights(target["weak"], pseudo, context)
        if pass_name == "mixed":
            return self._mixed(source, target, pseudo, weight_BHW, context)
        return self._masked(target, pseudo, weight_BHW, context)

    def after_step(self, context: StepContext) -> None:
        """The average follows in parameters; its batch norm has statistics of its own."""
        self.pseudo_labels.forget()
        decay = decay_at(context.step + self.mixing.first_update, self.mixing.decay, ramp=True)
        average(self.ema, self.student, decay)

    # HRDA overrides these

    def source_terms(self, view: View, context: StepContext) -> dict[str, Tensor]:
        """The terms of a source batch."""
        prediction = self.student(view.image)
        return {
            **self.supervised(prediction, view, context),
            **self.feature_distance_terms(prediction, view.image, view.label),
        }

    def supervised(self, prediction: Prediction, view: View, context: StepContext) -> dict[str, Tensor]:
        """The loss on labels."""
        terms: dict[str, Tensor] = self.task(prediction, self.student.stride, view.label, context.normalizer("source"))
        return terms

    def feature_distance_terms(
        self, prediction: Prediction, image_B3hw: Tensor, label_BHW: Tensor
    ) -> dict[str, Tensor]:
        """More terms of a source batch; ``image`` is the input of the prediction's features."""
        return {}

    def pseudo_label_loss(
        self, image_B3HW: Tensor, label_BHW: Tensor, weight_BHW: Tensor, context: StepContext
    ) -> Tensor:
        """The loss of the student against (pseudo) labels: see :func:`~.masked_consistency.mixed_loss`."""
        return mixed_loss(self.logits_at_image_size(self.student(image_B3HW).logits, image_B3HW), label_BHW, weight_BHW)

    # The passes

    def _mixed(
        self, source: View, target: Batch, pseudo: TargetPseudoLabels, weight_BHW: Tensor, context: StepContext
    ) -> dict[str, Tensor]:
        own, positions = target["weak"], target.positions.tolist()
        if source.image.shape != own.image.shape:
            raise RecipeError(
                "streams-differ",
                f"source and target must have one batch size and crop, got {_size(source)} and {_size(own)}",
                "set the same batch and the same augment.crop for the streams source and target",
            )
        score_BL = draw_scores(context.seed, "mixed", positions, self.classes + 1, own.image.device)
        mask_BHW = class_masks(source.label, score_BL, self.mixing.classes_from)
        image_B3HW = paste(own.image, source.image, mask_BHW)
        label_BHW = paste(pseudo.label_BHW, source.label, mask_BHW)
        weight_BHW = paste(weight_BHW, torch.ones_like(weight_BHW), mask_BHW)
        colours = draw_colours(self.mixing.colour, context.seed, "mixed", context.step, positions)
        coloured = recoloured(image_B3HW, colours)
        return {"mixed": self.mixing.weight * self.pseudo_label_loss(coloured, label_BHW, weight_BHW, context)}

    def _masked(
        self, target: Batch, pseudo: TargetPseudoLabels, weight_BHW: Tensor, context: StepContext
    ) -> dict[str, Tensor]:
        settings = self.mixing.masked_consistency
        assert settings is not None
        image_B3HW = masked_images(target, settings, self.mixing.colour, self.student.mean, context)
        return {"masked": settings.weight * self.pseudo_label_loss(image_B3HW, pseudo.label_BHW, weight_BHW, context)}

    def _average_logits(self, view: View) -> Tensor:
        return self.logits_at_image_size(self.ema(view.image).logits, view.image)

    def _weights(self, view: View, pseudo: TargetPseudoLabels, context: StepContext) -> Tensor:
        """The weight of each pseudo label, (B, H, W)."""
        weight_BHW = pseudo.share(context) if self.mixing.weighting == "share" else pseudo.sure_BHW.float()
        return weight_BHW * inside_margins(view, self.mixing.margins) if self.mixing.margins.any else weight_BHW

    def logits_at_image_size(self, logits_BKhw: Tensor, image_B3HW: Tensor) -> Tensor:
        """Logits at the size of the image, (B, K, H, W)."""
        return over_image(logits_BKhw, image_B3HW, self.mixing.task.resize, self.student.stride)


def inside_margins(view: View, margins: MarginSettings) -> Tensor:
    """Where a view shows what lies within the margins: bool, (B, H, W), or (1, H, W) for those of the crop."""
    height, width = view.geometry.size
    if margins.of == "crop":
        row_H = torch.arange(height, device=view.image.device)
        column_W = torch.arange(width, device=view.image.device)
        rows = (row_H >= margins.top) & (row_H < height - margins.bottom)
        columns = (column_W >= margins.left) & (column_W < width - margins.right)
        return (rows[:, None] & columns)[None]
    y_BHW, x_BHW = places(view.geometry, (height, width))
    source = view.geometry.source[:, :, None, None]
    rows = (y_BHW >= margins.top) & (y_BHW < source[:, 0] - margins.bottom)
    return rows & (x_BHW >= margins.left) & (x_BHW < source[:, 1] - margins.right)


def _size(view: View) -> str:
    count, _, height, width = view.image.shape
    return f"{count} x {height} x {width}"
