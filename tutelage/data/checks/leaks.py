"""Checks across splits: images in two splits, near-duplicates, and groups in two splits.

Two images are near-duplicates if their perceptual hashes differ in at most 10 of 64 bits and their thumbnails by at
most 8 grey levels on average; the second condition separates different scenes of one camera. Near-duplicates within one
split are not reported: video frames are near-duplicates.
"""

# Legend: A and B numbers of images of two data sets.

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np

from tutelage.data.checks.findings import Finding, plural, several, some
from tutelage.data.checks.subject import TEACHING, Duty, Subject
from tutelage.data.pictures import Pictures
from tutelage.data.published_splits import recognise
from tutelage.settings import Settings

_TEACHES = ("train", "unlabeled")
_PLAIN = 4.0  # standard deviation of a thumbnail below which an image is too uniform to compare
_AT_ONCE = 1 << 22  # pairs of hashes per comparison: 32 MiB


class LikenessLimits(Settings):
    """Thresholds for near-duplicates."""

    bits: int = 10
    """Largest number of differing bits, of 64."""
    levels: float = 8.0
    """Largest mean difference of the thumbnails, in grey levels, of 255."""


def inside(subject: Subject) -> Iterator[Finding]:
    """Duplicate images in one data set."""
    by_digest: dict[bytes, list[int]] = defaultdict(list)
    for index in np.flatnonzero(subject.pictures.read):
        by_digest[bytes(subject.pictures.digests[index])].append(int(index))
    twice = [indices for indices in by_digest.values() if len(indices) > 1]
    if twice:
        files = tuple(subject.dataset.samples[index].image for indices in twice for index in indices)
        yield Finding(
            "note",
            "duplicate",
            subject.name,
            f"{plural(len(twice), 'image')} more than once: {' = '.join(map(str, files[: len(twice[0])][:3]))}",
            "keep one copy of each; further copies only increase its weight",
            files,
        )


def across(subjects: Sequence[Subject], limits: LikenessLimits) -> Iterator[Finding]:
    """Images, near-duplicates and groups shared by training and evaluation data, or by validation and test."""
    for subject in subjects:
        if subject.duty in ("val", "test") and subject.roles & TEACHING:
            yield Finding(
                "error",
                "leak-same",
                subject.name,
                f"{subject.name} is used for both training and evaluation",
                "evaluate on a separate split; create one with `tutelage split`",
                tuple(_images(subject)),
            )
    for first, second in combinations(_widest(subjects), 2):
        ordered = _ordered(first, second)
        if ordered is None:
            continue
        yield from _same(*ordered)
        yield from _alike(*ordered, limits)
        yield from _groups(*ordered)


def overlapping(subjects: Sequence[Subject]) -> Iterator[Finding]:
    """Images in both labelled and unlabelled training data: valid, but the unlabelled data add fewer new images."""
    labeled = [subject for subject in subjects if subject.duty == "train"]
    for unlabeled in (subject for subject in subjects if subject.duty == "unlabeled"):
        for other in labeled:
            mine, theirs = _images(unlabeled), _images(other)
            known = set(theirs)
            shared = [path for path in mine if path in known]
            if not shared:
                continue
            whole = len(shared) == len(mine)
            yield Finding(
                "warning",
                "labeled-unlabeled",
                f"{other.name}, {unlabeled.name}",
                (
                    f"all {len(shared)} unlabelled images are"
                    if whole
                    else f"{len(shared)} of {len(mine)} unlabelled images are"
                )
                + f" also labelled in {other.name}: {some(shared, 5)}",
                "no change needed if one data set is the upper bound of an experiment; else remove them from one list",
                tuple(shared),
            )


def published(subjects: Sequence[Subject]) -> Iterator[Finding]:
    """Labelled lists that equal published lists, so that scores on them can be compared with published scores."""
    for subject in subjects:
        known = recognise(subject.dataset.samples) if subject.duty == "train" else None
        if known is not None:
            yield Finding(
                "note",
                "published-list",
                subject.name,
                f"{plural(len(subject.dataset), 'labelled image')}: this is {known.describe()}; "
                f"{known.unlabeled} unlabelled images belong to it",
                "compare with published scores on this list only; other lists of the same size score differently",
            )


def _widest(subjects: Sequence[Subject]) -> list[Subject]:
    """Subjects without those whose images are all in another subject with the same duty (partitions of one set)."""
    sets = [(subject, set(_images(subject))) for subject in subjects]
    return [
        subject
        for place, (subject, images) in enumerate(sets)
        if not any(
            other.duty == subject.duty and (images < theirs or (images == theirs and rank < place))
            for rank, (other, theirs) in enumerate(sets)
            if rank != place
        )
    ]


def _images(subject: Subject) -> list[Path]:
    return [sample.image for sample in subject.dataset.samples]


def _ordered(first: Subject, second: Subject) -> tuple[Subject, Subject] | None:
    """The pair with training data, else validation data, first; ``None`` if both may share images."""
    rank: dict[Duty, int] = {"train": 0, "unlabeled": 0, "val": 1, "test": 2}
    a, b = sorted((first, second), key=lambda subject: rank[subject.duty])
    return None if rank[a.duty] == rank[b.duty] else (a, b)


def _same(first: Subject, second: Subject) -> Iterator[Finding]:
    """Images with equal pixels in both data sets, whatever their file names."""
    known = {bytes(digest): i for i, digest in enumerate(first.pictures.digests) if digest}
    pairs = [(known[bytes(d)], i) for i, d in enumerate(second.pictures.digests) if d and bytes(d) in known]
    if pairs:
        files = tuple(second.dataset.samples[i].image for _, i in pairs)
        example = first.dataset.samples[pairs[0][0]].image
        yield Finding(
            "error" if first.duty in _TEACHES else "warning",
            "leak-same",
            f"{first.name}, {second.name}",
            f"{len(files)} of {plural(len(second.dataset), 'image')} of {second.name} also in {first.name}: "
            f"{some(files)}; the first is {example}",
            "remove them from one of the two lists; scores on them do not measure performance on new images",
            files,
        )


def _alike(first: Subject, second: Subject, limits: LikenessLimits) -> Iterator[Finding]:
    pairs = look_alikes(first.pictures, second.pictures, limits)
    if pairs:
        indices = sorted({b for _, b in pairs})
        files = tuple(second.dataset.samples[i].image for i in indices)
        closest = min(pairs, key=lambda pair: pairs[pair])
        yield Finding(
            "warning",
            "leak-near",
            f"{first.name}, {second.name}",
            f"{len(files)} of {plural(len(second.dataset), 'image')} of {second.name} near-duplicates of images in "
            f"{first.name}; closest pair: {first.dataset.samples[closest[0]].image} and "
            f"{second.dataset.samples[closest[1]].image.name}",
            "keep sequences, tiles or patients together: set data.<name>.group and use `tutelage split --by-group`",
            files,
        )


def look_alikes(first: Pictures, second: Pictures, limits: LikenessLimits) -> dict[tuple[int, int], float]:
    """Near-duplicates that are not equal: index pair (A, B) → mean difference of their thumbnails, in grey levels."""
    mine, theirs = (np.flatnonzero(p.read & (_contrast(p) > _PLAIN)) for p in (first, second))
    pairs: dict[tuple[int, int], float] = {}
    rows = max(_AT_ONCE // max(len(mine), 1), 1)
    for start in range(0, len(theirs), rows):
        part = theirs[start : start + rows]
        bits_AB = np.bitwise_count(first.hashes[mine][:, None] ^ second.hashes[part])
        for place_A, place_B in zip(*np.nonzero(bits_AB <= limits.bits), strict=True):
            a, b = int(mine[place_A]), int(part[place_B])
            if first.digests[a] == second.digests[b]:
                continue
            levels = np.abs(first.thumbnails[a].astype(np.int16) - second.thumbnails[b]).mean()
            if levels <= limits.levels:
                pairs[a, b] = float(levels)
    return pairs


def _contrast(pictures: Pictures) -> np.ndarray:
    """(N,) standard deviation of the grey levels of each thumbnail."""
    grey = pictures.thumbnails.mean(3).reshape(len(pictures.thumbnails), -1)
    return np.asarray(grey.std(1))


def _groups(first: Subject, second: Subject) -> Iterator[Finding]:
    if first.source != second.source:
        return
    mine = {sample.group for sample in first.dataset.samples if sample.group}
    shared = sorted({sample.group for sample in second.dataset.samples if sample.group in mine})
    if shared:
        files = tuple(sample.image for sample in second.dataset.samples if sample.group in set(shared))
        yield Finding(
            "warning",
            "group-straddles",
            f"{first.name}, {second.name}",
            f"{plural(len(shared), 'group')} in both: {several(shared)} ({len(files)} images of {second.name})",
            "split with `tutelage split --by-group`, else scores are measured on known sequences, tiles or patients",
            files,
        )
