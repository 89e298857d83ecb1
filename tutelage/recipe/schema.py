"""The schema of a recipe: data, nets, stages, and the ladder.

Only the frame stands here. The settings of a data set, a net, a stream, an optimizer or a protocol are defined beside
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
    """How the work is done; nothing of this changes results."""

    device: str = "auto"
    """`auto` (the first GPU, else the CPU), `cpu`, `cuda`, `cuda:1`, `mps`."""
    threads: Annotated[int, Field(gt=0)] | None = None
    """CPU threads of torch; null: as many as there are cores. Byte-exact resuming needs the same number."""
    workers: Annotated[int, Field(ge=0)] = 0
    """Processes that prepare batches, per stream; 0: a thread of the training process."""
    ahead: Annotated[int, Field(gt=0)] = 4
    """Batches prepared ahead of the step that needs them."""
    cache: Literal["none", "memory", "disk"] = "none"
    """Keep decoded images: in memory (small data sets), or as files that are mapped (large images, many workers)."""
    cache_folder: str | None = None
    """Folder of the disk cache; null: one in the system's place for temporary files."""
    on_unreadable: Literal["error", "skip"] = "error"
    """An image that cannot be read ends the run, or another one takes its place."""
    weak_teacher: Literal["error", "warn"] = "error"
    """A teacher that is hardly better than the most frequent class everywhere ends the run, or is reported."""
    trackers: list[Literal["tensorboard", "mlflow", "wandb", "trackio"]] = []
    """Where the log goes besides `log.jsonl`; each must be installed (`pip install tutelage[track]`)."""


class Recipe(Settings):
    """A whole experiment."""

    tutelage: Literal[1]
    """Version of the recipe format."""
    name: Name
    """Name of the recipe; its results lie in `runs/<name>` unless `out` names another folder."""
    seed: int = 0
    """Decides everything random."""
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
    """What `tutelage ladder` compares; `tutelage run` leaves it alone."""
    run: RunSettings = RunSettings()
    """How the work is done."""

    def out_folder(self) -> str:
        """The run folder."""
        return self.out or f"runs/{self.name}"

    def written(self, content: dict[str, object]) -> dict[str, object]:
        """Everything, without a ladder where there is none."""
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
        """Label → net of an evaluate stage; ``None`` for a name that is none."""
        found = self.stages.get(stage)
        return None if found is None else found.scored()

    def not_weighted(self, fit: str, data: Sequence[str]) -> list[str]:
        """Which of ``data`` are other images than those that a fit of weights was made of; none without such a fit."""
        stage = self.stages.get(fit)
        weighted = None if stage is None else stage.weighted_images
        if weighted is None:
            return []
        whole = [one for one in data if "/" not in one or one.partition("/")[0] not in self.stages]
        return [one for one in whole if not self._same_images(one, weighted)]

    def _same_images(self, one: str, other: str) -> bool:
        """Whether two names lead to one data set; a split that is left out is the only one."""
        parts = [self.source_of(name).partition("/") for name in (one, other)]
        splits = {split for _, _, split in parts} - {""}
        return parts[0][0] == parts[1][0] and len(splits) < 2
