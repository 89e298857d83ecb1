"""CPS: two nets teach one another by their class maps.

    L = CE(p_a(x_l), y) + CE(p_b(x_l), y) + w [CE(p_a, argmax p_b) + CE(p_b, argmax p_a)]

Net a is the student; its sister b has the same encoder weights and a decoder of its own, and that is all in which they
differ at first. The cross terms run over labelled and unlabelled images together, in one mean over all pixels.

With CutMix both nets predict on the unlabelled images, without a gradient. The logits are mixed by a mask of boxes as
the images are, and their argmax teaches the other net on the mixed images; labelled images take no part.
Source: CPS (CVPR 2021) and its code. The threshold is not theirs; it works as FixMatch's does.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from tutelage.data.batch import Batch, View
from tutelage.data.draws import generator
from tutelage.data.mixing.boxes import box_masks
from tutelage.data.mixing.paste import partners, paste
from tutelage.engine.contract import Method, OptimizerSpec, Pass, StepContext, TaskInfo
from tutelage.losses.consistency import cross_pseudo_supervision, masked_consistency, pseudo_label
from tutelage.losses.resize import over_image
from tutelage.methods.settings.cps import CPSSettings
from tutelage.methods.supervised import TaskLoss
from tutelage.nets.build import sibling
from tutelage.nets.segmentor import Segmentor


class CPS(Method):
    """Few labels and many images: two nets that began differently learn from one another."""

    Settings = CPSSettings

    def __init__(self, nets: Mapping[str, Segmentor], settings: CPSSettings, info: TaskInfo) -> None:
        super().__init__()
        self.student = nets["student"]
        self.sister = sibling(self.student)
        self.task = TaskLoss(settings.task, info)
        self.settings = settings

    def passes(self, step: int) -> tuple[Pass, ...]:
        """Both nets at once."""
        return (Pass("train", {"student", "sister"}),)

    def optimizers(self) -> Mapping[str, OptimizerSpec]:
        """One optimizer for each net, both as set in the recipe."""
        return {"main": OptimizerSpec(("student",)), "sister": OptimizerSpec(("sister",))}

    def exported(self) -> Mapping[str, nn.Module]:
        """The student, and its sister beside it."""
        return {"student": self.student, "sister": self.sister}

    def counts(self, batches: Mapping[str, Batch]) -> Mapping[str, Tensor]:
        """The weight of the valid labels, and the pixels that are not padding."""
        labeled, unlabeled = batches["labeled"]["weak"], batches["unlabeled"]["weak"]
        return {
            "labeled": self.task.counts(labeled.label),
            "pixels": (labeled.valid.sum() + unlabeled.valid.sum()).float(),
        }

    def forward(self, batches: Mapping[str, Batch], pass_name: str, context: StepContext) -> dict[str, Tensor]:
        """One labelled and one unlabelled batch, seen by both nets."""
        labeled, unlabeled = batches["labeled"]["weak"], batches["unlabeled"]["weak"]
        on_labeled = [net(labeled.image) for net in (self.student, self.sister)]
        terms = {
            f"{prefix}{name}": term
            for prefix, prediction in zip(("", "sister_"), on_labeled, strict=True)
            for name, term in self.task(
                prediction, self.student.stride, labeled.label, context.normalizer("labeled")
            ).items()
        }
        if self.settings.cutmix:
            mine, hers = self._on_mixed(unlabeled, context)
        else:
            logits_labeled = [self._full(prediction.logits, labeled.image) for prediction in on_labeled]
            mine, hers = self._on_all([(labeled, logits_labeled), (unlabeled, self._both(unlabeled.image))], context)
        terms["cross"], terms["sister_cross"] = self.settings.weight * mine, self.settings.weight * hers
        return terms

    def _on_all(self, seen: list[tuple[View, list[Tensor]]], context: StepContext) -> tuple[Tensor, Tensor]:
        """Means over the pixels of all views, which may differ in size."""
        parts = []
        for view, (mine, hers) in seen:
            share = view.valid.sum() / context.normalizer("pixels")
            means = self._agree(mine, hers, view.valid), self._agree(hers, mine, view.valid)
            parts.append(share * torch.stack(means))
        mean_2 = torch.stack(parts).sum(0)
        return mean_2[0], mean_2[1]

    def _on_mixed(self, view: View, context: StepContext) -> tuple[Tensor, Tensor]:
        draw = generator(context.seed, "cps", "boxes", context.step, context.slice)
        size = (view.image.shape[2], view.image.shape[3])
        mask_BHW = box_masks(draw, len(view.image), size, self.settings.boxes, view.image.device)

        def mixed(values_B: Tensor) -> Tensor:
            return paste(values_B, partners(values_B), mask_BHW)

        with torch.no_grad():
            my_advice, her_advice = (mixed(logits) for logits in self._both(view.image))
        mine, hers = self._both(mixed(view.image))
        valid_BHW = mixed(view.valid)
        return self._agree(mine, her_advice, valid_BHW), self._agree(hers, my_advice, valid_BHW)

    def _agree(self, logits_BKHW: Tensor, advice_BKHW: Tensor, valid_BHW: Tensor) -> Tensor:
        """One net learns the labels of the other."""
        pseudo_BHW, confidence_BHW = pseudo_label(advice_BKHW)
        if self.settings.threshold is None:
            return cross_pseudo_supervision(logits_BKHW, pseudo_BHW, valid_BHW)
        return masked_consistency(logits_BKHW, pseudo_BHW, confidence_BHW, valid_BHW, self.settings.threshold)

    def _both(self, image: Tensor) -> list[Tensor]:
        return [self._full(net(image).logits, image) for net in (self.student, self.sister)]

    def _full(self, logits: Tensor, image: Tensor) -> Tensor:
        return over_image(logits, image, self.settings.task.resize, self.student.stride)
