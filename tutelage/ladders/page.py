"""A ladder's result: gain over the plain rung, cost and verdict for each rung.

The same content is written as Markdown and as a page. Unfinished rungs are shown with the results so far.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from tutelage.evaluation.intervals import Figure, Gain
from tutelage.evaluation.verdict import Judgement
from tutelage.report import plots
from tutelage.report.formatting import (
    NONE,
    counted,
    duration,
    interval,
    known,
    magnitude,
    memory,
    percent,
    ratio,
    signed,
)
from tutelage.report.page import filled, style
from tutelage.version import __version__

_FEW_SEEDS = 5


@dataclass(frozen=True)
class Trial:
    """One trial of a rung: the values tried, and its mIoU on the data for tuning, if finished."""

    values: str
    miou: Figure
    chosen: bool = False
    diverged: bool = False
    """Whether its loss became infinite; it then ranks last."""

    @property
    def score(self) -> str:
        """The mIoU, or the trial's state."""
        return "diverged" if self.diverged else percent(self.miou, 2)


@dataclass(frozen=True)
class RungCost:
    """The cost of training a rung once."""

    seconds: Figure = None
    """Median over its seeds."""
    annotation_seconds: Figure = None
    """Time for labelling with the teacher, for a rung that trains on pseudo labels."""
    memory_mib: Figure = None
    multiply_adds: Figure = None
    """Of one step, including teacher and backward pass."""


@dataclass(frozen=True)
class Share:
    """The share of the gap from the plain rung to the oracle that a rung closes, with its 95 % interval."""

    share: Figure
    low: Figure = None
    high: Figure = None
    reason: str = ""
    """Why it is undefined; empty if it is defined."""


class _OverSeeds:
    """Scores over several seeds."""

    scores: Mapping[int, float]

    @property
    def miou(self) -> Figure:
        """Mean over the finished seeds."""
        return statistics.fmean(self.scores.values()) if self.scores else None

    @property
    def spread(self) -> Figure:
        """Standard deviation over the finished seeds; None for fewer than two."""
        return statistics.stdev(self.scores.values()) if len(self.scores) > 1 else None


@dataclass(frozen=True)
class GroupedResult(_OverSeeds):
    """One rung scored in another grouping of classes; fields as in :class:`RungResult`."""

    scores: Mapping[int, float]
    comparison: Gain | None = None
    adjusted_p: Figure = None
    share: Share | None = None
    iou: Mapping[str, Figure] = field(default_factory=dict)
    """Class → IoU, mean over the finished seeds."""


@dataclass(frozen=True)
class RungGrouping:
    """Another grouping of classes for the same predictions: a subset, or several merged into one."""

    name: str
    """The subset's name, or the names of the merged groups."""
    classes: tuple[str, ...]
    """The classes of the mean."""
    groups: Mapping[str, tuple[str, ...]]
    """Merged class → its members; empty for a subset."""
    results: Mapping[str, GroupedResult]
    """Rung → its scores."""


@dataclass(frozen=True)
class RungResult(_OverSeeds):
    """The result of one rung."""

    name: str
    method: str
    """Its method and settings, in one line."""
    scores: Mapping[int, float]
    """Seed → mIoU, for the finished seeds."""
    missing: tuple[int, ...] = ()
    """The unfinished seeds."""
    diverged: tuple[int, ...] = ()
    """The unfinished seeds whose loss became infinite."""
    comparison: Gain | None = None
    """Comparison with the plain rung, over all finished seeds of both; None where one of them has none."""
    adjusted_p: Figure = None
    """The p value, corrected for the number of compared rungs (Holm)."""
    judgement: Judgement | None = None
    cost: RungCost = RungCost()
    share: Share | None = None
    """Share of the gap to the oracle; None without an oracle, and for the plain rung and the oracle."""
    updates: int | None = None
    """Optimizer steps of the student, over all stages of the rung; None: the ladder's."""
    leak: str = ""
    """How labels treated as missing were used to choose it; empty if they were not."""
    other_data: str = ""
    """Its training images, where they differ from the other rungs'."""
    teaches: bool = False
    """Whether it uses a trained teacher."""
    differs: str = ""
    """Changes to the training compared with the other rungs."""
    trials: tuple[Trial, ...] = ()


@dataclass(frozen=True)
class TeacherResult:
    """The teacher net."""

    name: str
    miou: Figure = None
    parameters: int | None = None
    seconds: Figure = None
    """Seconds of its training."""


@dataclass(frozen=True)
class LadderContent:
    """The content of a ladder's table."""

    title: str
    rungs: tuple[RungResult, ...]
    plain: str
    worth: float
    """The smallest worthwhile gain, as a share."""
    student: str
    student_parameters: int | None
    teacher: TeacherResult | None
    steps: int
    seeds: tuple[int, ...]
    data: str
    images: int | None
    """Number of scored images; None before the first score."""
    fingerprint: str
    protocol: str
    protocol_key: str
    oracle: str = ""
    """The upper-bound rung; empty: none."""
    tuned_on: str = ""
    tie: tuple[str, ...] = ()
    """Rungs with a tie between their best trials."""
    classes: int | None = None
    """Number of classes of the mIoU."""
    subsets: tuple[RungGrouping, ...] = ()
    """Means over some of the classes."""
    merged: RungGrouping | None = None
    """Scores with merged classes."""
    environment: tuple[tuple[str, str], ...] = ()
    recipe: str = ""

    def rung(self, name: str) -> RungResult:
        """The rung with a name."""
        return next(rung for rung in self.rungs if rung.name == name)


# In words


def sentence(content: LadderContent, rung: RungResult) -> str:
    """The verdict on a rung as a sentence, or the missing scores."""
    text = _outcome(content, rung)
    marked = f"{text}; {rung.leak}" if rung.leak and rung.judgement is not None else text
    return f"{marked}; {of_gap}" if (of_gap := _of_gap(content, rung)) else marked


def _outcome(content: LadderContent, rung: RungResult) -> str:
    judgement, comparison = rung.judgement, rung.comparison
    if judgement is None or comparison is None:
        lacking = content.rung(content.plain) if rung.scores else rung
        return f"not finished: no score of {lacking.name} yet"
    bounds = interval(comparison.interval, sign=True)
    gain = f"{signed(comparison.gain)}{f' {bounds}' if bounds else ''} points{_price(content, rung)}"
    if judgement.verdict == "worth it":
        return f"worth it: {gain}"
    worth = f"{100 * content.worth:g}"
    if judgement.verdict == "not worth it":
        high = comparison.interval.high
        harm = high is not None and high < 0
        return f"not worth it: {gain}; " + (
            f"worse than {content.plain}" if harm else f"less than {worth} points is not worth it"
        )
    return f"cannot tell with these data: {gain}; {_remedy(content, rung, judgement, comparison)}"


def _of_gap(content: LadderContent, rung: RungResult) -> str:
    share = rung.share
    if share is None:
        return ""
    if share.reason or share.share is None:
        return f"share of the gap to {content.oracle}: unknown ({share.reason or 'no gap'})"
    return f"{share_text(rung)} of the gap to {content.oracle}"


def share_text(rung: RungResult | GroupedResult) -> str:
    """``62 % [45, 80]``; ``cannot tell`` where the gap may be 0."""
    share = rung.share
    if share is None:
        return NONE
    if share.reason or share.share is None:
        return "cannot tell"
    bounds = "" if share.low is None or share.high is None else f" [{_whole(share.low)}, {_whole(share.high)}]"
    return f"{_whole(share.share)} %{bounds}"


def _whole(share: float) -> str:
    return f"{100 * share:.0f}".replace("-", "−")


def updates_of(content: LadderContent, rung: RungResult) -> int:
    """Optimizer steps of the student in a rung, over all its stages."""
    return content.steps if rung.updates is None else rung.updates


def _price(content: LadderContent, rung: RungResult) -> str:
    times = time_ratio(content, rung)
    return "" if times is None else f" for {times:.1f} times the training time"


def _remedy(content: LadderContent, rung: RungResult, judgement: Judgement, comparison: Gain) -> str:
    plain = content.rung(content.plain)
    if min(len(rung.scores), len(plain.scores)) < 2:
        one = rung.name if len(rung.scores) < 2 else plain.name
        return f"with one seed of {one} the spread over seeds is unknown; train at least three"
    if not comparison.interval.reliable:
        return f"the interval is not reliable ({comparison.interval.reason}); it needs more test images"
    if judgement.seeds is not None:
        return f"needs about {judgement.seeds} seeds of each, at the present gain and spread"
    if judgement.images is not None:
        return f"needs about {judgement.images} times as many test images; more seeds do not suffice"
    return "the gain is too close to the threshold for any number of seeds or images"


def time_ratio(content: LadderContent, rung: RungResult) -> float | None:
    """Training time of a rung, with its labelling, as a multiple of the plain rung's."""
    own, plain = total_seconds(rung), total_seconds(content.rung(content.plain))
    return None if own is None or not plain else own / plain


def total_seconds(rung: RungResult) -> Figure:
    """Seconds of one training of a rung and of the labelling before it."""
    if rung.cost.seconds is None:
        return None
    return rung.cost.seconds + (rung.cost.annotation_seconds or 0.0)


def compared(content: LadderContent) -> list[RungResult]:
    """The rungs with a verdict."""
    return [rung for rung in content.rungs if rung.judgement is not None]


def notes(content: LadderContent) -> list[str]:
    """Notes on the numbers: setting and limits."""
    others = [rung for rung in content.rungs if rung.name != content.plain]
    result = [
        f"Every rung trains {content.student} for {counted(content.steps, 'update')} with the same images"
        + (f" and equal trials on {content.tuned_on}." if content.tuned_on else ", without trials.")
        + f" A gain of at least {100 * content.worth:g} points is worth it."
    ]
    different = [f"{rung.name} ({_difference(content, rung)})" for rung in content.rungs if _difference(content, rung)]
    if different:
        result.append(f"Different training, so the budget is not equal: {'; '.join(different)}.")
    elsewhere = [f"{rung.name} ({rung.other_data})" for rung in content.rungs if rung.other_data]
    if elsewhere:
        result.append(f"Trained on other images: {'; '.join(elsewhere)}.")
    leaking = [f"{rung.name} ({rung.leak})" for rung in content.rungs if rung.leak]
    if leaking:
        result.append(f"Chosen with labels treated as missing: {'; '.join(leaking)}. These are not label-free.")
    if content.oracle:
        result.append(
            f"Of the gap: (rung - {content.plain}) / ({content.oracle} - {content.plain}). {content.oracle} is a bound "
            "and gets no verdict."
        )
    if content.teacher is not None and any(rung.teaches for rung in others):
        teacher = content.teacher
        facts = [
            f"mIoU {percent(teacher.miou)}" if known(teacher.miou) else "",
            f"{magnitude(teacher.parameters)} parameters" if teacher.parameters is not None else "",
            f"{duration(teacher.seconds)} of training" if known(teacher.seconds) else "",
        ]
        details = ", ".join(fact for fact in facts if fact)
        result.append(
            f"The teacher (stage {teacher.name}{f': {details}' if details else ''}) is not in the rungs' times."
        )
    counts = {len(rung.scores) for rung in content.rungs if rung.scores}
    if counts and min(counts) == 1:
        result.append("With one seed of a rung, its spread over seeds is unknown.")
    elif counts and min(counts) < _FEW_SEEDS:
        result.append(f"With {min(counts)} seeds the spread over seeds is underestimated, and so are the intervals.")
    finished = compared(content)
    if not content.rung(content.plain).scores:
        result.append(f"There is no comparison before a score of {content.plain}.")
    if len(finished) > 1:
        result.append(
            f"{len(finished)} rungs are compared with one: of 20 without an effect, about one would seem to have one. "
            "The p value in brackets is corrected for this (Holm)."
        )
    bounds = next((rung.comparison.interval for rung in finished if rung.comparison is not None), None)
    if bounds is not None and bounds.over == "images":
        result.append("The bootstrap draws single images; where neighbours are similar the intervals are too narrow.")
    if content.subsets or content.merged is not None:
        result.append("Verdicts are based on the mIoU over all classes; subsets and merged classes have none.")
    if content.tie:
        result.append(f"Tied trials of {', '.join(content.tie)}: the first in the recipe's order was chosen.")
    return result


def missing(content: LadderContent) -> list[str]:
    """The trainings missing from the table."""
    return [
        f"{rung.name}: {_seeds(rung.missing)}"
        + (f" (the loss became infinite with {_seeds(rung.diverged)})" if rung.diverged else "")
        for rung in content.rungs
        if rung.missing
    ]


def _difference(content: LadderContent, rung: RungResult) -> str:
    updates = updates_of(content, rung)
    counted_elsewhere = "steps:" in rung.differs or updates == content.steps
    return ", ".join(
        part for part in (rung.differs, "" if counted_elsewhere else f"{updates} updates in total") if part
    )


def _seeds(seeds: Sequence[int]) -> str:
    return f"{'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))}"


# Cells


def score_text(rung: RungResult | GroupedResult) -> str:
    """``61.2 ± 0.4 (3)``: mean, deviation, number of seeds."""
    if not rung.scores:
        return NONE
    spread = f" ± {percent(rung.spread)}" if rung.spread is not None else ""
    return f"{percent(rung.miou)}{spread} ({len(rung.scores)})"


def gain_text(rung: RungResult | GroupedResult) -> str:
    """``+1.2 [+0.4, +1.9]``."""
    if rung.comparison is None:
        return NONE
    bounds = interval(rung.comparison.interval, sign=True)
    return f"{signed(rung.comparison.gain)}{f' {bounds}' if bounds else ''}"


def p_text(rung: RungResult | GroupedResult) -> str:
    """``0.012 (0.03)``: uncorrected, and corrected for the number of rungs."""
    if rung.comparison is None or rung.comparison.p_value is None:
        return NONE
    adjusted = f" ({_p(rung.adjusted_p)})" if rung.adjusted_p is not None else ""
    return f"{_p(rung.comparison.p_value)}{adjusted}"


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else "< 0.001"


def time_text(content: LadderContent, rung: RungResult) -> str:
    """``4 min 10 s ×1.9``."""
    seconds = total_seconds(rung)
    times = ratio(seconds, total_seconds(content.rung(content.plain))) if rung.name != content.plain else ""
    return f"{duration(seconds)}{f' {times}' if times else ''}"


def compute_text(content: LadderContent, rung: RungResult) -> str:
    """``123 G ×1.9``: multiply-adds of a step."""
    plain = content.rung(content.plain).cost.multiply_adds
    times = ratio(rung.cost.multiply_adds, plain) if rung.name != content.plain else ""
    return f"{magnitude(rung.cost.multiply_adds)}{f' {times}' if times else ''}"


HEAD = ("rung", "mIoU", "gain", "p", "training", "memory", "multiply-adds", "verdict")


def head(content: LadderContent) -> tuple[str, ...]:
    """:data:`HEAD` with the columns of some ladders: the share of the gap to an oracle, differing updates."""
    titles = list(HEAD)
    if content.oracle:
        titles.insert(titles.index("p"), "of the gap")
    if any(updates_of(content, rung) != content.steps for rung in content.rungs):
        titles.insert(titles.index("training"), "updates")
    return tuple(titles)


def cells(content: LadderContent, rung: RungResult) -> tuple[str, ...]:
    """A row of the table, in the order of :func:`head`."""
    plain = rung.name == content.plain
    texts = {
        "rung": _marked(rung),
        "mIoU": score_text(rung),
        "gain": NONE if plain else gain_text(rung),
        "of the gap": share_text(rung),
        "p": NONE if plain else p_text(rung),
        "updates": str(updates_of(content, rung)),
        "training": time_text(content, rung),
        "memory": memory(rung.cost.memory_mib),
        "multiply-adds": compute_text(content, rung),
        "verdict": _verdict_text(content, rung),
    }
    return tuple(texts[title] for title in head(content))


def _marked(rung: RungResult) -> str:
    return f"{rung.name} ({rung.leak})" if rung.leak else rung.name


def merged_title(grouping: RungGrouping) -> str:
    """``vegetation (crop, weed) merged into one class``."""
    text = ", ".join(f"{name} ({', '.join(members)})" for name, members in grouping.groups.items())
    return f"{text} merged into one class{'' if len(grouping.groups) == 1 else ' each'}"


def merged_head(content: LadderContent) -> tuple[str, ...]:
    """Head of the table of merged classes."""
    return ("rung", "mIoU", "gain", *(("of the gap",) if content.oracle else ()), "p")


def merged_cells(content: LadderContent, rung: RungResult) -> tuple[str, ...]:
    """A row of that table, in the order of :func:`merged_head`."""
    assert content.merged is not None
    result = content.merged.results[rung.name]
    share = (share_text(result),) if content.oracle else ()
    return (_marked(rung), score_text(result), gain_text(result), *share, p_text(result))


def subset_head(content: LadderContent) -> tuple[str, ...]:
    """Head of the table of subsets: all classes first, then each subset with its number of classes."""
    every = "mIoU" if content.classes is None else f"mIoU ({content.classes})"
    titles = [every, *(f"{one.name} ({len(one.classes)})" for one in content.subsets)]
    besides = ("gain", *(("of the gap",) if content.oracle else ()))
    return ("rung", *(title for name in titles for title in (name, *besides)))


def subset_cells(content: LadderContent, rung: RungResult) -> tuple[str, ...]:
    """A row of that table, in the order of :func:`subset_head`."""
    texts = [_marked(rung)]
    results: list[RungResult | GroupedResult] = [rung, *(one.results[rung.name] for one in content.subsets)]
    for result in results:
        texts += [score_text(result), gain_text(result), *([share_text(result)] if content.oracle else [])]
    return tuple(texts)


def _verdict_text(content: LadderContent, rung: RungResult) -> str:
    if rung.name == content.plain:
        return "baseline"
    if rung.name == content.oracle and rung.comparison is not None:
        return "bound"
    return "not finished" if rung.judgement is None else rung.judgement.verdict


def markdown(content: LadderContent) -> str:
    """The result as Markdown."""
    images = f" ({counted(content.images, 'image')})" if content.images is not None else ""
    lines = [
        f"# {content.title}: does teaching pay?",
        "",
        *_table(head(content), [cells(content, rung) for rung in content.rungs]),
        "",
        f"mIoU on {content.data}{images}: mean ± deviation over (n) seeds. Gain: points over {content.plain}, with the "
        "95 % interval of a paired bootstrap over images and seeds. Training: one seed (median). "
        "Multiply-adds: one step."
        + (f" Of the gap: share of the gap to {content.oracle}, with its interval." if content.oracle else ""),
        "",
        *_grouped_tables(content),
        *(f"- **{rung.name}**: {sentence(content, rung)}." for rung in compared(content)),
        "",
        *(f"- {note}" for note in notes(content)),
    ]
    lacking = missing(content)
    if lacking:
        lines += ["", f"Missing: {'; '.join(lacking)}."]
    tuned = [rung for rung in content.rungs if rung.trials]
    if tuned:
        rows = [(rung.name, trial_text(rung)) for rung in tuned]
        about = f"Trials: mIoU on {content.tuned_on}, the chosen one in bold."
        lines += ["", about, "", *_table(("rung", "trials"), rows)]
    rows = [(rung.name, rung.method) for rung in content.rungs]
    lines += ["", *_table(("rung", "method"), rows)]
    lines += ["", f"Protocol: {content.protocol} ({content.protocol_key}). Data: {content.fingerprint}."]
    return "\n".join(lines) + "\n"


def _grouped_tables(content: LadderContent) -> list[str]:
    lines: list[str] = []
    if content.subsets:
        rows = [subset_cells(content, rung) for rung in content.rungs]
        lines += ["Means over some of the classes:", "", *_table(subset_head(content), rows), ""]
        lines += [*(f"- {one.name}: {', '.join(one.classes)}." for one in content.subsets), ""]
    if content.merged is not None:
        rows = [merged_cells(content, rung) for rung in content.rungs]
        lines += [f"With {merged_title(content.merged)}, mIoU over {', '.join(content.merged.classes)}:", ""]
        lines += [*_table(merged_head(content), rows), ""]
    return lines


def trial_text(rung: RungResult) -> str:
    """All trials of a rung in one line."""
    texts = (f"{trial.values}: {trial.score}" for trial in rung.trials)
    return "; ".join(f"**{text}**" if trial.chosen else text for text, trial in zip(texts, rung.trials, strict=True))


# The page


def render(content: LadderContent) -> str:
    """The result as a self-contained page."""
    others = [rung for rung in content.rungs if rung.name != content.plain]
    gains = [plots.GainRow(rung.name, rung.comparison, tone(rung)) for rung in others if rung.comparison is not None]
    text = "; ".join(f"{rung.name} {gain_text(rung)}" for rung in others if rung.comparison is not None)
    headline, how = verdict(content)
    values: dict[str, Any] = {
        "content": content,
        "style": style(),
        "version": __version__,
        "headline": headline,
        "tone": how,
        "verdicts": [(rung.name, tone(rung), sentence(content, rung)) for rung in compared(content)],
        "notes": notes(content),
        "missing": missing(content),
        "chart": plots.gains_chart(gains, content.worth, f"Gain over {content.plain} in mIoU points: {text}"),
        "head": head(content),
        "rows": [(rung, tone(rung), cells(content, rung)) for rung in content.rungs],
        "grouped": _grouped_views(content),
        "trials": [rung for rung in content.rungs if rung.trials],
    }
    return filled("ladders/ladder.html", values)


@dataclass(frozen=True)
class _GroupedView:
    """A table of another grouping of classes."""

    place: str
    title: str
    caption: str
    head: tuple[str, ...]
    rows: list[tuple[str, ...]]


def _grouped_views(content: LadderContent) -> list[_GroupedView]:
    found = []
    if content.subsets:
        members = "; ".join(f"{one.name}: {', '.join(one.classes)}" for one in content.subsets)
        caption = f"mIoU over some of the classes, their number in brackets. {members}."
        rows = [subset_cells(content, rung) for rung in content.rungs]
        found.append(_GroupedView("subsets", "Some of the classes", caption, subset_head(content), rows))
    if content.merged is not None:
        caption = f"mIoU over {', '.join(content.merged.classes)}."
        rows = [merged_cells(content, rung) for rung in content.rungs]
        title = f"With {merged_title(content.merged)}"
        found.append(_GroupedView("merged", title, caption, merged_head(content), rows))
    return found


def tone(rung: RungResult) -> Literal["gain", "loss", "open"]:
    """The tone of a rung, which decides its colour."""
    tones: dict[str, Literal["gain", "loss"]] = {"worth it": "gain", "not worth it": "loss"}
    return "open" if rung.judgement is None else tones.get(rung.judgement.verdict, "open")


def verdict(content: LadderContent) -> tuple[str, Literal["gain", "loss", "open"]]:
    """The headline over all rungs, and its tone."""
    others = [rung for rung in content.rungs if rung.name not in (content.plain, content.oracle)]
    paying = [rung for rung in others if tone(rung) == "gain"]
    colour: Literal["gain", "loss", "open"] = "open"
    text = "Cannot tell with these data"
    if paying:
        # A rung chosen with labels treated as missing comes first only if no other pays.
        honest = [rung for rung in paying if not rung.leak]
        best = max(honest or paying, key=lambda rung: (rung.comparison and rung.comparison.gain) or 0.0)
        text = f"Worth it: {len(paying)} of {len(others)}, best {best.name}, {gain_text(best)} points"
        text += f" ({best.leak})" if best.leak else ""
        colour = "gain"
    elif others and all(tone(rung) == "loss" for rung in others):
        text, colour = f"Not worth it: no rung pays over {content.plain}", "loss"
    return f"So far: {text[0].lower()}{text[1:]}" if missing(content) else text, colour


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *escaped)]
