"""The report's section on pseudo labels: audits while training, and of written labels.

Nets of one stage, or rounds of labelling, stand side by side in the same tables.
"""

# Legend: K classes.

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tutelage.audit.content import Audit, Estimate, LabelPicture, Labels
from tutelage.evaluation.intervals import Figure
from tutelage.report import charts, pictures, plots
from tutelage.report.charts import Chart
from tutelage.report.content import ClassInfo, Reliability, ReportContent
from tutelage.report.formatting import NONE, interval, known, percent, significant
from tutelage.report.page import filled
from tutelage.report.tables import TableCell, TableRow, at


@dataclass(frozen=True)
class ClassCells:
    """One class: its share in the training labels, and its figures in each column."""

    info: ClassInfo
    reference: Figure
    cells: tuple[tuple[TableCell, TableCell, TableCell], ...]
    """Of each column: its share, its precision where covered, its precision anywhere."""


@dataclass(frozen=True)
class AuditView:
    """One audit as the page shows it."""

    audit: Audit
    rows: tuple[TableRow, ...]
    classes: tuple[ClassCells, ...]
    courses: tuple[Chart, ...]
    calibration: tuple[Chart, ...]
    galleries: tuple[tuple[str, str, tuple[pictures.Shown, ...]], ...]
    unreliable: bool
    """Whether an interval comes from too few images."""

    @property
    def precise(self) -> bool:
        """Whether there were labelled images."""
        return any(labels.precision is not None for labels in self.audit.labels)


@dataclass(frozen=True)
class AuditSection:
    """The section of the page."""

    audits: tuple[Audit, ...]
    title: str = "Pseudo labels"
    anchor: str = "audit"

    @property
    def warnings(self) -> list[str]:
        """Warnings of all audits."""
        return [f"Pseudo labels, {it.title}: {'; '.join(it.warnings)}." for it in self.audits if it.warnings]

    def html(self, content: ReportContent, budget: int) -> tuple[str, int]:
        """The section, its pictures within ``budget`` characters, and how many they take."""
        views, room = audit_views(self.audits, content.classes, budget)
        return filled("audit/section.html", {"audits": views}), room


def audit_views(audits: tuple[Audit, ...], classes: tuple[ClassInfo, ...], budget: int) -> tuple[list[AuditView], int]:
    """The audits as the page shows them, their pictures within ``budget`` characters, and how many they take."""
    views = [_view(audit, classes) for audit in audits]
    palette = [one.colour for one in classes]
    for scale, quality in pictures.LEVELS:
        drawn = [_galleries(audit, palette, scale, quality) for audit in audits]
        room = sum(_size(one) for one in drawn)
        if room <= budget:
            return [replace(view, galleries=one) for view, one in zip(views, drawn, strict=True)], room
    return views, 0


def _view(audit: Audit, classes: tuple[ClassInfo, ...]) -> AuditView:
    return AuditView(
        audit=audit,
        rows=tuple(_rows(audit)),
        classes=tuple(_classes(audit, classes)),
        courses=tuple(_courses(audit)),
        calibration=tuple(_calibration(audit)),
        galleries=(),
        unreliable=any(
            one.interval is not None and known(one.share) and not one.interval.reliable
            for labels in audit.labels
            for one in (labels.precision, labels.accuracy, *labels.precisions, *labels.precisions_all)
            if one is not None
        ),
    )


# Tables


def _rows(audit: Audit) -> Iterable[TableRow]:
    """The figures of all columns; a row that no column has a figure for is left out."""
    names = dict.fromkeys(name for labels in audit.labels for name, _ in labels.hints)
    for name in names:
        yield TableRow(name, "", tuple(TableCell(dict(labels.hints).get(name, NONE)) for labels in audit.labels))
    readers: list[tuple[str, str, Callable[[Labels], TableCell]]] = [
        ("Coverage", "covered pixels", lambda one: TableCell(percent(one.coverage))),
        ("Mean confidence", "all pixels", lambda one: TableCell(percent(one.confidence))),
        ("Change", audit.change_since, lambda one: TableCell(percent(one.change, 2))),
        ("Precision", "covered pixels", lambda one: _estimate(one.precision)),
        ("Precision", "all pixels", lambda one: _estimate(one.accuracy)),
        ("Calibration error", "ECE", lambda one: _errors(one)),
        ("Temperature", "above 1: too sure", lambda one: TableCell(_temperature(one))),
    ]
    for name, hint, read in readers:
        cells = tuple(read(labels) for labels in audit.labels)
        if any(cell.text != NONE for cell in cells):
            yield TableRow(name, hint, cells)


def _estimate(given: Estimate | None) -> TableCell:
    if given is None:
        return TableCell(NONE)
    bounds = interval(given.interval)
    doubt = " *" if bounds and given.interval is not None and not given.interval.reliable else ""
    return TableCell(percent(given.share), bounds + doubt)


def _errors(labels: Labels) -> TableCell:
    if labels.scaling is None:
        return TableCell(NONE)
    return TableCell(percent(labels.scaling.before.error, 2), f"scaled {percent(labels.scaling.after.error, 2)}")


def _temperature(labels: Labels) -> str:
    return NONE if labels.scaling is None else significant(labels.scaling.temperature)


def _classes(audit: Audit, classes: tuple[ClassInfo, ...]) -> Iterable[ClassCells]:
    for index, info in enumerate(classes):
        cells = tuple(
            (
                TableCell(percent(at(one.shares, index), 2), _sure_share(one, index)),
                _estimate(one.precisions[index] if index < len(one.precisions) else None),
                _estimate(one.precisions_all[index] if index < len(one.precisions_all) else None),
            )
            for one in audit.labels
        )
        yield ClassCells(info, at(audit.label_shares, index), cells)


def _sure_share(labels: Labels, index: int) -> str:
    share, named = at(labels.sure_shares, index), at(labels.shares, index)
    return f"covered {percent(share, 2)}" if known(share) and share != named else ""


# Curves


def _courses(audit: Audit) -> Iterable[Chart]:
    mark = None if audit.kept_step is None else (float(audit.kept_step), "kept")
    for title, curves in audit.courses.items():
        lines = charts.lines(curves)
        about = charts.about(title, f"of stage {audit.title}", lines)
        drawing = plots.line_chart(lines, about, scale=100.0, from_zero=True, mark=mark, dots=True)
        if drawing:
            yield Chart(title, drawing, charts.legend(lines))


def _calibration(audit: Audit) -> Iterable[Chart]:
    for labels in audit.labels:
        if labels.scaling is None:
            continue
        for when, curve in (("as it is", labels.scaling.before), ("scaled", labels.scaling.after)):
            if _counted(curve):
                error = f"calibration error {percent(curve.error, 2)} %"
                about = f"Reliability of {labels.name}, {when}: {error}"
                yield Chart(f"{labels.name}, {when}", plots.reliability_chart(curve, about, "other"), note=error)


def _counted(curve: Reliability) -> bool:
    return any(count for count in curve.count if known(count))


# Pictures


Galleries = tuple[tuple[str, str, tuple[pictures.Shown, ...]], ...]


def _galleries(audit: Audit, palette: list[tuple[int, int, int]], scale: float, quality: int) -> Galleries:
    return tuple(
        (
            gallery.title,
            gallery.text,
            tuple(pictures.Shown(one.name, label_panels(one, palette, scale, quality)) for one in gallery.pictures),
        )
        for gallery in audit.galleries
        if gallery.pictures
    )


def _size(galleries: Galleries) -> int:
    return sum(len(panel.source) for _, _, shown in galleries for one in shown for panel in one.panels)


def label_panels(
    picture: LabelPicture, palette: Sequence[tuple[int, int, int]], scale: float, quality: int
) -> tuple[pictures.Panel, ...]:
    """Image, pseudo label, confidence, and the truth where there is one, at a share of their size."""
    image, label, confidence = (
        pictures.scaled(one, scale) for one in (picture.image, picture.label, picture.confidence)
    )
    height, width = label.shape
    name = picture.name
    panels = [
        pictures.Panel("Image", f"Image {name}", pictures.jpeg(image, quality), width, height, picture.note),
        pictures.Panel("Pseudo label", f"Pseudo label of {name}", pictures.png(label, palette), width, height),
        pictures.Panel(
            "Confidence", f"Confidence on {name}", pictures.jpeg(shaded(confidence), quality), width, height
        ),
    ]
    if picture.truth is not None:
        truth = pictures.scaled(picture.truth, scale)
        panels.append(pictures.Panel("Truth", f"True classes of {name}", pictures.png(truth, palette), width, height))
    return tuple(panels)


def shaded(confidence: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(H, W) confidence 0..255 as (H, W, 3): the less sure, the darker."""
    sure = (confidence.astype(np.float64) / 255.0)[..., None]
    return np.asarray(
        (np.array(pictures.DOUBT) + sure * (np.array(pictures.CERTAIN) - np.array(pictures.DOUBT))).round(),
        dtype=np.uint8,
    )
