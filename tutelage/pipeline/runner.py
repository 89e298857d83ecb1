"""The base runner of a stage: its key, checks before it runs, making its artefact, and access to its outputs.

Each kind of stage has a subclass in ``pipeline/stages/``. Everything that follows from the references in a stage's
settings is implemented here, for all kinds.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor

from tutelage.engine import collectives
from tutelage.engine.log import read_log
from tutelage.engine.meter import peak_memory
from tutelage.errors import RecipeError
from tutelage.recipe.base import StageSettings
from tutelage.runs.atomic import write_json
from tutelage.settings import Reference, key_content, references

if TYPE_CHECKING:
    from tutelage.audit.content import Audit
    from tutelage.audit.report_content import LabelRound
    from tutelage.data.dataset import Dataset
    from tutelage.nets.settings import NetSettings
    from tutelage.pipeline.builder import Builder
    from tutelage.pipeline.display import Display
    from tutelage.pipeline.training_cost import TrainingCost
    from tutelage.report.content import Training
    from tutelage.runs.store import Artefact

S = TypeVar("S", bound=StageSettings)

KEY_FORMAT = 2
"""Increment it when keys are computed differently; all stages are then made again."""


@dataclass(frozen=True)
class Workplace:
    """The environment of a stage's work."""

    device: torch.device
    display: Display


class StageRunner(Generic[S]):
    """The work of the stage ``name``."""

    version: ClassVar[int] = 1
    """Increment it when the results of the kind change."""

    def __init__(self, builder: Builder, name: str, stage: S) -> None:
        self.builder = builder
        self.name = name
        self.stage = stage

    @property
    def artefact(self) -> Artefact:
        """The stage's artefact, finished or not."""
        return self.builder.artefacts[self.name]

    @property
    def seed(self) -> int:
        """The stage's own seed, or the recipe's."""
        own: int | None = getattr(self.stage, "seed", None)
        return self.builder.recipe.seed if own is None else own

    # Identity

    def content(self) -> dict[str, Any]:
        """Everything that determines the stage's result, as JSON-like values."""
        settings = key_content(self.stage, self._input_key)
        if "seed" in settings:
            settings["seed"] = self.seed
        return {
            "format": KEY_FORMAT,
            "version": self.version,
            "classes": len(self.builder.classes),
            "settings": settings,
            **self.key(),
        }

    def key(self) -> dict[str, Any]:
        """Further inputs that determine the result, besides the settings and their references."""
        return {}

    def shared_content(self) -> dict[str, dict[str, Any]]:
        """Kind → everything that determines an artefact shared with other stages."""
        return {}

    def _input_key(self, reference: Reference) -> Any:
        """Identifies the content of a reference."""
        builder, kind = self.builder, reference.ref.kind
        if kind == "data":
            return builder.data_key(reference.value)
        if kind == "net":
            return builder.net_content(reference.value)
        if kind in ("trained", "input"):
            return builder.net_key(reference.value)
        if kind in ("fit", "scores"):
            return builder.artefacts[reference.value].key
        if kind in ("start", "file"):
            return builder.source_key(reference.value)
        if kind == "class":
            try:
                return builder.class_id(reference.value)
            except RecipeError as error:
                place = ".".join(map(str, reference.place[:2]))
                raise RecipeError(error.code, f"stage {self.name!r}, {place}: {error.message}", error.remedy) from None
        return reference.value

    # Before the run

    def preflight(self) -> None:
        """Raise errors that can be detected before the first stage runs."""

    def warnings(self) -> Iterator[str]:
        """Warnings; ``<stages>`` is replaced by the stages that share a warning."""
        return iter(())

    def masked(self) -> Iterator[tuple[str, str]]:
        """The data whose masks the stage opens, each with the setting that names them."""
        for reference in references(self.stage):
            if reference.ref.kind == "data" and reference.ref.masks:
                yield reference.value, self._place(reference)

    def _place(self, reference: Reference) -> str:
        """The place of a reference, for a message: ``stage 'x', stream 'labeled'``."""
        part, stage = str(reference.place[0]), f"stage {self.name!r}"
        if part == "streams":
            return f"{stage}, stream {reference.place[1]!r}"
        return stage if part == "data" else f"{stage}, {part}"

    # Work

    def make(self, work: Workplace) -> None:
        """Make the artefact; its inputs must be finished and its lock held."""
        raise NotImplementedError

    def run(self, work: Workplace) -> None:
        """Make the artefact and record the time taken."""
        started = time.monotonic()
        self.make(work)
        if collectives.rank() == 0:
            self._note_times(time.monotonic() - started, work.device)
        collectives.barrier()

    def _note_times(self, seconds: float, device: torch.device) -> None:
        """Write the time taken. Times are not content: their file has no checksum."""
        times = {"seconds": round(seconds, 2), "peak_memory_mib": round(peak_memory(device), 1)}
        if self.artefact.log.is_file():
            records = [record for record in read_log(self.artefact.log) if "spent_s" in record]
            spent = sum(record["spent_s"] for record in records)
            waited = sum(record["data_wait"] * record["spent_s"] for record in records)
            times["training_seconds"] = round(spent, 2)
            times["data_wait"] = round(waited / spent, 4) if spent else 0.0
        write_json(self.artefact.times, times)

    # What other stages and commands use

    def dataset(self, stand_ins: bool = False) -> Dataset:
        """The stage's output data; with ``stand_ins`` the nearest equivalent where they are not made yet."""
        raise RecipeError("not-data", f"stage {self.name!r} does not make data", "name a data set")

    def net_settings(self, net: str) -> NetSettings:
        """The settings of one of the stage's nets."""
        raise RecipeError("not-a-net", f"stage {self.name!r} does not make nets", "name a train or import stage")

    def stand_in_fit(self) -> Mapping[str, Tensor]:
        """Random tensors of the fitted shapes."""
        raise RecipeError("not-a-fit", f"stage {self.name!r} fits nothing", "name a fit stage")

    def file_kind(self) -> str:
        """The kind of tensors in the file of a fit."""
        raise RecipeError("not-a-fit", f"stage {self.name!r} fits nothing", "name a fit stage")

    def audit(self, pictures: int, device: torch.device) -> Audit | None:
        """The audit of a training, for a report with galleries of ``pictures`` images."""
        return None

    def course(self, scored: str) -> Training | None:
        """The course of a training, for a report on the data ``scored``."""
        return None

    def label_round(self) -> LabelRound | None:
        """The audit of written pseudo labels, for a report."""
        return None

    def cost(self, device: torch.device, count: bool) -> TrainingCost | None:
        """The estimated cost, from a few steps here; ``None`` for a cheap stage. Writes nothing.

        ``count``: also count the multiply-adds of a step.
        """
        return None
