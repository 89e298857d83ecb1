"""The schema of a recipe: data, nets, stages.

Only the frame stands here. What a data set, a net, a stream, an optimizer or a protocol may be told is defined beside
its code; a method's settings are found by the method's name, and imported only when a recipe names it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from tutelage.data.opening import DataSettings
from tutelage.data.stream import StreamSettings
from tutelage.engine.loop import FitSettings
from tutelage.evaluation.protocol import Protocol
from tutelage.nets.settings import NetSettings
from tutelage.settings import Settings

if TYPE_CHECKING:
    from tutelage.engine.contract import Method

FORMAT = 1

METHODS = {
    "supervised": "tutelage.methods.supervised:Supervised",
    "pixel_kd": "tutelage.methods.pixel_kd:PixelKD",
    "mean_teacher": "tutelage.methods.mean_teacher:MeanTeacher",
    "advent": "tutelage.methods.advent:AdvEnt",
}
"""Method name → where its class lives."""


def find_method(name: str) -> type[Method]:
    """The class of a method. Raises ``KeyError`` for a name that is not in :data:`METHODS`."""
    module, _, attribute = METHODS[name].partition(":")
    found: type[Method] = getattr(importlib.import_module(module), attribute)
    return found


Name = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$")]
Reference = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]*(\.[A-Za-z][A-Za-z0-9_-]*)?$")]


class RunSettings(Settings):
    """How the work is done; nothing of this changes what comes out."""

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
    """Where the disk cache lies; null: a folder in the system's place for temporary files."""
    on_unreadable: Literal["error", "skip"] = "error"
    """An image that cannot be read ends the run, or another one takes its place."""
    trackers: list[Literal["tensorboard", "mlflow", "wandb", "trackio"]] = []
    """Where the log goes besides `log.jsonl`; each must be installed (`pip install tutelage[track]`)."""


class MethodChoice(Settings):
    """A method and its settings; which keys there are depends on the name."""

    model_config = {**Settings.model_config, "extra": "allow"}

    name: str
    """The method."""

    def settings(self) -> dict[str, Any]:
        """The settings as written, without the name."""
        return dict(self.model_extra or {})


class EvaluateDuring(Settings):
    """Evaluation while training."""

    data: str
    """Labelled data set (`name/split`) on which checkpoints are compared."""
    every: Annotated[int, Field(gt=0)] | None = None
    """Steps between two evaluations; null: five over the stage."""
    protocol: Protocol = Protocol()
    """How the net is applied."""
    images: Annotated[int, Field(gt=0)] | None = None
    """Only so many images, evenly spread; null: all."""


class TrainStage(FitSettings):
    """Train nets with a method."""

    kind: Literal["train"] = "train"
    method: MethodChoice
    """Which method, by `name`, with its settings beside it."""
    nets: dict[Name, Name] = {}
    """Role → net of the recipe; by default role `student` is the net `student`."""
    inputs: dict[Name, Reference] = {}
    """Role → trained net of an earlier stage (`stage` or `stage.net`), e.g. `teacher: big`."""
    init: dict[str, str] = {}
    """Start weights: role (or `role.encoder`) → earlier stage, or a weight file (ends in .safetensors, .pt, .pth)."""
    streams: dict[Name, StreamSettings]
    """The streams that the method asks for."""
    evaluate: EvaluateDuring | None = None
    """Evaluation while training; null: none, and the last weights are kept."""
    keep: Literal["best", "last"] = "best"
    """Which weights the stage hands on: those with the best score, or the last."""
    seed: int | None = None
    """The stage's own seed; null: the recipe's. A fixed one lets several runs share the stage."""

    @model_validator(mode="before")
    @classmethod
    def _short_method(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("method"), str):
            return {**values, "method": {"name": values["method"]}}
        return values


class AnnotateStage(Settings):
    """Write pseudo labels: what a trained net says of unlabelled images."""

    kind: Literal["annotate"] = "annotate"
    net: Reference
    """The net that labels (`stage` or `stage.net`)."""
    data: str
    """The images (`name/split`); their masks, if they have any, are not opened."""
    policy: Literal["argmax", "threshold", "class_balanced"] = "argmax"
    """All pixels; those above `threshold`; or of each class the `portion` that is surest."""
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.9
    """For `threshold`: smallest confidence of a pixel that is labelled."""
    portion: Annotated[float, Field(gt=0, le=1)] = 0.5
    """For `class_balanced`: share of each class's pixels that are labelled."""
    protocol: Protocol = Protocol()
    """How the net is applied."""


class EvaluateStage(Settings):
    """Score trained nets on labelled data."""

    kind: Literal["evaluate"] = "evaluate"
    nets: dict[Name, Reference] | list[Reference]
    """The nets: a list of stages, or label → stage."""
    data: str
    """Labelled data set (`name/split`)."""
    protocol: Protocol = Protocol()
    """How the nets are applied; part of every number's identity."""
    boundary: bool = True
    """Also boundary IoU."""
    calibration: bool = True
    """Also expected calibration error and the reliability curve."""

    def named(self) -> dict[str, str]:
        """Label → reference."""
        if isinstance(self.nets, dict):
            return dict(self.nets)
        return {reference.replace(".", "-"): reference for reference in self.nets}


class ReportStage(Settings):
    """Write the report: one HTML page."""

    kind: Literal["report"] = "report"
    scores: Name
    """The `evaluate` stage whose nets are compared."""
    baseline: Name | None = None
    """Label of the net that must be beaten; null: the first."""
    student: Name | None = None
    """Label of the net that it is about; null: the last."""
    teacher: Name | None = None
    """Label of the teacher, if there is one."""
    images: Annotated[int, Field(ge=0)] = 6
    """Number of images in each gallery (worst, best, most changed)."""


Stage = Annotated[TrainStage | AnnotateStage | EvaluateStage | ReportStage, Field(discriminator="kind")]


class Recipe(Settings):
    """A whole experiment."""

    tutelage: Literal[1]
    """Version of the recipe format."""
    name: Name
    """Name of the recipe; its results lie in `runs/<name>` unless `out` says otherwise."""
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
    """What is done, in order."""
    run: RunSettings = RunSettings()
    """How the work is done."""

    def out_folder(self) -> str:
        """The run folder."""
        return self.out or f"runs/{self.name}"
