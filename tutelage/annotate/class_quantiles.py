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

from tutelage.data.labels import IGNORE

BINS = 4096


class ClassThresholds(NamedTuple):
    """What a class's pixels must reach, and of how many that was found."""

    threshold_K: NDArray[np.float64]
    """Confidence in 0..1; 0 for a class without pixels."""
    pixels_K: NDArray[np.int64]
    """Pixels that show the class."""


def exact_thresholds(
    confidence: NDArray[np.floating], prediction: NDArray[np.integer], classes: int, quantile: float, cap: float
) -> ClassThresholds:
    """Thresholds from all confidences (0..1) and classes of a set, two arrays of one shape.

    Pixels of no class (255) count nowhere.
    """
    threshold_K, pixels_K = np.zeros(classes), np.zeros(classes, dtype=np.int64)
    for class_ in range(classes):
        own = confidence[prediction == class_].astype(np.float64)
        pixels_K[class_] = own.size
        if own.size:
            place = _place(quantile, own.size)
            threshold_K[class_] = min(cap, float(np.partition(own, place)[place]))
    return ClassThresholds(threshold_K, pixels_K)


def confidence_histogram(
    confidence: NDArray[np.floating], prediction: NDArray[np.integer], classes: int, bins: int = BINS
) -> NDArray[np.int64]:
    """Pixels by class and bin of confidence (K, L): bin l holds l / L to below (l + 1) / L, the last one 1 too.

    Histograms of images add up to that of the set. Pixels of no class (255) count nowhere.
    """
    counted = prediction < classes
    # In float64: a product with 4096 is exact in float32 and in float64, but not in float16.
    level = np.clip(confidence[counted].astype(np.float64) * bins, 0, bins - 1).astype(np.int64)
    index = prediction[counted].astype(np.int64) * bins + level
    return np.bincount(index, minlength=classes * bins).reshape(classes, bins)


def histogram_thresholds(histogram_KL: NDArray[np.int64], quantile: float, cap: float) -> ClassThresholds:
    """Thresholds from a histogram: the lower end of the bin in which the exact one lies, at most 1 / L below it."""
    threshold_K, pixels_K = np.zeros(len(histogram_KL)), histogram_KL.sum(1)
    for class_, counts_L in enumerate(histogram_KL):
        pixels = int(pixels_K[class_])
        if pixels:
            level = int(np.searchsorted(counts_L.cumsum(), _place(quantile, pixels), side="right"))
            threshold_K[class_] = min(cap, level / len(counts_L))
    return ClassThresholds(threshold_K, pixels_K)


def keep_confident(
    confidence_HW: NDArray[np.floating], prediction_HW: NDArray[np.integer], threshold_K: NDArray[np.float64]
) -> NDArray[np.uint8]:
    """Labels (H, W) uint8: the class where its confidence reaches the class's threshold, else 255.

    Compared in float64: a threshold may be a confidence, and rounding must not drop the pixel that it is of.
    """
    bound = np.append(threshold_K, np.inf)[np.minimum(prediction_HW, len(threshold_K))]
    return np.where(confidence_HW.astype(np.float64) >= bound, prediction_HW, IGNORE).astype(np.uint8)


def _place(quantile: float, pixels: int) -> int:
    """The rank of the quantile among this many, from 0."""
    return min(round(quantile * pixels), pixels - 1)
