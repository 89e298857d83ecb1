"""Pixel-wise distillation as a term: the student copies the teacher's class distribution at every position.

    w * T^2 * mean over positions of KL(softmax(z_T / T) || softmax(z_S / T))

Ignored and padded positions count. Source: the classic 2015 form, per pixel, as CIRKD and its baselines use it.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from tutelage.engine.contract import StepContext
from tutelage.losses.distillation import pixel_kd
from tutelage.methods.distillation.term import Term, TermInputs
from tutelage.methods.settings.distill_terms import PixelKDTermSettings


class PixelKDTerm(Term):
    """The class distribution at every position."""

    Settings = PixelKDTermSettings

    def forward(self, seen: TermInputs, context: StepContext) -> Mapping[str, Tensor]:
        """The weighted loss."""
        loss = pixel_kd(seen.student.logits, seen.teacher.logits, self.settings.temperature)
        return {"pixel_kd": self.settings.weight * loss}
