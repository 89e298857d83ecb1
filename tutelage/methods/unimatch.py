"""UniMatch (V1): two strong views and a weak view with dropped features follow the sure pixels of the weak view.

    L = 1/2 [ L_x + w (1/4 M(s1) + 1/4 M(s2) + 1/2 M_fp) ]

s1, s2 are logits of two strong views with CutMix boxes of their own. M_fp compares logits of the weak view, decoded
from encoder features of which half of the channels are dropped, with the weak view's own, unmixed pseudo labels. The
encoder passes over the weak view once for both; clean and perturbed features are decoded as one batch.
Who labels is chosen as in :mod:`tutelage.methods.fixmatch`.
Source: UniMatch (CVPR 2023) and its code.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from tutelage.data.batch import Batch, View
from tutelage.engine.contract import StepContext, TaskInfo
from tutelage.methods.settings.unimatch import UniMatchSettings
from tutelage.methods.strong_views import HALF, StrongViewMethod, same_size
from tutelage.nets.segmentor import Features, Prediction, Segmentor

STRONG, PERTURBED = 0.25, 0.5
"""Shares of each strong view and of the perturbed view in the unlabelled loss."""
DROPPED = 0.5
"""Share of the channels that the perturbation drops."""


class UniMatch(StrongViewMethod):
    """Few labels and many images: two strong views and dropped features follow the sure pixels of a weak view."""

    Settings = UniMatchSettings

    def __init__(self, nets: Mapping[str, Segmentor], settings: UniMatchSettings, info: TaskInfo) -> None:
        super().__init__(nets, settings, info, settings.decay if settings.pseudo_labels == "ema" else None)
        self.settings = settings

    def forward(self, batches: Mapping[str, Batch], pass_name: str, context: StepContext) -> dict[str, Tensor]:
        """One labelled batch, and one unlabelled batch in three views."""
        labeled, unlabeled = batches["labeled"]["weak"], batches["unlabeled"]
        weak = unlabeled["weak"]
        if self.ema is None:
            partner = self.judged(self.student, weak)
            prediction, clean, perturbed = self._clean_and_perturbed(labeled, weak)
            own = self.pseudo_labels(clean, weak)
        else:
            own = partner = self.judged(self.ema, weak)
            prediction = self.student(labeled.image)
            features = self.student.encode(weak.image)
            perturbed = self.student.decode(features._replace(levels=dropped(features.levels))).logits
        terms = self.supervised(prediction, labeled, context)

        image1, target1 = self.mixed(unlabeled, "strong", own, partner, context)
        image2, target2 = self.mixed(unlabeled, "strong2", own, partner, context)
        strong1, strong2 = self.student(torch.cat((image1, image2))).logits.chunk(2)
        weight = HALF * self.settings.weight
        terms["strong"] = weight * STRONG * self.consistency(strong1, image1, target1)
        terms["strong2"] = weight * STRONG * self.consistency(strong2, image2, target2)
        terms["perturbed"] = weight * PERTURBED * self.consistency(perturbed, weak.image, own)
        return terms

    def _clean_and_perturbed(self, labeled: View, weak: View) -> tuple[Prediction, Tensor, Tensor]:
        """The labelled prediction, and logits of the weak view without and with dropped features."""
        if not same_size(labeled, weak):
            prediction: Prediction = self.student(labeled.image)
            clean, perturbed = self.student.decode(doubled(self.student.encode(weak.image))).logits.chunk(2)
            return prediction, clean, perturbed
        # As published the labelled images are perturbed too: the decoder's batch statistics are of all four parts.
        features = doubled(self.student.encode(torch.cat((labeled.image, weak.image))))
        both = self.student.decode(features)
        count, total = len(labeled.image), len(labeled.image) + len(weak.image)
        return both.of(slice(count)), both.logits[count:total], both.logits[total + count :]


def dropped(levels: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Levels (B, C, h, w) with half of each image's channels set to 0 and the others doubled, level by level."""
    return tuple(F.dropout2d(level, DROPPED) for level in levels)


def doubled(features: Features) -> Features:
    """Features of 2 B images: the same, and the same with dropped channels; prefix tokens are only repeated."""
    levels = tuple(torch.cat(pair) for pair in zip(features.levels, dropped(features.levels), strict=True))
    return features._replace(levels=levels, tokens=tuple(torch.cat((each, each)) for each in features.tokens))
