"""DIST: the student's probabilities correlate with the teacher's, within each position and within each class.

    w * T^2 * (b * (1 - mean over positions of r(p_S[i, :], p_T[i, :]))
             + g * (1 - mean over classes   of r(p_S[:, k], p_T[:, k])))

p = softmax(z / T), positions i are those of all images of the batch, r is Pearson's correlation: a match up to scale
and shift, which is a weaker demand than equal probabilities when its teacher is much stronger.

As in the release, auxiliary logits are distilled the same way with 0.4 of the weight where both nets have them.
Source: knowledge distillation from a stronger teacher (NeurIPS 2022); hunto/DIST_KD, segmentation.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from tutelage.engine.contract import StepContext
from tutelage.losses.distillation import dist
from tutelage.methods.distillation.term import Term, TermInputs
from tutelage.methods.settings.distill_terms import DISTSettings


class DIST(Term):
    """Correlation between classes and within classes."""

    Settings = DISTSettings

    def forward(self, seen: TermInputs, context: StepContext) -> Mapping[str, Tensor]:
        """The weighted losses."""
        settings = self.settings
        options = (settings.inter, settings.intra, settings.temperature)
        terms = {"dist": settings.weight * dist(seen.student.logits, seen.teacher.logits, *options)}
        ours, theirs = seen.student.auxiliary, seen.teacher.auxiliary
        if ours is not None and theirs is not None and settings.auxiliary:
            terms["dist_auxiliary"] = settings.weight * settings.auxiliary * dist(ours, theirs, *options)
        return terms
