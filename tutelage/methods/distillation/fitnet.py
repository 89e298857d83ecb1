"""FitNet: a 1x1 convolution of the student's feature is regressed onto the teacher's.

    w * mean over images, channels and positions of (W f_S - f_T)^2

The convolution has no bias, is there also where channels agree, is trained with the student and dropped at the end.
Source: FitNets (ICLR 2015), in the form of the CIRKD repository: one stage, without training on hints first.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from tutelage.engine.contract import StepContext
from tutelage.losses.distillation import fitnet
from tutelage.methods.distillation.projection import linear
from tutelage.methods.distillation.term import Pair, Term, TermInputs
from tutelage.methods.settings.distill_terms import FitNetSettings


class FitNet(Term):
    """The teacher's feature itself."""

    Settings = FitNetSettings

    def __init__(self, settings: FitNetSettings, pair: Pair) -> None:
        super().__init__(settings, pair)
        self.channels = (pair.student.channels, pair.teacher.channels)
        self.align = linear(*self.channels)

    def forward(self, seen: TermInputs, context: StepContext) -> Mapping[str, Tensor]:
        """The weighted loss."""
        loss = fitnet(self.align(seen.student.feature), seen.teacher.feature)
        return {"fitnet": self.settings.weight * loss}

    def describe(self) -> str:
        """The projection."""
        return "the student's {} channels are projected to {}".format(*self.channels)
