"""Class quantiles from all confidences at once: the reference for thresholds from histograms."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tutelage.annotate.class_quantiles import BINS, ClassThresholds, quantile_rank
from tutelage.data.labels import IGNORE


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
            place = quantile_rank(quantile, own.size)
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


def keep_confident(
    confidence_HW: NDArray[np.floating], prediction_HW: NDArray[np.integer], threshold_K: NDArray[np.float64]
) -> NDArray[np.uint8]:
    """Labels (H, W) uint8: the class where its confidence reaches the class's threshold, else 255.

    Compared in float64: a threshold may be a confidence, and rounding must not drop the pixel that it is of.
    """
    bound = np.append(threshold_K, np.inf)[np.minimum(prediction_HW, len(threshold_K))]
    return np.where(confidence_HW.astype(np.float64) >= bound, prediction_HW, IGNORE).astype(np.uint8)
