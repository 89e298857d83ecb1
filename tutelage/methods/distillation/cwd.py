"""Channel-wise distillation: each channel is a distribution over positions, which the student copies.

    w * T^2 / (B C) * sum over images and channels of KL(softmax_hw(x_T / T) || softmax_hw(x_S / T))

x are logits, or features; where the feature channels of both nets differ, a 1x1 convolution without bias brings the
student's to the teacher's, is trained with the student and dropped at the end.

For features the published code divides by the student's channels before that convolution, while it sums over the
teacher's: its loss is Ct / Cs times the mean. Its numbers come back with `divisor: published`, or with the default
divisor and a weight of 50 Ct / Cs. The published scripts for CWD also add pixel KD (1) and a critic (0.001).
Source: channel-wise knowledge distillation (ICCV 2021), in the form of the CIRKD repository.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from tutelage.engine.contract import StepContext
from tutelage.losses.distillation import cwd
from tutelage.methods.distillation.projection import linear
from tutelage.methods.distillation.term import Pair, Term, TermInputs
from tutelage.methods.settings.distill_terms import CWDFeaturesSettings, CWDSettings


class CWD(Term):
    """Where each class is."""

    Settings = CWDSettings

    def forward(self, seen: TermInputs, context: StepContext) -> Mapping[str, Tensor]:
        """The weighted loss."""
        loss = cwd(seen.student.logits, seen.teacher.logits, self.settings.temperature)
        return {"cwd": self.settings.weight * loss}


class CWDFeatures(Term):
    """Where each channel fires."""

    Settings = CWDFeaturesSettings

    def __init__(self, settings: CWDFeaturesSettings, pair: Pair) -> None:
        super().__init__(settings, pair)
        ours, theirs = pair.student.channels, pair.teacher.channels
        self.channels = (ours, theirs)
        self.align = linear(ours, theirs) if ours != theirs else None
        self.divisor = theirs if settings.divisor == "teacher" else ours

    def forward(self, seen: TermInputs, context: StepContext) -> Mapping[str, Tensor]:
        """The weighted loss."""
        feature = seen.student.feature
        if self.align is not None:
            feature = self.align(feature)
        loss = cwd(feature, seen.teacher.feature, self.settings.temperature, self.divisor)
        return {"cwd_features": self.settings.weight * loss}

    def describe(self) -> str:
        """The projection, if there is one."""
        if self.align is None:
            return "features are compared as they are"
        return "the student's {} channels are projected to {}".format(*self.channels)
