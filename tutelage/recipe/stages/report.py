"""A `report` stage: one HTML page."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from tutelage.recipe.base import Fault, Name, StageSettings, nearest
from tutelage.settings import Ref

if TYPE_CHECKING:
    from tutelage.recipe.schema import Recipe


class ReportStage(StageSettings):
    """Write the report: one HTML page."""

    makes: ClassVar[str] = "page"

    kind: Literal["report"] = "report"
    scores: Annotated[Name, Ref("scores")]
    """The `evaluate` stage whose nets are compared."""
    baseline: Name | None = None
    """Label of the baseline net; null: the first."""
    student: Name | None = None
    """Label of the reported net; null: the last."""
    teacher: Name | None = None
    """Label of the teacher, if there is one."""
    images: Annotated[int, Field(ge=0)] = 6
    """Number of images in each gallery (worst, best, most changed)."""

    def faults(self, recipe: Recipe) -> Iterator[Fault]:
        """Labels missing from the evaluation."""
        named = recipe.scored_by(self.scores)
        if named is None:
            return
        for role in ("baseline", "student", "teacher"):
            label = getattr(self, role)
            if label is not None and label not in named:
                text = f"stage {self.scores!r} does not score a net {label!r}{nearest(label, named)}"
                yield Fault((role,), "unknown-label", text)
