"""Shared by all parts of a recipe: names, errors with their places, and the base class of the stages."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from tutelage.settings import Place, Settings

if TYPE_CHECKING:
    from tutelage.recipe.schema import Recipe

Name = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$")]
NetName = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]*(\.[A-Za-z][A-Za-z0-9_-]*)?$")]
"""``stage`` or ``stage.net``."""


@dataclass(frozen=True)
class Fault:
    """One error of a recipe: its place, code and message."""

    place: Place
    code: str
    text: str

    def below(self, place: Place) -> Fault:
        """The same error, its place prefixed with ``place``."""
        return Fault((*place, *self.place), self.code, self.text)


class StageSettings(Settings):
    """The base of all stages. A kind of stage is a subclass here and its runner in ``pipeline/stages/``."""

    kind: str
    makes: ClassVar[str]
    """Output that other stages can refer to: `nets`, `data`, `fit`, `scores` or `page`."""
    pseudo: ClassVar[bool] = False
    """Whether the masks of its output data are pseudo labels."""
    trains: ClassVar[bool] = False
    """Whether it trains nets with a method."""

    def faults(self, recipe: Recipe) -> Iterator[Fault]:
        """Errors in the stage's settings, given the rest of the recipe; places are relative to the stage.

        Names that do not exist are checked for all stages alike; see :mod:`tutelage.recipe.references`.
        """
        return iter(())

    def leaks(self, recipe: Recipe, is_bare: Callable[[str], bool]) -> Iterator[Fault]:
        """Places where masks treated as missing would affect a choice; ``is_bare``: whether a data set's masks are."""
        return iter(())

    def without_leaks(self, is_bare: Callable[[str], bool]) -> StageSettings:
        """The stage with defaults that use no masks treated as missing."""
        return self

    @property
    def updates(self) -> int:
        """Optimizer steps."""
        return 0

    @property
    def origin(self) -> str | None:
        """The data from which the stage makes its own."""
        return None

    @property
    def chosen_on_target(self) -> bool:
        """Whether the recipe explicitly lets masks treated as missing affect a choice."""
        return False

    @property
    def weighted_images(self) -> str | None:
        """The images for which the stage makes pixel weights."""
        return None

    def scored(self) -> dict[str, str] | None:
        """Label → trained net, for a stage that scores nets."""
        return None

    def nets_by_role(self, recipe: Recipe) -> dict[str, str]:
        """Role → net of the recipe, for the nets that the stage trains."""
        return {}


def nearest(given: str, known: Iterable[str]) -> str:
    """``; did you mean 'x'? (known: x, y)``, the end of an error message."""
    known = list(known)
    close = difflib.get_close_matches(given, known, n=1, cutoff=0.6)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"{hint} (known: {', '.join(known) or 'none'})"


def listed(data: str | list[str]) -> list[str]:
    """One name or several, as a list."""
    return [data] if isinstance(data, str) else list(data)


def short_form(values: Any, key: str, inner: str) -> Any:
    """Expand ``key: text`` to ``key: {inner: text}``."""
    if isinstance(values, dict) and isinstance(values.get(key), str):
        return {**values, key: {inner: values[key]}}
    return values
