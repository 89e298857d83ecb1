"""Charts with a title, and a legend where there are several curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from tutelage.report import formatting, plots
from tutelage.report.content import Points

MOST_LINES = 12
"""Curves in one chart."""


@dataclass(frozen=True)
class Chart:
    """A chart with its title, and a legend where there are several curves."""

    title: str
    drawing: Markup
    legend: tuple[tuple[str, int], ...] = ()
    """Name and style of each curve."""
    note: str = ""


def lines(curves: Mapping[str, Points]) -> list[plots.Line]:
    """Curves by name, each with its own style; curves without points are omitted."""
    named = list(curves.items())[:MOST_LINES]
    return [plots.Line(str(name), points, number) for number, (name, points) in enumerate(named) if points]


def legend(drawn: Sequence[plots.Line]) -> tuple[tuple[str, int], ...]:
    """Name and style of each curve."""
    return tuple((line.name, line.style % plots.STYLES) for line in drawn)


def about(what: str, where: str, drawn: Sequence[plots.Line]) -> str:
    """The text alternative of a chart: first and last value of each curve."""
    courses = (f"{line.name} from {_ends(line.points)}" for line in drawn)
    return f"{what} {where} against the step: {'; '.join(courses)}"


def _ends(points: Points) -> str:
    return f"{formatting.significant(points[0][1])} to {formatting.significant(points[-1][1])}"
