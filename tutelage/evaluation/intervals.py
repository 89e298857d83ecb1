"""Intervals of mIoU and of gains by the bootstrap over images.

The mIoU is computed from sums over images, so its interval comes from resampling the images with replacement many
times (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapters 13 and 16). Images of one sequence
or tile are similar: then *blocks* must be drawn instead, or the interval is far too narrow. Two nets are compared on
the same draws, which cancels the difficulty of the images.

A resample is a vector of counts, how often each image is drawn; all resamples are one matrix, and their scores one
matrix product.

Letters: N images, G groups (images, or blocks of them), R resamples, C classes, S seeds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tutelage.errors import TutelageError

RESAMPLES = 2000
FEWEST_GROUPS = 5
_CHUNK = 1 << 22


Figure = float | None
"""A number that may not exist: ``None`` or NaN."""


@dataclass(frozen=True)
class Interval:
    """A 95 % interval of an mIoU, of another fraction, or of a difference."""

    low: Figure
    high: Figure
    over: str = "images"
    """What was drawn: ``images`` or ``blocks``."""
    groups: int = 0
    """How many of them there were."""
    reliable: bool = True
    """Whether there were enough of them for a meaningful interval."""
    reason: str = ""
    """Why it is not reliable; empty if it is."""
    estimate: float = math.nan
    """The value that the interval is for."""


@dataclass(frozen=True)
class Gain:
    """The gain of b over a in mIoU on the same images, with its 95 % interval and two-sided p value."""

    gain: float
    interval: Interval
    p_value: Figure = None
    seeds: tuple[int, int] = (1, 1)
    """Numbers of compared seeds of a and b; with several, the interval includes the spread between them."""

    @property
    def low(self) -> float:
        """Lower end of the interval, NaN where there is none."""
        return math.nan if self.interval.low is None else self.interval.low

    @property
    def high(self) -> float:
        """Upper end of the interval, NaN where there is none."""
        return math.nan if self.interval.high is None else self.interval.high

    @property
    def reliable(self) -> bool:
        """Whether there were enough groups for a meaningful interval."""
        return self.interval.reliable


def miou_of_counts(counts: NDArray[Any]) -> NDArray[np.float64]:
    """(..., C, 3) counts of true positives, false positives, false negatives -> (...) mIoU over the classes that occur.

    NaN if no class does.
    """
    hit = np.asarray(counts[..., 0], dtype=np.float64)
    union = counts.sum(-1, dtype=np.float64)
    iou = np.divide(hit, union, out=np.zeros_like(union), where=union > 0)
    present = (union > 0).sum(-1)
    mean: NDArray[np.float64] = np.divide(iou.sum(-1), present, out=np.full(present.shape, np.nan), where=present > 0)
    return mean


def bootstrap_miou(
    counts: NDArray[Any], blocks: ArrayLike | None = None, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """The mIoU of a set of images and its 95 % percentile interval; deterministic for a seed.

    ``counts``: (N, C, 3) integers from :func:`~tutelage.evaluation.confusion.counts_of`; ``blocks``: (N,)
    group ids (sequence, tile) of any type. Raises :class:`TutelageError` for other shapes.
    """
    groups_GC3 = _by_block([_checked(counts)], blocks)[0]
    groups = len(groups_GC3)
    generator = np.random.default_rng(seed)
    drawn = np.concatenate([_drawn_miou(weights, groups_GC3) for weights in _weights(generator, groups, resamples)])
    low, high = _percentiles(drawn)
    reliable, reason = _reliability(groups, blocks is not None)
    over = "images" if blocks is None else "blocks"
    return Interval(low, high, over, groups, reliable, reason, float(miou_of_counts(groups_GC3.sum(0))))


def paired_bootstrap(
    counts_a: NDArray[Any] | Sequence[NDArray[Any]],
    counts_b: NDArray[Any] | Sequence[NDArray[Any]],
    blocks: ArrayLike | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Gain:
    """The gain of b over a on the same images: mIoU(b) - mIoU(a), drawn jointly; deterministic for a seed.

    Each side is one (N, C, 3) array, or one per seed; then a side's score is the mean over its seeds, which are
    resampled too, independently on both sides. With few seeds their spread is underestimated, by a factor of about
    sqrt(1 - 1 / S). The p value is twice the share of resamples on the other side of 0, both counts raised by one.
    Raises :class:`TutelageError` if the arrays are of different images or classes.
    """
    seeds_a, seeds_b = _seeds(counts_a), _seeds(counts_b)
    everything = _by_block([*seeds_a, *seeds_b], blocks)
    groups = len(everything[0])
    generator = np.random.default_rng(seed)
    parts = []
    for weights in _weights(generator, groups, resamples):
        scores_RS = np.stack([_drawn_miou(weights, one) for one in everything], axis=1)
        mean_a = _mean_of_drawn_seeds(generator, scores_RS[:, : len(seeds_a)])
        mean_b = _mean_of_drawn_seeds(generator, scores_RS[:, len(seeds_a) :])
        parts.append(mean_b - mean_a)
    drawn = np.concatenate(parts)
    drawn = drawn[~np.isnan(drawn)]
    scores = [float(miou_of_counts(one.sum(0))) for one in everything]
    other_side = min((drawn <= 0).sum(), (drawn >= 0).sum())
    low, high = _percentiles(drawn)
    reliable, reason = _reliability(groups, blocks is not None)
    return Gain(
        gain=float(np.mean(scores[len(seeds_a) :]) - np.mean(scores[: len(seeds_a)])),
        interval=Interval(low, high, "images" if blocks is None else "blocks", groups, reliable, reason),
        p_value=min(1.0, float(2 * (other_side + 1) / (len(drawn) + 1))),
        seeds=(len(seeds_a), len(seeds_b)),
    )


@dataclass(frozen=True)
class GapShare:
    """The fraction of the gap from a to c that net b closes, with its 95 % interval."""

    share: float
    """NaN without a gap."""
    low: float
    high: float
    gap: Gain
    """c - a, of the same draws."""
    reason: str
    """Why the fraction is undefined; empty if it is defined."""


def gap_share(
    counts_a: NDArray[Any] | Sequence[NDArray[Any]],
    counts_b: NDArray[Any] | Sequence[NDArray[Any]],
    counts_c: NDArray[Any] | Sequence[NDArray[Any]],
    blocks: ArrayLike | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> GapShare:
    """(mIoU(b) - mIoU(a)) / (mIoU(c) - mIoU(a)) on the same images, drawn jointly as in :func:`paired_bootstrap`.

    The fraction of a gap that may be 0 is meaningless, and its interval is unbounded (Fieller, J. R. Stat. Soc. B 16,
    1954): if the interval of the gap reaches down to 0, ``reason`` says so. Raises as :func:`paired_bootstrap`.
    """
    sides = [_seeds(counts_a), _seeds(counts_b), _seeds(counts_c)]
    everything = _by_block([one for side in sides for one in side], blocks)
    ends = np.cumsum([len(side) for side in sides])
    generator = np.random.default_rng(seed)
    parts = []
    for weights in _weights(generator, len(everything[0]), resamples):
        scores_RS = np.stack([_drawn_miou(weights, one) for one in everything], axis=1)
        means = [_mean_of_drawn_seeds(generator, part_RS) for part_RS in np.split(scores_RS, ends[:-1], axis=1)]
        parts.append(np.stack(means, axis=1))
    a_R, b_R, c_R = np.concatenate(parts).T
    gap = paired_bootstrap(counts_a, counts_c, blocks, resamples, seed)
    whole_R = np.where(c_R > a_R, c_R - a_R, np.nan)
    low, high = _percentiles((b_R - a_R) / whole_R)
    scores = [float(miou_of_counts(one.sum(0))) for one in everything]
    a, b, c = (float(np.mean(scores[end - len(side) : end])) for end, side in zip(ends, sides, strict=True))
    share = (b - a) / (c - a) if c != a else float("nan")
    reason = ""
    if not gap.reliable:
        reason = gap.interval.reason
    elif not gap.low > 0:
        reason = "the gap itself may be 0"
    return GapShare(share, low, high, gap, reason)


def bootstrap_shares(
    part: NDArray[Any],
    whole: NDArray[Any],
    blocks: ArrayLike | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[Interval]:
    """The fraction of ``whole`` that each column of ``part`` is, over all images, with its 95 % percentile interval.

    ``part`` and ``whole``: (N, C) counts by image, such as correct and predicted pixels of a class; ``blocks`` as in
    :func:`bootstrap_miou`. All columns are drawn together; an interval counts the images, or blocks, in which its
    column's whole is not 0, and is NaN if there is none. Raises :class:`TutelageError` for other shapes.
    """
    if np.shape(part) != np.shape(whole) or np.ndim(part) != 2 or not len(part):
        raise TutelageError(
            "shape-mismatch",
            f"invalid counts: shapes {np.shape(part)} and {np.shape(whole)}",
            "give both as (images, columns), with at least one image",
        )
    pairs_GC2 = _by_block([np.stack([part, whole], axis=-1).astype(np.int64)], blocks)[0]
    groups, columns = pairs_GC2.shape[:2]
    flat = pairs_GC2.reshape(groups, -1)
    generator = np.random.default_rng(seed)
    sums = np.concatenate([weights @ flat for weights in _weights(generator, groups, resamples)])
    drawn_RC = _ratio(sums.reshape(-1, columns, 2))
    estimates, occurs = _ratio(pairs_GC2.sum(0)), (pairs_GC2[..., 1] > 0).sum(0)
    result, over = [], "images" if blocks is None else "blocks"
    for column, estimate in enumerate(estimates):
        low, high = _percentiles(drawn_RC[:, column])
        reliable, reason = _reliability(int(occurs[column]), blocks is not None)
        result.append(Interval(low, high, over, int(occurs[column]), reliable, reason, float(estimate)))
    return result


def _ratio(pairs: NDArray[np.float64]) -> NDArray[np.float64]:
    """(..., 2) part and whole -> (...) fraction, NaN if the whole is 0."""
    part, whole = pairs[..., 0], pairs[..., 1]
    share: NDArray[np.float64] = np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole > 0)
    return share


def _checked(counts: NDArray[Any]) -> NDArray[np.int64]:
    array = np.asarray(counts)
    if array.ndim != 3 or array.shape[-1] != 3 or not len(array) or not np.issubdtype(array.dtype, np.integer):
        raise TutelageError(
            "shape-mismatch",
            f"invalid per-image counts: shape {array.shape}, type {array.dtype}",
            "give integers (images, classes, 3), as confusion.counts_of makes them, with at least one image",
        )
    return array.astype(np.int64)


def _seeds(counts: NDArray[Any] | Sequence[NDArray[Any]]) -> list[NDArray[np.int64]]:
    """One array of counts, or several of them (a list, or stacked), as a list."""
    if isinstance(counts, np.ndarray) and counts.ndim == 3:
        return [_checked(counts)]
    several = [_checked(one) for one in counts]
    if not several:
        raise TutelageError(
            "input-missing", "one side of the comparison has no run", "give the counts of at least one seed"
        )
    return several


def _by_block(arrays: list[NDArray[np.int64]], blocks: ArrayLike | None) -> list[NDArray[np.float64]]:
    """Sum (N, C, 3) counts over the images of each block: (G, C, 3) float64, exact for any number of pixels here."""
    shape = arrays[0].shape
    if any(one.shape != shape for one in arrays):
        raise TutelageError(
            "not-comparable",
            "runs were scored on different images or classes: counts have the shapes "
            + ", ".join(str(one.shape) for one in arrays),
            "score all of them with one data set and one protocol",
        )
    if blocks is None:
        return [one.astype(np.float64) for one in arrays]
    ids = np.asarray(blocks)
    if ids.shape != shape[:1]:
        raise TutelageError(
            "shape-mismatch",
            f"{ids.shape} block ids for {shape[0]} images",
            "give one id per image, such as its sequence",
        )
    names, group_N = np.unique(ids, return_inverse=True)
    sums = []
    for one in arrays:
        total = np.zeros((len(names), *shape[1:]), dtype=np.int64)
        np.add.at(total, group_N, one)
        sums.append(total.astype(np.float64))
    return sums


def _weights(generator: np.random.Generator, groups: int, resamples: int) -> Iterator[NDArray[np.float64]]:
    """How often each group is drawn in each resample: chunks (r, G) of a matrix (R, G)."""
    rows = max(1, _CHUNK // groups)
    for start in range(0, resamples, rows):
        count = min(rows, resamples - start)
        drawn = generator.integers(0, groups, size=(count, groups)) + groups * np.arange(count)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=count * groups).reshape(count, groups)
        yield weights.astype(np.float64)


def _drawn_miou(weights_RG: NDArray[np.float64], counts_GC3: NDArray[np.float64]) -> NDArray[np.float64]:
    sums = weights_RG @ counts_GC3.reshape(len(counts_GC3), -1)
    return miou_of_counts(sums.reshape(len(weights_RG), *counts_GC3.shape[1:]))


def _mean_of_drawn_seeds(generator: np.random.Generator, scores_RS: NDArray[np.float64]) -> NDArray[np.float64]:
    """Draw S seeds with replacement in each resample and average their scores; a single seed is always drawn."""
    seeds = scores_RS.shape[1]
    if seeds == 1:
        return scores_RS[:, 0]
    drawn = generator.integers(0, seeds, size=scores_RS.shape)
    mean: NDArray[np.float64] = np.take_along_axis(scores_RS, drawn, axis=1).mean(axis=1)
    return mean


def _percentiles(drawn: NDArray[np.float64]) -> tuple[float, float]:
    drawn = drawn[~np.isnan(drawn)]
    if not drawn.size:
        return float("nan"), float("nan")
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(low), float(high)


def _reliability(groups: int, blocked: bool) -> tuple[bool, str]:
    if groups >= FEWEST_GROUPS:
        return True, ""
    noun = "block" if blocked else "image"
    return False, (
        f"only {groups} {noun}{'' if groups == 1 else 's'}: fewer than {FEWEST_GROUPS} do not show how far another "
        "set of images would differ"
    )
