"""The schema of a recipe: data, nets, stages, and the ladder.

This module holds only the frame. The settings of a data set, net, stream, optimizer or protocol are defined beside
their code; those of a method are found by its name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from tutelage.data.sources import DataSettings
from tutelage.nets.settings import NetSettings
from tutelage.recipe.base import Name
from tutelage.recipe.ladder_settings import LadderSettings
from tutelage.recipe.stages import Stage
from tutelage.settings import Settings

FORMAT = 1


class RunSettings(Settings):
    """How the work is done; does not change results."""

    device: str = "auto"
    """`auto` (the first GPU, else the CPU), `cpu`, `cuda`, `cuda:1`, `mps`."""
    threads: Annotated[int, Field(gt=0)] | None = None
    """CPU threads of torch; null: the number of cores. Byte-exact resuming needs the same number."""
    workers: Annotated[int, Field(ge=0)] = 0
    """Processes that prepare batches, per stream; 0: a thread of the training process."""
    ahead: Annotated[int, Field(gt=0)] = 4
    """Batches prepared ahead of the step that needs them."""
    cache: Literal["none", "memory", "disk"] = "none"
    """Cache decoded images: in memory (small data sets), or as memory-mapped files (large images, many workers)."""
    cache_folder: str | None = None
    """Folder of the disk cache; null: one in the system's temporary folder."""
    on_unreadable: Literal["error", "skip"] = "error"
    """An unreadable image ends the run (error), or is replaced by another one."""
    weak_teacher: Literal["error", "warn"] = "error"
    """A teacher hardly better than predicting the most frequent class everywhere ends the run, or is reported."""
    trackers: list[Literal["tensorboard", "mlflow", "wandb", "trackio"]] = []
    """Trackers that get the log in addition to `log.jsonl` (`pip install tutelage[track]`)."""


class Recipe(Settings):
    """A whole experiment."""

    tutelage: Literal[1]
    """Version of the recipe format."""
    name: Name
    """Name of the recipe; results are written to `runs/<name>` unless `out` names another folder."""
    seed: int = 0
    """Seed of all random draws."""
    out: str | None = None
    """Run folder, relative to the folder in which the command is given."""
    classes: list[str] | None = None
    """The task's classes; null: those of the first data set."""
    data: dict[Name, DataSettings]
    """Data sets by name."""
    nets: dict[Name, NetSettings] = {}
    """Nets by name."""
    stages: dict[Name, Stage]
    """The stages, in order."""
    ladder: LadderSettings | None = None
    """The comparison of `tutelage ladder`; ignored by `tutelage run`."""
    run: RunSettings = RunSettings()
    """How the work is done."""

    def out_folder(self) -> str:
        """The run folder."""
        return self.out or f"runs/{self.name}"

    def written(self, content: dict[str, object]) -> dict[str, object]:
        """The recipe as plain values, without the key `ladder` where it is null."""
        return {key: value for key, value in content.items() if key != "ladder" or value is not None}

    def source_of(self, reference: str) -> str:
        """The data set that images come from, through the stages that copied or labelled them."""
        seen = {reference}
        stage = self.stages.get(reference)
        while stage is not None and stage.origin is not None and stage.makes == "data":
            reference = stage.origin
            if reference in seen:
                break
            seen.add(reference)
            stage = self.stages.get(reference)
        return reference

    def scored_by(self, stage: str) -> dict[str, str] | None:
        """Label → net of an evaluate stage; ``None`` for any other name."""
        found = self.stages.get(stage)
        return None if found is None else found.scored()

    def not_weighted(self, fit: str, data: Sequence[str]) -> list[str]:
        """The items of ``data`` whose images differ from those of a fit of weights; none without such a fit."""
        stage = self.stages.get(fit)
        weighted = None if stage is None else stage.weighted_images
        if weighted is None:
            return []
        whole = [one for one in data if "/" not in one or one.partition("/")[0] not in self.stages]
        return [one for one in whole if not self._same_images(one, weighted)]

    def _same_images(self, one: str, other: str) -> bool:
        """Whether two names lead to one data set; an omitted split means the only one."""
        parts = [self.source_of(name).partition("/") for name in (one, other)]
        splits = {split for _, _, split in parts} - {""}
        return parts[0][0] == parts[1][0] and len(splits) < 2
