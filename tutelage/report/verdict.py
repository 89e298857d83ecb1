"""The verdict as text.

A gain is "clear" only if its interval is reliable and excludes 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tutelage.evaluation.intervals import Gain
from tutelage.report.content import ReportContent, ScoredNet, Training
from tutelage.report.formatting import counted, interval, known, percent, signed


@dataclass(frozen=True)
class Verdict:
    """The headline, its tone, sentences with the evidence, and warnings."""

    headline: str
    tone: Literal["gain", "loss", "open", "plain"]
    """``plain``: no comparison."""
    sentences: tuple[str, ...]
    warnings: tuple[str, ...]


def verdict(content: ReportContent) -> Verdict:
    """The verdict on the student."""
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
        alone = "There is no baseline, so no gain is reported."
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
        reading = f"Only the weights of {winner} were chosen on the scored images, which biases its score upwards."
    return Verdict(headline, tone, (first, reading, *_teacher(content, student), *selection), warnings)


def _measured(comparison: Gain) -> str:
    bounds = interval(comparison.interval, 2, sign=True)
    if not bounds:
        return ""
    noun = comparison.interval.over.rstrip("s")
    return f", 95 % interval {bounds} (paired bootstrap over {counted(comparison.interval.groups, noun)})"


def _reading(student: str, baseline: str, comparison: Gain) -> tuple[Literal["gain", "loss", "open"], str, str]:
    """Tone, headline, and an explanation of the interval."""
    gain, bounds = comparison.gain, comparison.interval
    difference = f"{signed(gain)} mIoU against {baseline}"
    if gain is None or bounds.low is None or bounds.high is None or not (known(bounds.low) and known(bounds.high)):
        return "open", f"{student}: {difference}, not tested", "There is no interval, so no conclusion is drawn."
    if not bounds.reliable:
        text = "The interval is not reliable, so no conclusion is drawn."
        return "open", f"{student}: {difference}, not clear with these data", text
    if bounds.low == bounds.high == gain == 0:
        return "open", f"{student}: no difference from {baseline}", "Both have the same counts in every image."
    if bounds.low > 0:
        text = "This is a clear gain on these images: the interval excludes 0."
        return "gain", f"{student}: {difference}, a clear gain", text
    if bounds.high < 0:
        text = "This is a clear loss on these images: the interval excludes 0."
        return "loss", f"{student}: {difference}, a clear loss", text
    text = "This is not clear with these data: the interval contains 0, so either net could be better."
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
    """The kept checkpoint."""
    if training.kept == "last":
        return f"those of the last step ({training.steps})"
    step = "" if training.best_step is None else f", step {training.best_step} of {training.steps}"
    without = {
        "agreement": "those whose predictions agree best with those on mirrored images, without masks",
        "balance": "those most confident of most different classes, without masks",
        "entropy": "those with the lowest entropy, without masks",
    }
    if training.kept in without:
        return f"{without[training.kept]}{step}"
    marked = ", chosen with target labels" if training.kept == "best_on_target" else ""
    return f"those with the best validation score on {training.validated_on or 'the validation data'}{step}{marked}"


def _flattered(content: ReportContent) -> list[str]:
    """The student or baseline if its weights were chosen on the scored data."""
    result = []
    for label in (content.student, content.baseline):
        net = content.net(label)
        training = None if net is None else content.training(net.stage)
        if net is not None and training is not None and training.chosen_on_scored_data:
            result.append(net.label)
    return result


def _leaking(content: ReportContent) -> list[str]:
    """The nets chosen with labels treated as missing."""
    leaking = {training.stage for training in content.trainings if training.leak}
    return [net.label for net in content.nets if net.stage in leaking]


def _warnings(content: ReportContent, comparison: Gain | None) -> list[str]:
    result = []
    leaking = _leaking(content)
    if leaking:
        result.append(
            f"Chosen with target labels: {', '.join(leaking)}. Masks treated as missing were used to choose "
            "weights (keep: best_on_target), so these are not scores of adaptation without labels."
        )
    flattered = _flattered(content)
    if flattered:
        result.append(
            f"The weights of {' and '.join(flattered)} were chosen on the images scored here: "
            "expect lower scores on new images."
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
            "The bootstrap draws single images. Where neighbours are similar (frames of a video, tiles of a scene) the "
            "interval is too narrow; name their groups in the data set."
        )
    if comparison is not None:
        result.append("One training run of each net was compared: the variation between seeds is not included.")
    return [*result, *(warning for section in content.sections for warning in section.warnings)]
