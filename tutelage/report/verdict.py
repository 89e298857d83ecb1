"""The verdict in plain words: what the data allow and no more.

A gain is "clear" only if its interval is reliable and leaves out 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tutelage.evaluation.intervals import Gain
from tutelage.report.content import ReportContent, ScoredNet, Training
from tutelage.report.formatting import counted, interval, known, percent, signed


@dataclass(frozen=True)
class Verdict:
    """The headline, how it stands, what it rests on, and what to beware of."""

    headline: str
    tone: Literal["gain", "loss", "open", "plain"]
    """``plain``: nothing was compared."""
    sentences: tuple[str, ...]
    warnings: tuple[str, ...]


def verdict(content: ReportContent) -> Verdict:
    """What the numbers say of the student, in plain words."""
    student, baseline = content.net(content.student), content.net(content.baseline)
    if student is None:
        return Verdict("No net was scored", "plain", (), ())
    comparison = content.comparison if baseline is not None else None
    where = f"{content.identity.data} ({counted(content.identity.images, 'image')})"
    name, score = student.label, percent(student.quality.miou, 2)
    selection = _selection(content, student)
    warnings = tuple(_warnings(content, comparison))
    if baseline is None or comparison is None:
        bounds = student.quality.interval
        own = interval(bounds, 2) if bounds is not None and bounds.reliable else ""
        text = f"{name} scores {score} mIoU on {where}" + (f", 95 % interval {own}." if own else ".")
        alone = "It was compared with no baseline, so that nothing is said about a gain."
        return Verdict(f"{name}: {score} mIoU", "plain", (text, alone, *selection), warnings)
    first = (
        f"{name} scores {score} mIoU on {where}; the baseline {baseline.label} scores "
        f"{percent(baseline.quality.miou, 2)}. "
        f"The difference is {signed(comparison.gain, 2)} points{_measured(comparison)}."
    )
    tone, headline, reading = _reading(name, baseline.label, comparison)
    winner = {"gain": name, "loss": baseline.label}.get(tone)
    if _flattered(content) == [winner]:
        tone, headline = (
            "open",
            f"{name}: {signed(comparison.gain)} mIoU against {baseline.label}, not a fair comparison",
        )
        reading = f"Only the weights of {winner} were chosen on the scored images, which favours it."
    return Verdict(headline, tone, (first, reading, *_teacher(content, student), *selection), warnings)


def _measured(comparison: Gain) -> str:
    bounds = interval(comparison.interval, 2, sign=True)
    if not bounds:
        return ""
    noun = comparison.interval.over.rstrip("s")
    return f", 95 % interval {bounds} (paired bootstrap over {counted(comparison.interval.groups, noun)})"


def _reading(student: str, baseline: str, comparison: Gain) -> tuple[Literal["gain", "loss", "open"], str, str]:
    """Tone, headline and what the interval says."""
    gain, bounds = comparison.gain, comparison.interval
    difference = f"{signed(gain)} mIoU against {baseline}"
    if gain is None or bounds.low is None or bounds.high is None or not (known(bounds.low) and known(bounds.high)):
        return "open", f"{student}: {difference}, not tested", "No interval could be drawn, so nothing is claimed."
    if not bounds.reliable:
        text = "The interval is not reliable, so nothing is claimed in either direction."
        return "open", f"{student}: {difference}, not clear with these data", text
    if bounds.low == bounds.high == gain == 0:
        return "open", f"{student}: no difference from {baseline}", "Both have the same counts in every image."
    if bounds.low > 0:
        text = "This is a clear gain on these images: the interval leaves out 0."
        return "gain", f"{student}: {difference}, a clear gain", text
    if bounds.high < 0:
        text = "This is a clear loss on these images: the interval leaves out 0."
        return "loss", f"{student}: {difference}, a clear loss", text
    text = "This is not clear with these data: the interval holds 0, so that either net could be the better one."
    return "open", f"{student}: {difference}, not clear with these data", text


def _teacher(content: ReportContent, student: ScoredNet) -> tuple[str, ...]:
    teacher = content.net(content.teacher)
    if teacher is None or teacher.label == student.label or not known(teacher.quality.miou):
        return ()
    return (f"The teacher {teacher.label} scores {percent(teacher.quality.miou, 2)}.",)


def _selection(content: ReportContent, student: ScoredNet) -> tuple[str, ...]:
    """How the student's weights were chosen."""
    training = content.training(student.stage)
    return () if training is None or not training.kept else (f"Weights of {student.label}: {chosen(training)}.",)


def chosen(training: Training) -> str:
    """Which checkpoint was handed on."""
    if training.kept == "last":
        return f"those of the last step ({training.steps})"
    step = "" if training.best_step is None else f", step {training.best_step} of {training.steps}"
    without = {
        "agreement": "those that agree best with themselves in the mirror, by images without masks",
        "balance": "those surest of most different classes, by images without masks",
        "entropy": "those with the lowest entropy, by images without masks",
    }
    if training.kept in without:
        return f"{without[training.kept]}{step}"
    marked = ", chosen with target labels" if training.kept == "best_on_target" else ""
    return f"those with the best validation score on {training.validated_on or 'the validation data'}{step}{marked}"


def _flattered(content: ReportContent) -> list[str]:
    """Student and baseline, as far as their weights were chosen on the data that are scored."""
    result = []
    for label in (content.student, content.baseline):
        net = content.net(label)
        training = None if net is None else content.training(net.stage)
        if net is not None and training is not None and training.chosen_on_scored_data:
            result.append(net.label)
    return result


def _leaking(content: ReportContent) -> list[str]:
    """The nets in whose choice labels had a part that count as missing."""
    leaking = {training.stage for training in content.trainings if training.leak}
    return [net.label for net in content.nets if net.stage in leaking]


def _warnings(content: ReportContent, comparison: Gain | None) -> list[str]:
    result = []
    leaking = _leaking(content)
    if leaking:
        result.append(
            f"Chosen with target labels: {', '.join(leaking)}. Masks that count as missing had a part in choosing "
            "weights (keep: best_on_target), so these are no scores of adaptation without labels."
        )
    flattered = _flattered(content)
    if flattered:
        result.append(
            f"The weights of {' and '.join(flattered)} were chosen on the very images that are scored here: "
            "expect less on new ones."
        )
    if comparison is None:
        own = content.net(content.student)
        bounds = None if own is None else own.quality.interval
    else:
        bounds = comparison.interval
    if bounds is not None and not bounds.reliable:
        result.append(f"The interval is not reliable: {bounds.reason or 'too few groups'}.")
    if bounds is not None and bounds.over == "images" and bounds.groups > 1:
        result.append(
            "Images were drawn one by one. Where neighbours look alike (frames of a video, tiles of a scene) the "
            "interval is too narrow; name their groups in the data set."
        )
    if comparison is not None:
        result.append("One training run of each net was compared: how far another seed would differ is not included.")
    return [*result, *(warning for section in content.sections for warning in section.warnings)]
