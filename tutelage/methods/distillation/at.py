"""Attention transfer: the student's feature has its energy where the teacher's has it.

    w * mean over images and positions of (at(f_S) - at(f_T))^2
    at(f) = the mean over channels of |f|^p, as a unit vector over positions

The mean over positions makes the loss small (1e-4 to 1e-3), hence the weight of 10000. Channels may differ.
Source: attention transfer (ICLR 2017), in the form of the CIRKD repository.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from tutelage.engine.contract import StepContext
from tutelage.losses.attention import attention_transfer
from tutelage.methods.distillation.term import Term, TermInputs
from tutelage.methods.settings.distill_terms import ATSettings


class AT(Term):
    """Where the feature has its energy."""

    Settings = ATSettings

    def forward(self, seen: TermInputs, context: StepContext) -> Mapping[str, Tensor]:
        """The weighted loss."""
        loss = attention_transfer(seen.student.feature, seen.teacher.feature, self.settings.power)
        return {"at": self.settings.weight * loss}
