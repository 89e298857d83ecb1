"""The contract between the engine and a method.

A method is an ``nn.Module`` that holds every net it trains or uses, and all its state in buffers, so that a
checkpoint holds it too. It declares its streams and the passes of a step: each a forward, and a backward into the
nets that the pass trains. The engine does the rest, in the same way for every method.
"""

from __future__ import annotations

from collections import UserDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tutelage.data.batch import Batch
from tutelage.data.draws import key
from tutelage.engine.settings import MethodSettings, OptimizerSettings, ScheduleSettings


@dataclass(frozen=True)
class Pass:
    """One forward and backward within a step; ``trains`` names the nets that receive its gradient."""

    name: str
    trains: frozenset[str]

    def __init__(self, name: str, trains: Iterable[str]) -> None:
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "trains", frozenset(trains))


@dataclass(frozen=True)
class OptimizerSpec:
    """The nets that one optimizer holds, and its settings; ``None`` means those of the recipe."""

    nets: tuple[str, ...]
    optimizer: OptimizerSettings | None = None
    schedule: ScheduleSettings | None = None


@dataclass(frozen=True)
class TaskInfo:
    """Facts about the task that a method gets when it is built."""

    classes: int
    """Number of classes."""
    pixel_counts: Callable[[], Sequence[int]] = lambda: ()
    """Counts the pixels of each class in the labelled training masks (reads them all, once)."""
    names: tuple[str, ...] = ()
    """Names of the classes, if known."""
    fitted_inputs: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    """Tensors of the `fit` stages in :attr:`MethodSettings.fitted_inputs`, by role."""
    size: Callable[[], tuple[int, int]] | None = None
    """Returns height and width of the crops of the first stream (reads an image if nothing is cropped); ``None``: they
    differ."""


class Carry(UserDict[str, Tensor]):
    """Tensors from one pass to the next; values are detached."""

    def __setitem__(self, name: str, value: Tensor) -> None:
        super().__setitem__(name, value.detach())  # the only way in: update and setdefault call it too


@dataclass(frozen=True)
class StepContext:
    """State of the run while a pass is computed or a step is finished."""

    step: int
    total: int
    seed: int
    device: torch.device
    pass_name: str = ""
    slice: int = 0
    """Index of the part of the step's batch: ``micro * world + rank``. A micro-batch counts as one more rank."""
    slices: int = 1
    carry: Carry = field(default_factory=Carry)
    """Detached tensors from one pass to the next, within one micro-batch."""
    carries: tuple[Carry, ...] = ()
    """In ``after_step``: the ``carry`` of each micro-batch."""
    totals: Mapping[str, Tensor] = field(default_factory=dict)
    """``method.counts`` summed over the whole step: all micro-batches of all ranks."""

    @property
    def progress(self) -> float:
        """0 at the first step, approaching 1 at the last."""
        return self.step / self.total

    def normalizer(self, name: str) -> Tensor:
        """The mean of a count over the step's slices, at least 1.

        A sum over one slice divided by it is a term whose mean over slices is the mean over the whole batch, for any
        number of micro-batches and ranks.
        """
        return (self.totals[name] / self.slices).clamp(min=1.0 / self.slices)

    @cached_property
    def generator(self) -> torch.Generator:
        """Random numbers for this pass on this slice."""
        return self._generator(self.slice)

    @cached_property
    def shared_generator(self) -> torch.Generator:
        """Random numbers that are the same on every rank and micro-batch of this pass."""
        return self._generator(-1)

    @property
    def global_seed(self) -> int:
        """Seed of the global generators for this pass (dropout, stochastic depth)."""
        return key(self.seed, self.step, self.slice, self.pass_name, "global") % (1 << 63)

    def _generator(self, part: int) -> torch.Generator:
        generator = torch.Generator(self.device)
        return generator.manual_seed(key(self.seed, self.step, part, self.pass_name, "draws") % (1 << 63))


class Method(nn.Module):
    """The base of every method; see the module's header and ``docs/adding_a_method.md``."""

    Settings: ClassVar[type[MethodSettings]]
    """The settings, which also declare streams, trained nets, teachers and fitted inputs."""
    version: ClassVar[int] = 1
    """Incremented when the method's results change, so that finished stages are trained again."""

    def train(self, mode: bool = True) -> Method:
        """Switch to training mode; teachers stay in evaluation mode."""
        super().train(mode)
        for name in self.Settings.teachers:
            self.get_submodule(name).eval()
        return self

    def passes(self, step: int) -> tuple[Pass, ...]:
        """The passes of a step, in order."""
        return (Pass("train", {"student"}),)

    def optimizers(self) -> Mapping[str, OptimizerSpec]:
        """The optimizers by name; ``main`` follows the recipe."""
        return {"main": OptimizerSpec(("student",))}

    def exported(self) -> Mapping[str, nn.Module]:
        """The nets that a finished stage keeps; the first is the one to evaluate."""
        return {"student": self.get_submodule("student")}

    def counts(self, batches: Mapping[str, Batch]) -> Mapping[str, Tensor]:
        """Numbers of valid labels in one micro-batch, for terms that are means over the whole batch."""
        return {}

    def forward(self, batches: Mapping[str, Batch], pass_name: str, context: StepContext) -> dict[str, Tensor]:
        """The weighted loss terms of one pass: scalars that the engine sums."""
        raise NotImplementedError

    def after_step(self, context: StepContext) -> None:
        """Updates after the optimizers' step: moving averages, queues."""

    def learned_state(self) -> dict[str, Tensor]:
        """All tensors of the method except those of its trained teachers, which come from their own artefacts."""
        given = tuple(f"{name}." for name in self.Settings.teachers)
        return {name: value for name, value in self.state_dict().items() if not name.startswith(given)}

    def load_learned_state(self, state: Mapping[str, Tensor]) -> None:
        """Load the result of :meth:`learned_state`. Raises ``RuntimeError`` if names or shapes differ."""
        own = self.learned_state()
        if own.keys() != state.keys():
            differing = sorted(own.keys() ^ state.keys())[:5]
            raise RuntimeError(f"the checkpoint's tensors are not the method's: {', '.join(differing)}")
        self.load_state_dict(dict(state), strict=False)

    def extra_report(self) -> dict[str, Any]:
        """Facts to log once before training (memory of queues, projection layers)."""
        return {}
