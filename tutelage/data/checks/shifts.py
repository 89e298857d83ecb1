"""Checks of the shift between two data sets: brightness, colours, image sizes and object sizes."""

# Legend: C classes.

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

import numpy as np

from tutelage.data.checks.findings import Finding, several
from tutelage.data.checks.subject import Subject
from tutelage.data.pictures import Pictures
from tutelage.settings import Settings


class ShiftLimits(Settings):
    """Thresholds above which a difference between two data sets is reported."""

    luma: float = 25.0
    """Difference of the mean brightness, of 255."""
    colour: float = 0.35
    """Distance of the colour histograms (root of the Jensen-Shannon divergence, 0 to 1)."""
    size: float = 1.5
    """Ratio of the median image sides."""
    scale: float = 1.6
    """Ratio of the mean object widths of a class, in pixels."""


def shifts(subjects: Sequence[Subject], limits: ShiftLimits) -> Iterator[Finding]:
    """Notes on shifts between source and target data, and between training and test data of one data set."""
    # A test split belongs to the target if another split of the same data has the target role.
    foreign = {subject.source for subject in subjects if "target" in subject.roles}
    for first, second in combinations(subjects, 2):
        pair = _compared(first, second, foreign)
        if pair is not None and first.pictures.read.any() and second.pictures.read.any():
            yield from _colour(*pair, limits)
            yield from _size(*pair, limits)
            yield from _scale(*pair, limits)


def _compared(first: Subject, second: Subject, foreign: set[str]) -> tuple[Subject, Subject] | None:
    for a, b in ((first, second), (second, first)):
        target = "target" in b.roles or (b.source in foreign and b.duty == "test")
        crossing = "source" in a.roles and target and b.duty != "val"
        within = a.source == b.source and b.duty == "test"
        if a.duty == "train" and (crossing or within):
            return a, b
    return None


def _colour(first: Subject, second: Subject, limits: ShiftLimits) -> Iterator[Finding]:
    mine, theirs = (_mean(s.pictures, s.pictures.lumas) for s in (first, second))
    colours = [_mean(s.pictures, s.pictures.colours) for s in (first, second)]
    distance = colour_distance(*colours)
    if abs(float(mine) - float(theirs)) > limits.luma or distance > limits.colour:
        yield Finding(
            "note",
            "shift-colour",
            f"{first.name}, {second.name}",
            f"mean brightness {float(mine):.0f} and {float(theirs):.0f} of 255; distance of the colour histograms "
            f"{distance:.2f} (0 equal, 1 disjoint)",
            "use colour jitter in training (views: {weak: {colour: ...}}), or a domain-adaptation method",
        )


def _mean(pictures: Pictures, values: np.ndarray) -> np.ndarray:
    return np.asarray(values[pictures.read].mean(0))


def colour_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Square root of the Jensen-Shannon divergence of two histograms, base 2: 0 equal, 1 disjoint."""
    middle = (first + second) / 2

    def divergence(histogram: np.ndarray) -> float:
        there = histogram > 0
        return float((histogram[there] * np.log2(histogram[there] / middle[there])).sum())

    return float(np.sqrt(max((divergence(first) + divergence(second)) / 2, 0.0)))


def _size(first: Subject, second: Subject, limits: ShiftLimits) -> Iterator[Finding]:
    mine, theirs = (np.median(s.pictures.sizes[s.pictures.read], axis=0) for s in (first, second))
    ratios = mine / theirs
    if max(ratios.max(), 1 / ratios.min()) > limits.size:
        yield Finding(
            "note",
            "shift-size",
            f"{first.name}, {second.name}",
            f"median image sizes {mine[1]:.0f}x{mine[0]:.0f} and {theirs[1]:.0f}x{theirs[0]:.0f}",
            "if objects differ in size in pixels, widen augment.scale or set augment.resize",
        )


def _scale(first: Subject, second: Subject, limits: ShiftLimits) -> Iterator[Finding]:
    if first.masks is None or second.masks is None:
        return
    names = first.dataset.classes.names
    if names != second.dataset.classes.names:
        return
    mine, theirs = (object_widths(s.masks.class_pixels(), s.masks.runs.sum(0)) for s in (first, second) if s.masks)
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = mine / theirs
    changed = [
        f"{name} {mine[i]:.0f} and {theirs[i]:.0f}"
        for i, name in enumerate(names)
        if np.isfinite(ratio[i]) and ratio[i] > 0 and max(ratio[i], 1 / ratio[i]) > limits.scale
    ]
    if changed:
        yield Finding(
            "note",
            "shift-scale",
            f"{first.name}, {second.name}",
            f"object sizes differ; mean width in pixels: {several(changed)}",
            "widen augment.scale so that training covers both sizes",
        )


def object_widths(pixels_C: np.ndarray, runs_C: np.ndarray) -> np.ndarray:
    """(C,) mean length of a horizontal run of each class: an estimate of its object width without object detection."""
    return np.asarray(pixels_C / np.maximum(runs_C, 1))
