"""Settings of a training stage, and the declarations of a method's inputs and trained nets."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from tutelage.data.settings import ViewSettings
from tutelage.settings import NOT_IN_KEY, Settings

Share = Annotated[float, Field(ge=0, lt=1)]


class OptimizerSettings(Settings):
    """An optimizer. The default suits fine-tuning a pretrained encoder."""

    kind: Literal["sgd", "adamw", "adam"] = "adamw"
    lr: Annotated[float, Field(gt=0)] = 1e-3
    """Learning rate of everything but encoders: decoders, heads and others."""
    encoder_lr_ratio: Annotated[float, Field(gt=0)] = 1.0
    """The encoder's rate divided by `lr`; below 1 for a pretrained encoder."""
    momentum: Share = 0.9
    """For `sgd`."""
    betas: tuple[Share, Share] = (0.9, 0.999)
    """For `adamw` and `adam`."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-2
    """Fraction of every weight subtracted, times the rate (`adam`, `sgd`: as part of the gradient)."""
    decay_norm_and_bias: bool = False
    """Whether weight decay also acts on normalisation parameters and biases."""


class ScheduleSettings(Settings):
    """Learning rate schedule of a stage."""

    kind: Literal["poly", "cosine", "constant"] = "poly"
    power: Annotated[float, Field(gt=0)] = 0.9
    """For `poly`: rate x (1 - step/steps)^power."""
    warmup: Annotated[int, Field(ge=0)] = 0
    """Steps of linear warm-up."""
    warmup_ratio: Annotated[float, Field(ge=0, le=1)] = 1e-3
    """Factor of the rate at the start of the warm-up."""
    floor: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Smallest factor of the rate, at the end."""
    least_lr: Annotated[float, Field(ge=0)] = 0.0
    """Smallest rate at the end, equal for all parameters; replaces `floor`."""
    lag: Annotated[int, Field(ge=0)] = 0
    """Steps by which the whole schedule is delayed. Published codes that set the rate after the step use 1."""
    horizon: Annotated[int, Field(gt=0)] | None = None
    """Length of the schedule in steps; null: the stage's steps. Published codes may stop long before its end."""

    @model_validator(mode="after")
    def _one_end(self) -> ScheduleSettings:
        if self.floor and self.least_lr:
            raise ValueError("set floor (a factor of the rate) or least_lr (a rate), not both")
        return self

    def rate(self, full: float, step: int, total: int) -> float:
        """The rate at a zero-based step, for a full rate above 0."""
        if not self.least_lr:
            return full * self.factor(step, total)
        return full * self._factor(step, total, min(self.least_lr / full, 1.0))

    def factor(self, step: int, total: int) -> float:
        """The factor of the rate at a zero-based step, without ``least_lr``."""
        return self._factor(step, total, self.floor)

    def _factor(self, step: int, total: int, floor: float) -> float:
        total, step = self.horizon or total, max(step - self.lag, 0)
        if step < self.warmup:
            return self.warmup_ratio + (1.0 - self.warmup_ratio) * step / self.warmup
        done = min((step - self.warmup) / max(total - self.warmup, 1), 1.0)
        if self.kind == "constant":
            return 1.0
        left = (1.0 - done) ** self.power if self.kind == "poly" else 0.5 * (1.0 + math.cos(math.pi * done))
        return floor + (1.0 - floor) * left


Count = Annotated[int, Field(gt=0)]


class FitSettings(Settings):
    """Length, precision, logging and checkpoints of a training stage."""

    steps: Count = 1000
    """Optimizer steps."""
    accumulate: Count = 1
    """Micro-batches per step; each acts as one more process, where the method's terms allow."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Precision of the nets; losses stay in fp32. `fp16` needs a GPU."""
    optimizer: OptimizerSettings = OptimizerSettings()
    """The main optimizer."""
    schedule: ScheduleSettings = ScheduleSettings()
    """The learning rate schedule."""
    clip: Annotated[float, Field(gt=0)] | None = None
    """Maximal norm of each optimizer's gradient; null: no clipping."""
    compile: bool = False
    """Compile every net with `torch.compile` (for long runs; not byte-equal to eager mode)."""
    channels_last: bool = True
    """Memory layout of nets and images; channels last is fast for convolutions."""
    log_every: Annotated[Count, NOT_IN_KEY] = 20
    """Steps between two log lines."""
    checkpoint_every: Annotated[Count | None, NOT_IN_KEY] = None
    """Steps between two checkpoints; null: about twenty over the stage, at least every 500 steps."""
    keep_checkpoints: Annotated[int, Field(ge=2), NOT_IN_KEY] = 2
    """Number of checkpoints kept; at least two, so that a damaged one can be replaced by the one before it."""
    patience: Count | None = None
    """Stop after this many evaluations without a better score; null: never."""

    def checkpoint_rhythm(self) -> int:
        """Steps between two checkpoints."""
        return self.checkpoint_every or min(max(self.steps // 20, 1), 500)


@dataclass(frozen=True)
class StreamSpec:
    """A method's requirements on one of its streams."""

    labels: bool
    """Whether masks are read."""
    views: tuple[str, ...]
    """Names of the views, all of one sample."""
    about: str = ""
    """Description of the stream, for the manual."""
    defaults: Mapping[str, ViewSettings] = field(default_factory=dict)
    """Settings of views for which the recipe gives none; other views are plain."""
    optional: tuple[str, ...] = ()
    """Views that exist only if the recipe gives settings for them."""

    @property
    def known(self) -> tuple[str, ...]:
        """All views for which a recipe may give settings."""
        return (*self.views, *self.optional)

    def shown(self, given: Mapping[str, ViewSettings]) -> dict[str, ViewSettings]:
        """The views of a stream with their settings, given those of the recipe."""
        asked = (*self.views, *(view for view in self.optional if view in given))
        return {view: given.get(view) or self.defaults.get(view, ViewSettings()) for view in asked}


class MethodSettings(Settings):
    """The settings of a method, and its declared inputs and trained nets.

    Defined in a module that does not import torch, so that recipes are validated without it.
    """

    implementation: ClassVar[str]
    """``module:class`` of the method; imported when a stage is built."""
    streams: ClassVar[Mapping[str, StreamSpec]] = {}
    trained_nets: ClassVar[tuple[str, ...]] = ("student",)
    """Roles of the nets that the method trains, given under `nets`."""
    teachers: ClassVar[tuple[str, ...]] = ()
    """Roles of nets that another stage trained and that stay frozen, given under `inputs`."""
    fitted_inputs: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """Role, given under `inputs` → the kinds of `fit` stages that it accepts."""
    cached_teacher: ClassVar[tuple[str, str] | None] = None
    """Teacher role and stream whose outputs a cache may replace; the settings then have a key `cache`."""
