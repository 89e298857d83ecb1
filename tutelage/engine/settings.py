"""Settings of a training stage, and the declarations by which a method tells a recipe what it reads and trains."""

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
    """Learning rate of decoders, heads and everything else that is no encoder."""
    encoder_lr_ratio: Annotated[float, Field(gt=0)] = 1.0
    """The encoder's rate divided by `lr`; below 1 for a pretrained encoder."""
    momentum: Share = 0.9
    """For `sgd`."""
    betas: tuple[Share, Share] = (0.9, 0.999)
    """For `adamw` and `adam`."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-2
    """Share of every weight that is taken off, times the rate (`adam`, `sgd`: as part of the gradient)."""
    decay_norm_and_bias: bool = False
    """Whether weight decay also acts on normalisation parameters and biases."""


class ScheduleSettings(Settings):
    """How the learning rate moves over a stage."""

    kind: Literal["poly", "cosine", "constant"] = "poly"
    power: Annotated[float, Field(gt=0)] = 0.9
    """For `poly`: rate x (1 - step/steps)^power."""
    warmup: Annotated[int, Field(ge=0)] = 0
    """Steps over which the rate rises linearly to its value."""
    warmup_ratio: Annotated[float, Field(ge=0, le=1)] = 1e-3
    """Where the rise starts, as a share of the rate."""
    floor: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Smallest share of the rate, at the end."""
    least_lr: Annotated[float, Field(ge=0)] = 0.0
    """Smallest rate, at the end, for all parameters alike, in place of a share (`floor`)."""
    lag: Annotated[int, Field(ge=0)] = 0
    """Steps by which the whole course is late. Published codes that set the rate after the step have 1."""
    horizon: Annotated[int, Field(gt=0)] | None = None
    """Steps that the course is laid out for; null: the stage's. Published codes may stop long before its end."""

    @model_validator(mode="after")
    def _one_end(self) -> ScheduleSettings:
        if self.floor and self.least_lr:
            raise ValueError("floor is a share of the rate and least_lr a rate: give one of them")
        return self

    def rate(self, full: float, step: int, total: int) -> float:
        """The rate at a zero-based step, of a full one above 0."""
        if not self.least_lr:
            return full * self.factor(step, total)
        return full * self._factor(step, total, min(self.least_lr / full, 1.0))

    def factor(self, step: int, total: int) -> float:
        """The rate at a zero-based step, as a share of the full one; ``least_lr`` is left out."""
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
    """The course of a training stage."""

    steps: Count = 1000
    """Optimizer steps."""
    accumulate: Count = 1
    """Micro-batches per step; each is one more process, as far as the method's terms allow."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """What nets compute in; losses stay in fp32. `fp16` needs a GPU."""
    optimizer: OptimizerSettings = OptimizerSettings()
    """The main optimizer."""
    schedule: ScheduleSettings = ScheduleSettings()
    """The learning rate over the stage."""
    clip: Annotated[float, Field(gt=0)] | None = None
    """Largest norm of each optimizer's gradient; null: no clipping."""
    compile: bool = False
    """Compile every net with `torch.compile` (pays off for long runs; not byte-exact against eager)."""
    channels_last: bool = True
    """Memory layout of nets and images; the fast one for convolutions."""
    log_every: Annotated[Count, NOT_IN_KEY] = 20
    """Steps between two lines of the log."""
    checkpoint_every: Annotated[Count | None, NOT_IN_KEY] = None
    """Steps between two checkpoints; null: about twenty over the stage, at least every 500 steps."""
    keep_checkpoints: Annotated[int, Field(ge=2), NOT_IN_KEY] = 2
    """How many checkpoints stay; at least two, so that a damaged one can be replaced by the one before."""
    patience: Count | None = None
    """Stop after so many evaluations without a better score; null: never."""

    def checkpoint_rhythm(self) -> int:
        """Steps between two checkpoints."""
        return self.checkpoint_every or min(max(self.steps // 20, 1), 500)


@dataclass(frozen=True)
class StreamSpec:
    """What a method asks of one of its streams."""

    labels: bool
    """Whether masks are read."""
    views: tuple[str, ...]
    """Names of the views, all of one sample."""
    about: str = ""
    """What the stream is, for the manual."""
    defaults: Mapping[str, ViewSettings] = field(default_factory=dict)
    """Settings of views of which the recipe says nothing; the others are plain."""
    optional: tuple[str, ...] = ()
    """Views that are made only where the recipe gives settings for them."""

    @property
    def known(self) -> tuple[str, ...]:
        """All views that a recipe may give settings for."""
        return (*self.views, *self.optional)

    def shown(self, given: Mapping[str, ViewSettings]) -> dict[str, ViewSettings]:
        """The views of a stream and their settings, of what a recipe says of some."""
        asked = (*self.views, *(view for view in self.optional if view in given))
        return {view: given.get(view) or self.defaults.get(view, ViewSettings()) for view in asked}


class MethodSettings(Settings):
    """The settings of a method, and what the method reads from a recipe and trains.

    Such a class stands in a module that does not import torch, so that recipes are validated without it.
    """

    implementation: ClassVar[str]
    """``module:class`` of the method, imported when a stage is built."""
    streams: ClassVar[Mapping[str, StreamSpec]] = {}
    trained_nets: ClassVar[tuple[str, ...]] = ("student",)
    """Roles of the nets that the method trains, given under `nets`."""
    teachers: ClassVar[tuple[str, ...]] = ()
    """Roles of nets that another stage trained and that stay frozen, given under `inputs`."""
    fitted_inputs: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """Role, given under `inputs` → the kinds of `fit` stages that it accepts."""
    cached_teacher: ClassVar[tuple[str, str] | None] = None
    """Teacher role and stream whose outputs a cache may replace; the settings then have a key `cache`."""
