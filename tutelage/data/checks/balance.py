"""Checks of class balance: values, empty masks, and missing, rare or unused classes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from tutelage.data.checks.findings import Finding, plural, several, some
from tutelage.data.checks.masks import labels_at
from tutelage.data.checks.subject import Subject
from tutelage.data.statistics import DatasetStatistics
from tutelage.settings import Settings


class BalanceLimits(Settings):
    """Thresholds below which a class is rare."""

    share: float = 0.001
    """Fraction of the labelled pixels."""
    images: int = 5
    """Number of images."""


def contents(subject: Subject, masks: DatasetStatistics) -> Iterator[Finding]:
    """Values of the masks, and masks without labelled pixels or with the first class alone."""
    dataset = subject.dataset
    histogram = masks.histogram()
    total = sum(histogram.values())
    if total:
        listed = [_value(subject, value, count / total) for value, count in histogram.items()]
        yield Finding(
            "note",
            "values",
            subject.name,
            f"{plural(int(masks.read.sum()), 'mask')}; values: {several(listed, 40)}",
            "compare with the expected values; data.<name>.ids, .colours and .ignore map values to classes",
        )
    unlabelled = [index for index, sample in enumerate(dataset.samples) if sample.label is None and not sample.lost]
    if unlabelled and len(unlabelled) < len(dataset):
        files = [dataset.samples[index].image for index in unlabelled]
        yield Finding(
            "warning",
            "labels-partial",
            subject.name,
            f"{len(files)} of {plural(len(dataset), 'image')} without mask: {some(files)}",
            "put them in a list of their own and use it as unlabelled data",
            tuple(files),
        )
    labeled = masks.classes.sum(1)
    empty = np.flatnonzero(masks.read & (labeled == 0))
    if len(empty):
        files = labels_at(dataset, empty.tolist())
        yield Finding(
            "warning",
            "mask-empty",
            subject.name,
            f"{len(files)} of {plural(len(dataset), 'mask')} with ignored pixels only: {some(files)}",
            "remove them from the list, or fix data.<name>.ignore; they do not contribute to training",
            tuple(files),
        )
    first = np.flatnonzero(masks.read & (labeled > 0) & (labeled == masks.classes[:, 0]))
    if len(first) and len(dataset.classes) > 1:
        files = labels_at(dataset, first.tolist())
        yield Finding(
            "note",
            "mask-one-class",
            subject.name,
            f"{len(files)} of {plural(len(dataset), 'mask')} with {dataset.classes.names[0]} only: {some(files)}",
            "no change needed if the images show nothing else; if they were never annotated, remove them from the list",
            tuple(files),
        )


def lost_masks(subject: Subject) -> Iterator[Finding]:
    """Missing mask files of images that are used with labels."""
    lost = [sample for sample in subject.dataset.samples if sample.lost]
    if lost:
        yield Finding(
            "error",
            "mask-lost",
            subject.name,
            f"{len(lost)} of {plural(len(subject.dataset), 'mask')} not found: {lost[0].lost}",
            "check the list and data.<name>.root; only images that are used as unlabelled data need no masks",
            tuple(sample.image for sample in lost),
        )


def _value(subject: Subject, value: int, share: float) -> str:
    dataset = subject.dataset
    index = dataset.label_map.table.get(value, dataset.label_map.others)
    known = index is not None and index < len(dataset.classes)
    name = dataset.classes.names[index] if index is not None and known else "unknown" if index is None else "ignored"
    return f"{dataset.label_map.name_of(value)} {name} {share:.2%}"


def deficits(subjects: Sequence[Subject], limits: BalanceLimits) -> Iterator[Finding]:
    """Classes that no data set contains, that training or evaluation data lack, or that are rare in training.

    Class lists are compared by name, so all data sets must belong to one task.
    """
    labeled = [subject for subject in subjects if subject.masks is not None and subject.duty != "unlabeled"]
    seen: set[str] = set()
    taught: set[str] = set()
    for subject in labeled:
        present = set(_present(subject))
        seen |= present
        if subject.duty == "train":
            taught |= present
    unused: dict[str, list[str]] = {}
    for subject in labeled:
        for name in subject.dataset.classes.names:
            if name not in seen:
                unused.setdefault(name, []).append(subject.name)
    if unused:
        names = list(dict.fromkeys(name for places in unused.values() for name in places))
        yield Finding(
            "warning",
            "class-unused",
            several(names, 3),
            f"in the class list, but in no mask: {several(list(unused), 12)}",
            "remove them from the class list, or map their values in data.<name>.ids or .colours",
        )
    for subject in labeled:
        assert subject.masks is not None
        yield from _absent(subject, seen, taught)
        if subject.duty == "train":
            yield from _rare(subject, subject.masks, limits)


def _present(subject: Subject) -> list[str]:
    assert subject.masks is not None
    counts = subject.masks.images_with_class()
    return [name for name, count in zip(subject.dataset.classes.names, counts, strict=True) if count]


def _absent(subject: Subject, seen: set[str], taught: set[str]) -> Iterator[Finding]:
    present = set(_present(subject))
    lacking = [name for name in subject.dataset.classes.names if name in seen and name not in present]
    if not lacking:
        return
    if subject.duty != "train":
        yield Finding(
            "warning",
            "class-absent",
            subject.name,
            f"no pixel of {several(lacking, 12)}; the class cannot be scored on this split",
            "move images of the class into this split (`tutelage split` balances classes), or score on another split",
        )
        return
    never = [name for name in lacking if name not in taught]
    if never:
        yield Finding(
            "error",
            "class-absent",
            subject.name,
            f"no training mask contains {several(never, 12)}; the class cannot be learnt and lowers every mean score",
            "move images of the class into training (`tutelage split` balances classes), or remove it from the list",
        )
    elsewhere = [name for name in lacking if name in taught]
    if elsewhere:
        yield Finding(
            "warning",
            "class-absent",
            subject.name,
            f"no pixel of {several(elsewhere, 12)} in this training set; another one contains it",
            "no change needed if both are pooled; else draw a partition with every class (`tutelage split --few`)",
        )


def _rare(subject: Subject, masks: DatasetStatistics, limits: BalanceLimits) -> Iterator[Finding]:
    pixels, images = masks.class_pixels(), masks.images_with_class()
    total = max(int(pixels.sum()), 1)
    few = min(limits.images, len(masks) // 2)  # in a very small set, every class is in few images
    listed = [
        f"{name} ({int(pixels[i]) / total:.3%} of the pixels, {plural(int(images[i]), 'image')})"
        for i, name in enumerate(subject.dataset.classes.names)
        if images[i] and (pixels[i] < limits.share * total or images[i] < few)
    ]
    if listed:
        yield Finding(
            "note",
            "class-rare",
            subject.name,
            f"rare in training: {several(listed, 12)}",
            "label more of it, merge it with a similar class, or weight it (method.class_weights: balanced)",
        )
