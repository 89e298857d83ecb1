"""The inputs of a distillation term, and its interface.

Legend: B batch, K classes, C channels, h w the student's grid, H W the image.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn

from tutelage.engine.contract import StepContext
from tutelage.engine.settings import OptimizerSettings
from tutelage.methods.settings.distill_terms import TermSettings


class Maps(NamedTuple):
    """The outputs of one net for a batch."""

    logits: Tensor
    """(B, K, h, w)."""
    feature: Tensor
    """The distilled feature (B, C, h, w): the embedding, unless another map was chosen."""
    auxiliary: Tensor | None
    """Logits (B, K, ., .) of the auxiliary head, on their own grid; None without one."""


@dataclass(frozen=True)
class NetShape:
    """One net as a term must know it when it is made."""

    channels: int
    """Of the distilled feature."""
    auxiliary: bool
    """Whether it has auxiliary logits."""


@dataclass(frozen=True)
class Pair:
    """The two nets, and the grid on which they are compared."""

    classes: int
    student: NetShape
    teacher: NetShape
    grid: tuple[int, int]
    """h, w of the student's distilled feature for a crop of the training stream."""
    logits_grid: tuple[int, int]
    """h, w of its logits."""


class TermInputs(NamedTuple):
    """One labelled batch as both nets see it; the teacher's maps lie on the student's grid and carry no gradient."""

    student: Maps
    teacher: Maps
    label_BHW: Tensor


class Term(nn.Module):
    """The base of every term. Its parameters are trained with the student; its memory is in buffers."""

    Settings: ClassVar[type[TermSettings]]

    def __init__(self, settings: Any, pair: Pair) -> None:
        super().__init__()
        self.settings = settings

    def forward(self, seen: TermInputs, context: StepContext) -> Mapping[str, Tensor]:
        """The weighted losses, by name."""
        raise NotImplementedError

    def describe(self) -> str:
        """The projections and the memory, in words; empty if neither."""
        return ""


class AdversarialTerm(Term):
    """A term with a critic, which has a pass and an optimizer of its own."""

    critic_optimizer: OptimizerSettings

    def make_critic(self, pair: Pair) -> nn.Module:
        """The critic."""
        raise NotImplementedError

    def fool(self, critic: nn.Module, seen: TermInputs) -> Tensor:
        """The weighted loss of the student from the critic."""
        raise NotImplementedError

    def judge(self, critic: nn.Module, student: Tensor, teacher: Tensor, context: StepContext) -> Tensor:
        """The critic's own loss on detached logits of both nets, weighted."""
        raise NotImplementedError
