"""The base of FixMatch, UniMatch and UniMatch V2: a weak view gives the pseudo labels of strong views of the same crop.

    y, c        pseudo label and confidence of the weak view
    mixed       inside of a box the partner's image, pseudo label, confidence and padding take the image's place
    M(s, ...) = sum of CE(s, y) over valid pixels with c >= threshold, divided by ALL valid pixels

Legend: B batch, K classes, H W pixels, h w a map's grid.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tutelage.data.batch import Batch, View
from tutelage.data.mixing import partners, paste
from tutelage.data.mixing.cutmix import box_masks, draw_boxes
from tutelage.engine.contract import Method, StepContext, TaskInfo
from tutelage.errors import RecipeError
from tutelage.losses.consistency import masked_consistency, pseudo_label
from tutelage.losses.resize import over_image
from tutelage.methods.ema import average, decay_at, twin
from tutelage.methods.settings.strong_views import StrongViewSettings
from tutelage.methods.supervised import TaskLoss
from tutelage.nets.segmentor import Prediction, Segmentor

HALF = 0.5
"""The factor of the sum of labelled and unlabelled loss in the three papers."""


class WeakPseudoLabels(NamedTuple):
    """Pseudo labels of every pixel of a batch."""

    label: Tensor
    """(B, H, W) int64."""
    confidence: Tensor
    """(B, H, W) in 0..1: the label's probability."""
    valid: Tensor
    """(B, H, W) bool: where the image is not padding."""


class StrongViewMethod(Method):
    """The student, the moving average where there is one, and the steps that the papers share."""

    ema: Segmentor | None

    def __init__(
        self, nets: Mapping[str, Segmentor], settings: StrongViewSettings, info: TaskInfo, decay: float | None
    ) -> None:
        super().__init__()
        self.student = nets["student"]
        self.ema = twin(self.student) if decay is not None else None
        self.task = TaskLoss(settings.task, info)
        self.shared = settings
        self.decay = decay

    def exported(self) -> Mapping[str, nn.Module]:
        """The student, and its average beside it where there is one."""
        return {"student": self.student} if self.ema is None else {"student": self.student, "ema": self.ema}

    def counts(self, batches: Mapping[str, Batch]) -> Mapping[str, Tensor]:
        """The weight of the valid labels."""
        return {"labeled": self.task.counts(batches["labeled"]["weak"].label)}

    def after_step(self, context: StepContext) -> None:
        """The average follows in parameters and running statistics; after the first step it is a copy."""
        if self.ema is not None and self.decay is not None:
            average(self.ema, self.student, decay_at(context.step, self.decay, ramp=True), buffers="average")

    def judged(self, net: Segmentor, view: View) -> WeakPseudoLabels:
        """Pseudo labels by a net in evaluation mode, without gradient."""
        with torch.no_grad(), evaluating(net):
            return self.pseudo_labels(net(view.image).logits, view)

    def pseudo_labels(self, logits_BKhw: Tensor, view: View) -> WeakPseudoLabels:
        """Pseudo labels of a view, of the logits that a net gave for it."""
        return WeakPseudoLabels(*pseudo_label(self.logits_at_image_size(logits_BKhw.detach(), view.image)), view.valid)

    def mixed(
        self, batch: Batch, view: str, own: WeakPseudoLabels, partner: WeakPseudoLabels, context: StepContext
    ) -> tuple[Tensor, WeakPseudoLabels]:
        """A strong view with boxes of partners in it, and the pseudo labels that belong to its pixels.

        ``own`` labels what an image keeps, ``partner`` (in the batch's order) what it gives to others.
        """
        image = _of_one_crop(batch, view).image
        size = (image.shape[2], image.shape[3])
        boxes = draw_boxes(context.seed, view, batch.positions.tolist(), size, self.shared.cutmix)
        mask_BHW = box_masks(boxes, size, image.device)

        def pasted(mine: Tensor, theirs: Tensor) -> Tensor:
            return paste(mine, partners(theirs, self.shared.partner), mask_BHW)

        return pasted(image, image), WeakPseudoLabels(*map(pasted, own, partner))

    def consistency(self, logits_BKhw: Tensor, image_B3HW: Tensor, target: WeakPseudoLabels) -> Tensor:
        """M: how far logits are from the pseudo labels that are sure."""
        return masked_consistency(self.logits_at_image_size(logits_BKhw, image_B3HW), *target, self.shared.threshold)

    def supervised(self, prediction: Prediction, view: View, context: StepContext) -> dict[str, Tensor]:
        """L_x / 2: the terms of the labelled batch."""
        terms = self.task(prediction, self.student.stride, view.label, context.normalizer("labeled"))
        return {name: HALF * value for name, value in terms.items()}

    def logits_at_image_size(self, logits_BKhw: Tensor, image_B3HW: Tensor) -> Tensor:
        """Logits at the size of the image, (B, K, H, W)."""
        return over_image(logits_BKhw, image_B3HW, self.shared.task.resize, self.student.stride)


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """The net in evaluation mode, then as before."""
    before = net.training
    net.eval()
    try:
        yield
    finally:
        net.train(before)


def same_size(one: View, other: View) -> bool:
    """Whether the images of two views can share a batch."""
    return one.image.shape[1:] == other.image.shape[1:]


def _of_one_crop(batch: Batch, name: str) -> View:
    """A view that shows the same crop as the weak one; RecipeError where it does not."""
    weak, view = batch["weak"].geometry, batch[name].geometry
    if view is not weak and not (weak.size == view.size and torch.equal(weak.matrix, view.matrix)):
        raise RecipeError(
            "views-not-aligned",
            f"the view {name!r} shows another part of the image than the view 'weak', which gives its pseudo labels",
            f"remove `augment` from `views.weak` and `views.{name}`: all views share the stream's `augment`",
        )
    return batch[name]
