"""The section `ladder` of a recipe: the same student trained in several ways, over several seeds, and compared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from tutelage.evaluation.protocol import Protocol
from tutelage.methods import METHODS, find_settings
from tutelage.recipe.base import Name, NetName
from tutelage.recipe.stages.annotate import Labelling
from tutelage.recipe.stages.evaluate import ClassGroupSettings
from tutelage.recipe.stages.train import Course, MethodChoice
from tutelage.settings import Ref, Settings, plain

PSEUDO_LABELS = "pseudo_labels"
"""The rung without a method: the student also trains on images that the teacher labels."""


def known_rungs() -> list[str]:
    """The valid names of rungs."""
    return [*METHODS, PSEUDO_LABELS]


def rung_settings(name: str) -> type[Settings]:
    """The settings of a method, or of `pseudo_labels`."""
    return Labelling if name == PSEUDO_LABELS else find_settings(name)


class Rung(MethodChoice):
    """One way to train the ladder's student: a method by `name` (or `pseudo_labels`) with its settings, or `stages`."""

    name: str = "stages"
    """The method, `pseudo_labels`, or `stages` (the default where the rung has stages)."""
    training: dict[str, Any] = {}
    """Changes to the ladder's `training` (`steps`, `streams` ...); the table lists them."""
    nets: dict[Name, Annotated[Name, Ref("net")]] = {}
    """Nets of the recipe that the method trains beside the student, by role; the student's own is `ladder.student`."""
    scored: NetName = "student"
    """The net to score, among those the method keeps: `student`, or `ema` for some methods. With `stages`: a stage
    or `stage.net`; default: the last train stage."""
    stages: dict[Name, dict[str, Any]] = {}
    """Several stages, in order; a `train` stage takes the keys it does not set from the ladder's `training`."""

    @model_validator(mode="after")
    def _a_method_or_stages(self) -> Rung:
        if (self.name == "stages") != bool(self.stages):
            raise ValueError("expected a method (`name`) or `stages`")
        return self

    def changes(self) -> dict[str, Any]:
        """The rung's keys as written, without the method and its settings."""
        return self.model_dump(mode="json", include=set(RUNG_KEYS), exclude_defaults=True)

    def written(self, content: dict[str, Any]) -> dict[str, Any]:
        """The method with all its settings, and the rung's keys as written."""
        settings = {} if self.stages else plain(rung_settings(self.name).model_validate(self.own()))
        return {"name": self.name, **settings, **self.changes()}

    def with_files(self, change: Callable[[str], str]) -> Rung:
        """The rung with every start weight that is a file renamed; its training and stages are plain values."""

        def inside(content: dict[str, Any]) -> dict[str, Any]:
            init = content.get("init")
            if not isinstance(init, dict):
                return content
            return {**content, "init": {target: change(str(it)) for target, it in init.items()}}

        stages = {name: inside(stage) for name, stage in self.stages.items()}
        return self.model_copy(update={"training": inside(self.training), "stages": stages})


RUNG_KEYS = tuple(name for name in Rung.model_fields if name != "name")
"""The keys of a rung that are not settings of its method."""

ScoredData = Annotated[str, Ref("data", masks=True, use="test")]


class LadderScore(ClassGroupSettings):
    """How every rung is scored."""

    data: ScoredData
    """Labelled data set (`name/split`) that no rung was trained or chosen on."""
    protocol: Protocol = Protocol()
    """How the nets are applied."""


class LadderTuning(Settings):
    """The same trials for every rung; its best values are used for all seeds."""

    data: ScoredData
    """Labelled data set (`name/split`) on which trials are compared; must differ from the scored one."""
    values: Annotated[dict[str, list[Any]], Field(min_length=1)]
    """Key of `training` → values to try, e.g. `optimizer.lr: [2.0e-3, 4.0e-3]`; several keys: every combination."""
    steps: Annotated[int, Field(gt=0)] | None = None
    """Optimizer steps of a trial; null: as many as the ladder's."""
    seed: int = 0
    """Seed of all trials."""
    on_target: bool = False
    """Allow choosing by masks of a domain that counts as unlabelled; marks every result."""

    @field_validator("values")
    @classmethod
    def _several_different(cls, values: dict[str, list[Any]]) -> dict[str, list[Any]]:
        for key, tried in values.items():
            if len(tried) < 2 or any(value in tried[:place] for place, value in enumerate(tried)):
                raise ValueError(f"{key} needs two or more different values")
        return values


class LadderSettings(Settings):
    """Compare several ways of training one student, over several seeds."""

    student: Annotated[Name, Ref("net")]
    """The net of the recipe that every rung trains."""
    teacher: Annotated[NetName, Ref("trained")] | None = None
    """The trained net (`stage` or `stage.net`) of all methods that need a teacher."""
    training: Course
    """The training shared by all rungs: images, number of updates."""
    score: LadderScore
    """How the rungs are scored, and on which data."""
    seeds: Annotated[list[int], Field(min_length=1)] = [0, 1, 2]
    """Every rung is trained once with each seed."""
    rungs: Annotated[dict[Name, Rung], Field(min_length=1)]
    """The rungs by name: a method's name, or `{name: ..., settings}`."""
    plain: Name = "plain"
    """The baseline rung."""
    oracle: Name | None = None
    """The upper-bound rung, usually with more masks: the table shows each rung's share of its gain."""
    tune: LadderTuning | None = None
    """Trials before the seeds; null: no tuning."""
    worth: Annotated[float, Field(ge=0)] = 0.5
    """The smallest worthwhile gain, in points of mIoU."""

    @model_validator(mode="before")
    @classmethod
    def _short_rungs(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("rungs"), dict):
            rungs = {name: {"name": it} if isinstance(it, str) else it for name, it in values["rungs"].items()}
            return {**values, "rungs": rungs}
        return values

    @field_validator("seeds")
    @classmethod
    def _each_once(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("expected different seeds")
        return seeds
