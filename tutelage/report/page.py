"""The page: one self-contained HTML file without scripts.

A content security policy forbids all requests, so that the page stays self-contained for any content.
The template engine escapes all text; equal content gives equal bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import jinja2
from markupsafe import Markup

from tutelage.report import formatting, pictures, plots, tables, verdict
from tutelage.report.charts import MOST_LINES, Chart, about, legend
from tutelage.report.charts import lines as lines_of
from tutelage.report.content import Gallery, ReportContent, ScoredNet, Training
from tutelage.version import __version__

_LONGEST_RECIPE = 200_000


def render(content: ReportContent) -> str:
    """The report as HTML: self-contained and below 5 MB for any pictures."""
    budget = pictures.BUDGET // 3
    sections = []
    for section in content.sections:
        html, size = section.html(content, budget)
        sections.append((section.anchor, section.title, Markup(html)))
        budget -= size
    shown, left_out = pictures.shown(content, pictures.BUDGET - (pictures.BUDGET // 3 - budget))
    rows = tables.class_rows(content)
    gained, lost = tables.changed_most(rows)
    has_confusion = content.confusion is not None
    few = len(content.classes) <= tables.MOST_CELLS
    recipe = content.recipe[:_LONGEST_RECIPE]
    values: dict[str, Any] = {
        "content": content,
        "style": style(),
        "version": __version__,
        "verdict": verdict.verdict(content),
        "gain": _gain(content),
        "nets": tables.in_order(content),
        "roles": {net.label: tables.role(content, net.label) for net in content.nets},
        "summary": tables.summary(content),
        "class_rows": rows,
        "has_boundary": any(formatting.known(row.boundary) for row in rows),
        "groupings": tables.grouping_rows(content),
        "gained": gained,
        "lost": lost,
        "trainings": [(training, _curves(training)) for training in content.trainings],
        "confusion": tables.confusion_rows(content) if has_confusion and few else [],
        "heat_map": _heat_map(content) if has_confusion and not few else "",
        "mistakes": tables.commonest_confusions(content) if has_confusion else [],
        "reliability": [chart for net in tables.in_order(content) if (chart := _reliability(content, net))],
        "galleries": list(_galleries(content, shown)),
        "left_out": left_out,
        "has_differences": any(panel.differs for one in shown.values() for panel in one.panels),
        "difference_colours": [
            ("only the student is right", pictures.ONLY_SECOND),
            ("only the other net is right", pictures.ONLY_FIRST),
            ("both are wrong and differ", pictures.BOTH_WRONG),
        ],
        "sections": sections,
        "costs": tables.costs(content),
        "recipe": recipe,
        "recipe_cut": len(content.recipe) - len(recipe),
    }
    return filled("report/page.html", values)


def filled(template: str, values: dict[str, Any]) -> str:
    """A rendered template. Bytes of file names that are not valid text are replaced."""
    return _environment().get_template(template).render(values).encode("utf-8", "replace").decode("utf-8")


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("tutelage", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    names = ("percent", "signed", "interval", "duration", "memory", "short", "known", "counted")
    environment.filters.update({name: getattr(formatting, name) for name in names})
    environment.filters.update(colour=_colour, chosen=verdict.chosen)
    return environment


@cache
def style() -> Markup:
    """The style sheet: trusted text, not escaped."""
    loader = _environment().loader
    assert loader is not None
    return Markup(loader.get_source(_environment(), "report/style.css")[0])


def _colour(colour: Sequence[int]) -> str:
    """A colour of the palette as CSS; converts its parts to numbers."""
    red, green, blue = (min(max(int(channel), 0), 255) for channel in colour)
    return f"rgb({red} {green} {blue})"


def _gain(content: ReportContent) -> Markup:
    comparison = content.comparison
    if comparison is None or content.baseline is None:
        return Markup("")
    text = f"Gain of {formatting.signed(comparison.gain, 2)} mIoU points"
    bounds = formatting.interval(comparison.interval, 2, sign=True)
    return plots.gain_chart(comparison, f"{text}, 95 % interval {bounds}" if bounds else text)


# Curves


def _curves(training: Training) -> list[Chart]:
    """Loss terms, learning rate and validation score of one stage, where logged."""
    where = f"of stage {training.stage}"
    terms = lines_of(training.terms)
    rates, scores = lines_of(training.rates), lines_of(training.validation)
    choice = lines_of(training.choice)
    best = None if training.best_step is None else (float(training.best_step), "best")
    full = training.base_rate if set(training.rates) == {"main"} else None
    drawn = [
        Chart(
            "Loss terms",
            plots.line_chart(terms, about("Loss terms", where, terms), log=True),
            legend(terms),
        ),
        Chart(
            "Learning rate",
            plots.line_chart(
                rates,
                about("Learning rate", where, rates),
                scale=1.0 if full is None else full,
                from_zero=True,
            ),
            legend(rates),
            "as a share of the full rate" if full is None else "of the decoder and heads",
        ),
        Chart(
            "Validation mIoU (%)",
            plots.line_chart(
                scores,
                about("Validation mIoU", where, scores),
                scale=100.0,
                mark=best,
                dots=len(scores) < MOST_LINES,
            ),
            legend(scores),
            f"on {training.validated_on}" if training.validated_on else "",
        ),
        Chart(
            "Without masks (%)",
            plots.line_chart(
                choice,
                about("Figures without masks", where, choice),
                scale=100.0,
                mark=best,
                dots=len(choice) < MOST_LINES,
            ),
            legend(choice),
        ),
    ]
    return [chart for chart in drawn if chart.drawing]


# Confusion, calibration, pictures


def _heat_map(content: ReportContent) -> str:
    """The confusion matrix as a picture, sorted by frequency of the classes."""
    order = sorted(range(len(content.classes)), key=lambda i: (-content.classes[i].pixels, i))
    return pictures.heat_map(tables.row_shares(content)[order][:, order])


def _reliability(content: ReportContent, net: ScoredNet) -> Chart | None:
    curve = net.quality.reliability
    if curve is None or not any(count for count in curve.count if formatting.known(count)):
        return None
    error = formatting.percent(curve.error, 2)
    text = f"Reliability of {net.label}: expected calibration error {error} %"
    role = tables.role(content, net.label)
    return Chart(net.label, plots.reliability_chart(curve, text, role), note=f"calibration error {error} %")


def _galleries(
    content: ReportContent, shown: dict[int, pictures.Shown]
) -> list[tuple[Gallery, list[tuple[int, pictures.Shown | None]]]]:
    """Each gallery with its pictures; ``None`` for a picture of an earlier gallery, which is linked instead."""
    seen: set[int] = set()
    result = []
    for gallery in content.galleries:
        items: list[tuple[int, pictures.Shown | None]] = []
        for index in gallery.pictures:
            if index in shown:
                items.append((index, None if index in seen else shown[index]))
                seen.add(index)
        if items:
            result.append((gallery, items))
    return result
