"""FixMatch for segmentation: a strong view must show what the weak view of the same crop shows, where that is sure.

    L = 1/2 (L_x + w M(p(x_s), y, c))          y, c: pseudo label and confidence of the weak view x_w

with CutMix between the images of the batch (see :mod:`tutelage.methods.strong_views`). Who labels:

``student``  the net itself. The weak images pass together with the labelled ones in training mode; what is pasted is
             labelled by a second pass of them in evaluation mode. No average.
``ema``      the moving average of the net, in evaluation mode, for both.

Source: FixMatch (NeurIPS 2020) in the segmentation forms of the UniMatch (CVPR 2023) and UniMatch V2 codes.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tutelage.data.batch import Batch, View
from tutelage.engine.contract import StepContext, TaskInfo
from tutelage.methods.settings.fixmatch import FixMatchSettings
from tutelage.methods.strong_views import HALF, StrongViewMethod, same_size
from tutelage.nets.segmentor import Prediction, Segmentor


class FixMatch(StrongViewMethod):
    """Few labels and many images: a strong view follows the sure pixels of a weak one."""

    Settings = FixMatchSettings

    def __init__(self, nets: Mapping[str, Segmentor], settings: FixMatchSettings, info: TaskInfo) -> None:
        super().__init__(nets, settings, info, settings.decay if settings.pseudo_labels == "ema" else None)
        self.settings = settings

    def forward(self, batches: Mapping[str, Batch], pass_name: str, context: StepContext) -> dict[str, Tensor]:
        """One labelled batch, and one unlabelled batch in two views."""
        labeled, unlabeled = batches["labeled"]["weak"], batches["unlabeled"]
        weak = unlabeled["weak"]
        if self.ema is None:
            partner = self.judged(self.student, weak)
            prediction, weak_logits = self._together(labeled, weak)
            own = self.pseudo_labels(weak_logits, weak)
        else:
            own = partner = self.judged(self.ema, weak)
            prediction = self.student(labeled.image)
        terms = self.supervised(prediction, labeled, context)

        image, target = self.mixed(unlabeled, "strong", own, partner, context)
        distance = self.consistency(self.student(image).logits, image, target)
        terms["strong"] = HALF * self.settings.weight * distance
        return terms

    def _together(self, labeled: View, weak: View) -> tuple[Prediction, Tensor]:
        """Both batches in training mode: the labelled prediction, and logits of the weak view."""
        if not same_size(labeled, weak):
            prediction: Prediction = self.student(labeled.image)
            with torch.no_grad():
                return prediction, self.student(weak.image).logits
        # One batch, as published: where there are batch statistics, they are of both.
        both = self.student(torch.cat((labeled.image, weak.image)))
        count = len(labeled.image)
        return both.of(slice(count)), both.logits[count:]
