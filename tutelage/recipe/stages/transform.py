"""The `transform` stage: a copy of a data set in the style of another."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from tutelage.data.settings import StyleSettings
from tutelage.recipe.base import StageSettings
from tutelage.settings import Ref


class TransformStage(StageSettings):
    """Copy a data set in the style of another; the copy keeps the masks, and its name is used as data."""

    makes: ClassVar[str] = "data"

    kind: Literal["transform"] = "transform"
    data: Annotated[str, Ref("data", use="source")]
    """The images to copy (`name/split`)."""
    target: Annotated[str, Ref("data", use="target")]
    """The images whose style is transferred, one drawn for each copy; their masks are not opened."""
    style: StyleSettings = StyleSettings()
    """How the style is transferred."""
    seed: int | None = None
    """The stage's own seed; null: the recipe's."""

    @property
    def origin(self) -> str | None:
        return self.data
