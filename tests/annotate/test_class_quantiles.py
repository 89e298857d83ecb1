"""Thresholds by quantile of a class: by hand, from histograms, and where classes or pixels are missing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.annotate.exact_quantiles import confidence_histogram, exact_thresholds, keep_confident
from tutelage.annotate.class_quantiles import BINS, histogram_thresholds

CONFIDENCE = np.array([0.2, 0.6, 0.4, 0.95, 0.97, 0.5], dtype=np.float32)
PREDICTION = np.array([0, 0, 0, 1, 1, 3], dtype=np.uint8)


def test_by_hand() -> None:
    found = exact_thresholds(CONFIDENCE, PREDICTION, 4, quantile=0.5, cap=0.9)
    # Class 0: round(1.5) = 2 (halves to even), the largest of three; 1: 0.97, capped; 2: nothing; 3: its only one.
    np.testing.assert_allclose(found.threshold_K, [0.6, 0.9, 0.0, 0.5], rtol=1e-6)
    np.testing.assert_array_equal(found.pixels_K, [3, 2, 0, 1])
    label = keep_confident(CONFIDENCE, PREDICTION, found.threshold_K)
    assert label.dtype == np.uint8
    np.testing.assert_array_equal(label, [255, 0, 255, 1, 1, 3])


@pytest.mark.parametrize(
    ("pixels", "quantile", "place"),
    [(3, 0.0, 0), (3, 0.1, 0), (3, 0.4, 1), (3, 0.5, 2), (5, 0.5, 2), (3, 1.0, 2), (1, 0.7, 0)],
)
def test_the_place_is_rounded_to_even_and_never_beyond_the_last(pixels: int, quantile: float, place: int) -> None:
    values = np.random.default_rng(0).permutation(pixels) / 8
    found = exact_thresholds(values, np.zeros(pixels, dtype=np.int64), 1, quantile, 1.0)
    assert found.threshold_K[0] == place / 8
    histogram = confidence_histogram(values, np.zeros(pixels, dtype=np.int64), 1)
    assert histogram_thresholds(histogram, quantile, 1.0).threshold_K[0] == place / 8


def test_pixels_of_no_class_count_nowhere_and_stay_unlabelled() -> None:
    prediction = np.array([[0, 255], [255, 1]], dtype=np.uint8)
    confidence = np.array([[0.3, 1.0], [1.0, 0.4]])
    found = exact_thresholds(confidence, prediction, 2, 0.5, 0.9)
    np.testing.assert_array_equal(found.pixels_K, [1, 1])
    assert confidence_histogram(confidence, prediction, 2).sum() == 2
    np.testing.assert_array_equal(keep_confident(confidence, prediction, found.threshold_K), prediction)


def test_a_pixel_at_the_threshold_is_kept_whatever_its_precision() -> None:
    rng = np.random.default_rng(0)
    for dtype in (np.float16, np.float32, np.float64):
        confidence = rng.random(501).astype(dtype)
        prediction = np.zeros(501, dtype=np.uint8)
        found = exact_thresholds(confidence, prediction, 1, 0.5, 1.0)
        kept = keep_confident(confidence, prediction, found.threshold_K)
        assert (kept == 0).sum() == (confidence.astype(np.float64) >= found.threshold_K[0]).sum() >= 251


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 999),
    classes=st.integers(1, 5),
    pixels=st.integers(0, 200),
    quantile=st.floats(0, 1),
    cap=st.floats(0.1, 1),
)
def test_histograms_are_a_bin_below_at_most(seed: int, classes: int, pixels: int, quantile: float, cap: float) -> None:
    rng = np.random.default_rng(seed)
    confidence = np.round(rng.random(pixels), 3).astype(np.float32)
    confidence[rng.random(pixels) < 0.1] = 1.0
    prediction = rng.choice([*range(classes), 255], pixels)
    exact = exact_thresholds(confidence, prediction, classes, quantile, cap)
    cut = pixels // 2
    parts = [(confidence[:cut], prediction[:cut]), (confidence[cut:], prediction[cut:])]
    histogram = sum(confidence_histogram(*part, classes) for part in parts)
    assert isinstance(histogram, np.ndarray)
    assert histogram.shape == (classes, BINS)
    found = histogram_thresholds(histogram, quantile, cap)
    np.testing.assert_array_equal(found.pixels_K, exact.pixels_K)
    below = exact.threshold_K - found.threshold_K
    assert below.min() >= 0
    assert below.max() <= 1 / BINS
    kept = keep_confident(confidence, prediction, found.threshold_K) != 255
    assert not ((keep_confident(confidence, prediction, exact.threshold_K) != 255) & ~kept).any()
