"""Does a gain pay? It must be there, and be as large as its user wants; often the data cannot tell.

A gain of one run over one other is never enough: training again with another seed moves a score by as much as most
methods claim to bring.
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
"""Seeds, or times the images, above which nobody would try."""


@dataclass(frozen=True)
class Judgement:
    """What a gain says, and where it says nothing, what would."""

    verdict: Verdict
    seeds: int | None = None
    """About so many seeds a side would tell, should gain and spread stay as they are; None: more would not help."""
    images: int | None = None
    """Where seeds would not help: about so many times the images would; None: not known, or nobody's number."""


def judge(gain: Gain, spreads: tuple[float | None, float | None], worth: float) -> Judgement:
    """Whether b pays: its gain is surely above 0 and, at a guess, at least ``worth``; or surely below ``worth``.

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
    """How many seeds a side, or else how many times the images, would make the interval short enough."""
    away = gain.gain if gain.gain >= worth else worth - gain.gain
    allowed = (away / _QUANTILE) ** 2
    variances = [spread**2 for spread in spreads]
    total = ((gain.high - gain.low) / (2 * _QUANTILE)) ** 2
    # Drawing S seeds anew shows (1 - 1 / S) of the variance between them; the rest of the interval is the images'.
    of_seeds = sum(variance * (1 - 1 / n) / n for variance, n in zip(variances, gain.seeds, strict=True))
    of_images = max(total - of_seeds, 0.0)
    if of_images < allowed:
        seeds = max(math.ceil(sum(variances) / (allowed - of_images)), min(gain.seeds) + 1)
        if seeds <= _MOST:
            return seeds, None
    times = math.inf if allowed == 0 else (total + sum(variances) / min(gain.seeds)) / allowed
    return None, max(math.ceil(times), 2) if times <= _MOST else None


def holm(p_values: Sequence[float]) -> list[float]:
    """P values as they stand when several are looked at together (Holm, Scand. J. Statist. 6, 1979)."""
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    adjusted = [1.0] * len(p_values)
    largest = 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted
