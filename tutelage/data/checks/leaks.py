"""Checks across splits: images that occur on both sides, look-alikes, and groups that straddle a border.

Two images are look-alikes when their perceptual hashes differ in at most ten of 64 bits and their thumbnails by at
most eight grey levels on average; the second test keeps scenes of one camera apart. Within one split look-alikes are
no fault: video frames are like that.
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
_PLAIN = 4.0  # standard deviation of a thumbnail below which an image has nothing that could be recognised
_AT_ONCE = 1 << 22  # pairs of hashes compared at once: 32 MiB


class LikenessLimits(Settings):
    """How alike two images must be to be called near-duplicates."""

    bits: int = 10
    """Largest number of differing bits of 64."""
    levels: float = 8.0
    """Largest mean difference of their thumbnails, in grey levels of 255."""


def inside(subject: Subject) -> Iterator[Finding]:
    """The same picture twice in one data set."""
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
            f"{plural(len(twice), 'picture')} more than once: {' = '.join(map(str, files[: len(twice[0])][:3]))}",
            "keep one of each; the others only add weight to the picture",
            files,
        )


def across(subjects: Sequence[Subject], limits: LikenessLimits) -> Iterator[Finding]:
    """Pictures, look-alikes and groups shared by training and scoring data, or by validation and test."""
    for subject in subjects:
        if subject.duty in ("val", "test") and subject.roles & TEACHING:
            yield Finding(
                "error",
                "leak-same",
                subject.name,
                f"the recipe trains on {subject.name} and scores on it, too",
                "score on a split of its own: `tutelage split` makes one",
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
    """Images that are both labelled and unlabelled training data: methods work, but learn from fewer new images."""
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
                + f" labelled in {other.name}, too: {some(shared, 5)}",
                "fine where the one is an upper bound for the other; in one stage, the lists should not overlap",
                tuple(shared),
            )


def published(subjects: Sequence[Subject]) -> Iterator[Finding]:
    """Labelled lists that are published ones, so that scores on them can be compared with published scores."""
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
    """Without those whose images all belong to another one of the same duty: partitions of one training set."""
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
    """The pair with the training side, else validation, first; ``None`` where both may share images."""
    rank: dict[Duty, int] = {"train": 0, "unlabeled": 0, "val": 1, "test": 2}
    a, b = sorted((first, second), key=lambda subject: rank[subject.duty])
    return None if rank[a.duty] == rank[b.duty] else (a, b)


def _same(first: Subject, second: Subject) -> Iterator[Finding]:
    """Equal pictures on both sides, whatever their files are called."""
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
            "take them out of one of the two lists; scores on them say nothing about new images",
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
            f"{len(files)} of {plural(len(second.dataset), 'image')} of {second.name} almost like one of {first.name}; "
            f"the closest pair: {first.dataset.samples[closest[0]].image} and "
            f"{second.dataset.samples[closest[1]].image.name}",
            "keep sequences, tiles or patients together: set data.<name>.group and `tutelage split --by-group`",
            files,
        )


def look_alikes(first: Pictures, second: Pictures, limits: LikenessLimits) -> dict[tuple[int, int], float]:
    """Pairs (A, B) of images that look alike but are not equal, with the mean difference of their thumbnails."""
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
    """(N,) standard deviation of each thumbnail's grey levels."""
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
            "scores are of known sequences, tiles or patients; `tutelage split --by-group` keeps them together",
            files,
        )
