"""An `evaluate` stage: scores of trained nets on labelled data."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import model_validator

from tutelage.evaluation.protocol import Protocol
from tutelage.recipe.base import Name, NetName, StageSettings
from tutelage.settings import Ref, Settings

ClassName = Annotated[str, Ref("class")]
Trained = Annotated[NetName, Ref("trained")]


class ClassGroupSettings(Settings):
    """Other groupings of classes for scoring the same predictions."""

    subsets: dict[Name, list[ClassName]] = {}
    """Also the mean IoU over some of the classes: name → classes. The counts do not change: a pixel predicted as an
    omitted class is still wrong."""
    merged: dict[Name, list[ClassName]] = {}
    """Also scores with several classes merged into one: name → classes; classes in no group are unchanged."""

    @model_validator(mode="after")
    def _groups(self) -> ClassGroupSettings:
        for key, groups in (("subsets", self.subsets), ("merged", self.merged)):
            for name, classes in groups.items():
                if not classes:
                    raise ValueError(f"{key}.{name}: expected at least one class")
                twice = sorted({one for one in classes if classes.count(one) > 1})
                if twice:
                    raise ValueError(f"{key}.{name}: duplicate classes {', '.join(twice)}")
        members = [one for classes in self.merged.values() for one in classes]
        twice = sorted({one for one in members if members.count(one) > 1})
        if twice:
            raise ValueError(f"merged: {', '.join(twice)} in more than one group")
        return self


class EvaluateStage(ClassGroupSettings, StageSettings):
    """Score trained nets on labelled data."""

    makes: ClassVar[str] = "scores"

    kind: Literal["evaluate"] = "evaluate"
    nets: dict[Name, Trained] | list[Trained]
    """The nets: a list of stages, or label → stage."""
    data: Annotated[str, Ref("data", masks=True, use="test")]
    """Labelled data set (`name/split`)."""
    protocol: Protocol = Protocol()
    """How the nets are applied; part of every score's identity."""
    boundary: bool = True
    """Also boundary IoU."""
    calibration: bool = True
    """Also expected calibration error and the reliability curve."""

    def scored(self) -> dict[str, str]:
        if isinstance(self.nets, dict):
            return dict(self.nets)
        return {reference.replace(".", "-"): reference for reference in self.nets}
