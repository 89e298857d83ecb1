"""Double similarity distillation: how attention changes from map to map, and how similar classes are.

    pixel:     w * mean over pairs of maps, images and positions of (r_S - r_T)^2
               r = at(x_j) - at(x_i) as a unit vector; at(x) = the mean over channels of x^2 as a unit vector
    category:  w * mean over images and pairs of classes of (G_S - G_T)^2
               G = P P^T, P = softmax over positions of the logits / T, averaged by 2x2 first

The maps are auxiliary logits (where both nets have them), feature and logits, in this order and by name: the published
code takes them by place and pairs other maps where a net has no auxiliary head. Maps on other grids than the
logits' have their energy averaged to it. The published DSD runs both terms and nothing else beside the task loss.
Source: double similarity distillation (TIP 2021), in the form of the CIRKD repository.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from tutelage.engine.contract import StepContext
from tutelage.losses.attention import dsd_category, dsd_pixel
from tutelage.methods.distillation.term import Pair, Term, TermInputs
from tutelage.methods.settings.distill_terms import DSDCategorySettings, DSDPixelSettings


class DSDPixel(Term):
    """How attention changes from map to map."""

    Settings = DSDPixelSettings

    def __init__(self, settings: DSDPixelSettings, pair: Pair) -> None:
        super().__init__(settings, pair)
        both = pair.student.auxiliary and pair.teacher.auxiliary
        self.maps = ("auxiliary", "feature", "logits") if both else ("feature", "logits")

    def forward(self, seen: TermInputs, context: StepContext) -> Mapping[str, Tensor]:
        """The weighted loss."""
        student, teacher = ([getattr(side, name) for name in self.maps] for side in (seen.student, seen.teacher))
        return {"dsd_pixel": self.settings.weight * dsd_pixel(student, teacher)}

    def describe(self) -> str:
        """The maps between which attention changes."""
        return f"attention from map to map of {', '.join(self.maps)}"


class DSDCategory(Term):
    """How similar classes are."""

    Settings = DSDCategorySettings

    def forward(self, seen: TermInputs, context: StepContext) -> Mapping[str, Tensor]:
        """The weighted loss."""
        loss = dsd_category(seen.student.logits, seen.teacher.logits, self.settings.temperature)
        return {"dsd_category": self.settings.weight * loss}
