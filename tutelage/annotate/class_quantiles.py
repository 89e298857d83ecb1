"""Pseudo labels above a confidence of their own class: a quantile of it over the whole training set, but capped.

    m_c = the k-th smallest confidence of the n_c pixels that show class c,  k = min(round(quantile n_c), n_c - 1)
    t_c = min(cap, m_c); 0 for a class that nothing shows
    keep a pixel where its confidence >= t_c, else 255

k counts from 0, halves are rounded to even. Exact thresholds hold all confidences in memory; histograms of 4096 bins do
not, add up over images and processes, and give thresholds that are at most a bin too low. Default of PBAL
(IEEE TMM 2024), whose code lacks the rule; it is that of the line of work it belongs to.

Legend: K classes, L levels (bins) of confidence, H W pixels.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

BINS = 4096


class ClassThresholds(NamedTuple):
    """What a class's pixels must reach, and of how many that was found."""

    threshold_K: NDArray[np.float64]
    """Confidence in 0..1; 0 for a class without pixels."""
    pixels_K: NDArray[np.int64]
    """Pixels that show the class."""


def histogram_thresholds(histogram_KL: NDArray[np.int64], quantile: float, cap: float) -> ClassThresholds:
    """Thresholds from a histogram: the lower end of the bin in which the exact one lies, at most 1 / L below it."""
    threshold_K, pixels_K = np.zeros(len(histogram_KL)), histogram_KL.sum(1)
    for class_, counts_L in enumerate(histogram_KL):
        pixels = int(pixels_K[class_])
        if pixels:
            level = int(np.searchsorted(counts_L.cumsum(), quantile_rank(quantile, pixels), side="right"))
            threshold_K[class_] = min(cap, level / len(counts_L))
    return ClassThresholds(threshold_K, pixels_K)


def quantile_rank(quantile: float, pixels: int) -> int:
    """The rank of the quantile among this many, from 0."""
    return min(round(quantile * pixels), pixels - 1)
