"""The tables of the page, with formatted cells."""

# Legend: K classes.

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tutelage.evaluation.intervals import Figure, Interval
from tutelage.report.content import ClassInfo, Figures, GroupedQuality, ReportContent, ScoredNet
from tutelage.report.formatting import (
    NONE,
    duration,
    interval,
    known,
    magnitude,
    memory,
    percent,
    ratio,
    signed,
    significant,
)
from tutelage.report.pictures import log_level

HEAT_LEVELS = 10
"""Number of shades of a confusion cell in the style sheet."""

MOST_CELLS = 20
"""Largest number of classes of a confusion matrix shown as a table; larger ones are pictures."""

_MOST_CONFUSIONS = 12
_MOST_CHANGED = 3


@dataclass(frozen=True)
class TableCell:
    """One figure, a note in small type, and whether it is the best of its row."""

    text: str
    note: str = ""
    best: bool = False


@dataclass(frozen=True)
class TableRow:
    """One figure of every net."""

    name: str
    hint: str
    cells: tuple[TableCell, ...]


def role(content: ReportContent, label: str) -> str:
    """``student``, ``baseline``, ``teacher`` or ``other``."""
    roles = {content.teacher: "teacher", content.baseline: "baseline", content.student: "student"}
    return roles.get(label, "other")


def in_order(content: ReportContent) -> list[ScoredNet]:
    """Baseline, student, teacher, then the others in their order."""
    rank = {"baseline": 0, "student": 1, "teacher": 2, "other": 3}
    return sorted(content.nets, key=lambda net: rank[role(content, net.label)])


def summary(content: ReportContent) -> list[tuple[str, list[TableRow]]]:
    """The figures of all nets in groups; rows without any figure are omitted."""
    nets = in_order(content)
    absent = max((net.quality.absent for net in nets), default=0)
    absent_ones = f"{absent} absent count 0" if absent else ""
    quality = [
        _row(nets, "mIoU", "", lambda n: n.quality.miou, _points, _interval, max),
        _row(nets, "mIoU, all classes", absent_ones, lambda n: n.quality.miou_all, _points, best=max),
        _row(nets, "Pixel accuracy", "", lambda n: n.quality.pixel_accuracy, _points, best=max),
        _row(nets, "Boundary IoU", "", lambda n: n.quality.boundary_miou, _points, best=max),
        _row(nets, "Calibration error", "ECE, lower is better", _calibration_error, _points, best=min),
    ]
    cost = [
        _row(nets, "Parameters", "", _of_cost("parameters"), magnitude),
        _row(nets, "GFLOPs", "one image", _of_cost("multiply_adds"), _giga),
        _row(nets, "Milliseconds", "one image", _of_cost("milliseconds"), significant),
    ]
    training = [
        _row(nets, "Time", "this stage alone", _of_training(content, "seconds"), duration),
        _row(nets, "Waiting for data", "% of it", _of_training(content, "data_wait"), percent),
    ]
    groups = [("Quality (%)", quality), ("Cost", cost), ("Training", training)]
    kept = [(name, [row for row in rows if row is not None]) for name, rows in groups]
    return [(name, rows) for name, rows in kept if rows]


def _row(
    nets: Sequence[ScoredNet],
    name: str,
    hint: str,
    read: Callable[[ScoredNet], Figure],
    form: Callable[[Figure], str],
    note: Callable[[ScoredNet], str] = lambda net: "",
    best: Callable[[list[float]], float] | None = None,
) -> TableRow | None:
    values = [read(net) for net in nets]
    there = [value for value in values if value is not None and known(value)]
    if not there:
        return None
    # Equal texts are equally good: compare the texts, not the numbers.
    top = form(best(there)) if best is not None and len({form(value) for value in there}) > 1 else None
    cells = [TableCell(form(value), note(net), form(value) == top) for net, value in zip(nets, values, strict=True)]
    return TableRow(name, hint, tuple(cells))


def _interval(net: ScoredNet) -> str:
    return _bounds(net.quality.interval)


def _points(value: Figure) -> str:
    return percent(value, 2)


def _giga(value: Figure) -> str:
    return NONE if value is None else significant(value / 1e9)


def _calibration_error(net: ScoredNet) -> Figure:
    return None if net.quality.reliability is None else net.quality.reliability.error


def _of_cost(name: str) -> Callable[[ScoredNet], Figure]:
    """Reads one figure of a net's cost."""

    def read(net: ScoredNet) -> Figure:
        value: Figure = None if net.cost is None else getattr(net.cost, name)
        return value

    return read


def _of_training(content: ReportContent, name: str) -> Callable[[ScoredNet], Figure]:
    """Reads one figure of the stage that made a net."""

    def read(net: ScoredNet) -> Figure:
        training = content.training(net.stage)
        value: Figure = None if training is None else getattr(training, name)
        return value

    return read


def costs(content: ReportContent) -> list[tuple[ScoredNet, tuple[TableCell, ...]]]:
    """The cost of each net, absolute and relative to the student's."""
    student = content.net(content.student)
    result = []
    for net in in_order(content):
        if net.cost is None:
            continue
        cells = []
        for name, form in (("parameters", magnitude), ("multiply_adds", _giga), ("milliseconds", significant)):
            value = _of_cost(name)(net)
            own = None if student is None or student is net else _of_cost(name)(student)
            cells.append(TableCell(form(value), ratio(value, own)))
        cells.append(TableCell(duration(_of_training(content, "seconds")(net))))
        cells.append(TableCell(memory(_of_training(content, "peak_memory_mib")(net))))
        result.append((net, tuple(cells)))
    return result


@dataclass(frozen=True)
class ClassRow:
    """One class: its frequency and each net's scores."""

    info: ClassInfo
    share: Figure
    """Share of the true pixels."""
    ious: dict[str, Figure]
    """Net's label → IoU."""
    change: Figure
    """Student minus baseline."""
    recall: Figure
    precision: Figure
    boundary: Figure

    @property
    def tone(self) -> str:
        """``gain``, ``loss`` or empty, from the change as printed."""
        return _tone(self.change, 1)


def class_rows(content: ReportContent) -> list[ClassRow]:
    """All classes, the most frequent first."""
    student, baseline = content.net(content.student), content.net(content.baseline)
    total = sum(one.pixels for one in content.classes)
    rows = []
    for index in sorted(range(len(content.classes)), key=lambda i: (-content.classes[i].pixels, i)):
        info = content.classes[index]
        before, after = (None if net is None else at(net.quality.iou, index) for net in (baseline, student))
        change = None if before is None or after is None or baseline is student else after - before
        rows.append(
            ClassRow(
                info=info,
                share=info.pixels / total if total else None,
                ious={net.label: at(net.quality.iou, index) for net in in_order(content)},
                change=change,
                recall=None if student is None else at(student.quality.accuracy, index),
                precision=None if student is None else at(student.quality.precision, index),
                boundary=None if student is None else at(student.quality.boundary_iou, index),
            )
        )
    return rows


@dataclass(frozen=True)
class GroupingRow:
    """A mean over other classes, or one of the merged classes below it."""

    name: str
    hint: str
    cells: tuple[TableCell, ...]
    """One per net, in order."""
    change: TableCell
    """Student minus baseline."""
    tone: str
    """``gain``, ``loss`` or empty, from the change as printed."""
    part: bool = False
    """Whether it is a merged class of the row above."""


def grouping_rows(content: ReportContent) -> list[GroupingRow]:
    """Means over subsets, then scores with merged classes, each with its classes."""
    nets = in_order(content)
    rows = []
    for one in content.groupings:
        found = [one.nets.get(net.label, GroupedQuality()) for net in nets]
        cells = tuple(TableCell(percent(each.miou, 2), _bounds(each.interval)) for each in found)
        gain = None if one.comparison is None else one.comparison.gain
        change = TableCell(
            signed(gain, 2), "" if one.comparison is None else _bounds(one.comparison.interval, sign=True)
        )
        if one.groups:
            hint = "; ".join(f"{name}: {', '.join(members)}" for name, members in one.groups.items())
            title = f"{one.name} merged"
        else:
            title, hint = one.name, f"{len(one.classes)} of {len(content.classes)} classes"
        rows.append(GroupingRow(f"mIoU, {title}", hint, cells, change, _tone(gain, 2)))
        for index, name in enumerate(one.classes if one.groups else ()):
            values = {net.label: at(each.iou, index) for net, each in zip(nets, found, strict=True)}
            before, after = values.get(content.baseline or ""), values.get(content.student)
            delta = None if before is None or after is None else after - before
            parts = tuple(TableCell(percent(value, 2)) for value in values.values())
            rows.append(GroupingRow(name, "", parts, TableCell(signed(delta, 2)), _tone(delta, 2), part=True))
    return rows


def _bounds(given: Interval | None, sign: bool = False) -> str:
    text = interval(given, sign=sign)
    return text if given is None or given.reliable or not text else f"{text} not reliable"


def _tone(change: Figure, digits: int) -> str:
    text = signed(change, digits)
    return "gain" if text.startswith("+") else "loss" if text.startswith("−") else ""


def at(values: Figures, index: int) -> Figure:
    """The value at an index; ``None`` where it is missing or NaN."""
    value = values[index] if index < len(values) else None
    return value if known(value) else None


def changed_most(rows: Sequence[ClassRow]) -> tuple[list[ClassRow], list[ClassRow]]:
    """The classes with the largest gains and losses, the largest change first."""
    ranked = sorted((row for row in rows if row.tone), key=lambda row: -(row.change or 0.0))
    gained = [row for row in ranked if row.tone == "gain"][:_MOST_CHANGED]
    lost = [row for row in reversed(ranked) if row.tone == "loss"][:_MOST_CHANGED]
    return gained, lost


@dataclass(frozen=True)
class HeatCell:
    """One cell of a confusion table: its number, its shade, and whether it is on the diagonal."""

    text: str
    level: int
    right: bool


def confusion_rows(content: ReportContent) -> list[tuple[ClassInfo, tuple[HeatCell, ...]]]:
    """The student's confusion matrix: rows are the truth, in the order of the classes."""
    shares = row_shares(content)
    rows = []
    for index, info in enumerate(content.classes):
        cells = []
        for column, share in enumerate(shares[index]):
            level = 0 if np.isnan(share) else round(log_level(np.array(share)).item() * (HEAT_LEVELS - 1))
            text = f"{100 * share:.0f}" if share >= 0.005 else "·" if share > 0 else ""
            cells.append(HeatCell(text, level, column == index))
        rows.append((info, tuple(cells)))
    return rows


def row_shares(content: ReportContent) -> NDArray[np.float64]:
    """(K, K) shares of each true class's pixels; NaN for a class without pixels."""
    assert content.confusion is not None
    matrix = content.confusion.astype(np.float64)
    truth = matrix.sum(axis=1, keepdims=True)
    shares: NDArray[np.float64] = np.divide(matrix, truth, out=np.full_like(matrix, np.nan), where=truth > 0)
    return shares


@dataclass(frozen=True)
class Mistake:
    """A confused pair of classes."""

    truth: ClassInfo
    taken_for: ClassInfo
    of_class: float
    """Share of the true class's pixels."""
    of_mistakes: float
    """Share of all wrong pixels."""


def commonest_confusions(content: ReportContent) -> list[Mistake]:
    """The pairs of classes with the most wrong pixels of the student."""
    assert content.confusion is not None
    wrong = content.confusion.astype(np.float64)
    truth = wrong.sum(axis=1)
    np.fill_diagonal(wrong, 0)
    total = wrong.sum()
    order = np.argsort(-wrong, axis=None, kind="stable")[:_MOST_CONFUSIONS]
    pairs = (divmod(int(place), len(wrong)) for place in order)
    return [
        Mistake(content.classes[i], content.classes[j], float(wrong[i, j] / truth[i]), float(wrong[i, j] / total))
        for i, j in pairs
        if wrong[i, j] > 0
    ]
