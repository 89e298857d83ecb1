"""Whether a gain is worthwhile: it must be certain, and as large as required; often the data are not enough.

A gain of one run over another is never enough: another seed changes a score by as much as most methods claim to
gain.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tutelage.evaluation.intervals import Gain

Verdict = Literal["worth it", "not worth it", "cannot tell"]

_QUANTILE = 1.96  # of 95 % intervals
_MOST = 100
"""Limit on seeds, or multiples of the images, that are worth suggesting."""


@dataclass(frozen=True)
class Judgement:
    """The verdict on a gain, and what would decide it if it is open."""

    verdict: Verdict
    seeds: int | None = None
    """Seeds per side that would decide it, if gain and spread stay as they are; None: more would not help."""
    images: int | None = None
    """If seeds would not help: the multiple of the images that would; None: unknown, or too large."""


def judge(gain: Gain, spreads: tuple[float | None, float | None], worth: float) -> Judgement:
    """Whether b is worthwhile: its gain is certainly above 0 and estimated at ``worth`` or more; or surely below it.

    ``spreads``: standard deviations over the seeds of a and of b.
    """
    before, after = spreads
    if before is None or after is None or min(gain.seeds) < 2:
        return Judgement("cannot tell", seeds=3)
    if gain.reliable and gain.low > 0 and gain.gain >= worth:
        return Judgement("worth it")
    if gain.reliable and gain.high < worth:
        return Judgement("not worth it")
    if not gain.reliable or math.isnan(gain.high - gain.low):
        return Judgement("cannot tell")
    return Judgement("cannot tell", *_needed(gain, (before, after), worth))


def _needed(gain: Gain, spreads: tuple[float, float], worth: float) -> tuple[int | None, int | None]:
    """Seeds per side, or else the multiple of the images, that would make the interval short enough."""
    away = gain.gain if gain.gain >= worth else worth - gain.gain
    allowed = (away / _QUANTILE) ** 2
    variances = [spread**2 for spread in spreads]
    total = ((gain.high - gain.low) / (2 * _QUANTILE)) ** 2
    # Resampling S seeds shows (1 - 1 / S) of the variance between them; the rest of the interval is the images'.
    of_seeds = sum(variance * (1 - 1 / n) / n for variance, n in zip(variances, gain.seeds, strict=True))
    of_images = max(total - of_seeds, 0.0)
    if of_images < allowed:
        seeds = max(math.ceil(sum(variances) / (allowed - of_images)), min(gain.seeds) + 1)
        if seeds <= _MOST:
            return seeds, None
    times = math.inf if allowed == 0 else (total + sum(variances) / min(gain.seeds)) / allowed
    return None, max(math.ceil(times), 2) if times <= _MOST else None


def holm(p_values: Sequence[float]) -> list[float]:
    """P values corrected for several comparisons (Holm, Scand. J. Statist. 6, 1979)."""
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    adjusted = [1.0] * len(p_values)
    largest = 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted
