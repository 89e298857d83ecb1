"""Intra-class feature variation: how far each position is from its class's mean, compared between both nets.

    w * mean over ALL positions of (cos(f_S, m_S) - cos(f_T, m_T))^2

m is the mean feature of the position's class in the same image, by the labels; gradient flows through the student's.
Positions without a label contribute 0 but count in the mean. Channels may differ. The published scripts for IFVD also
add pixel KD (1) and a critic (0.001).
Source: intra-class feature variation distillation (ECCV 2020), in the form of the CIRKD repository.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from tutelage.engine.contract import StepContext
from tutelage.losses.distillation import ifvd
from tutelage.methods.distillation.term import Pair, Term, TermInputs
from tutelage.methods.settings.distill_terms import IFVDSettings


class IFVD(Term):
    """How typical each position is of its class."""

    Settings = IFVDSettings

    def __init__(self, settings: IFVDSettings, pair: Pair) -> None:
        super().__init__(settings, pair)
        self.classes = pair.classes

    def forward(self, seen: TermInputs, context: StepContext) -> Mapping[str, Tensor]:
        """The weighted loss."""
        loss = ifvd(seen.student.feature, seen.teacher.feature, seen.label_BHW, self.classes)
        return {"ifvd": self.settings.weight * loss}
