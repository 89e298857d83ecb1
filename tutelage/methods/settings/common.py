"""Types and settings that several methods share."""

from __future__ import annotations

from typing import Annotated, Literal, Protocol, runtime_checkable

from pydantic import Field

from tutelage.losses.options import ResizeRule
from tutelage.settings import Settings

Weight = Annotated[float, Field(ge=0)]


Decay = Annotated[float, Field(ge=0, lt=1)]


QueuePrecision = Literal["fp32", "fp16", "bf16"]


class TaskSettings(Settings):
    """The loss on labels."""

    loss: Literal["cross_entropy", "ohem"] = "cross_entropy"
    """Cross-entropy over all valid pixels, or over the hard ones (online hard example mining)."""
    ohem_threshold: Annotated[float, Field(gt=0, le=1)] = 0.7
    """A pixel whose true class has at most this probability is hard."""
    ohem_min_kept: Annotated[int, Field(ge=0)] = 100_000
    """At least so many pixels of a micro-batch are kept."""
    class_weights: list[Weight] | Literal["balanced"] | None = None
    """A weight per class; `balanced`: median frequency over the class's frequency, from the training masks."""
    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Label smoothing (cross_entropy only)."""
    dice: Weight = 0.0
    """Weight of a Dice loss beside it."""
    auxiliary: Weight = 0.4
    """Weight of the auxiliary head's loss, where the net has one."""
    resize: ResizeRule = "grid"
    """How logits are brought to the size of the labels."""


class CacheSettings(Settings):
    """Store the teacher's output of every image once, instead of a forward in every step."""

    top: Annotated[int, Field(ge=1, le=254)] = 4
    """k: classes whose probability is kept at each position; the others share the remainder equally."""


@runtime_checkable
class CacheableSettings(Protocol):
    """Settings of a method with a :attr:`~tutelage.engine.settings.MethodSettings.cached_teacher`."""

    cache: CacheSettings | None

    def cache_temperature(self) -> float:
        """The temperature of the probabilities that the method reads."""
