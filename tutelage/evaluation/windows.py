"""Positions and weights of the windows of a sliding prediction.

Windows form a grid and their weights are products of a vertical and a horizontal one, so everything here is about
one axis; the total weight of a pixel is the product of two such vectors.

Published rules, for an image side L and a window w: UniMatch V1 starts a window at every multiple of the step below
L and cuts off what is outside (``truncated``: the last ones can be slivers, and some cover nothing new); U2PL and
UniMatch V2 move the last window back so that it ends at L (``shifted``).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tutelage.evaluation.protocol import Protocol

_SPREAD = 1 / 8


def spans(length: int, window: int, step: int, border: str) -> list[tuple[int, int]]:
    """Start and end of every window along an axis of ``length`` (at least the window, if shifted)."""
    if border == "truncated":
        return [(start, min(start + window, length)) for start in range(0, length, step)]
    last = length - window
    return [(start, start + window) for start in (*range(0, last, step), last)]


def taper(length: int, weighting: str) -> NDArray[np.float64]:
    """(length,) weights along one axis of a window; the largest is at most 1."""
    if weighting == "uniform":
        return np.ones(length)
    offset = np.arange(length) - (length - 1) / 2
    weights: NDArray[np.float64] = np.exp(-0.5 * (offset / (_SPREAD * length)) ** 2)
    return weights


def padded_size(height: int, width: int, protocol: Protocol) -> tuple[int, int]:
    """The size of an image after padding to the window, if the protocol pads."""
    if protocol.window is None or protocol.border == "truncated":
        return height, width
    return max(height, protocol.window[0]), max(width, protocol.window[1])


def grid(height: int, width: int, protocol: Protocol) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """The rows and the columns of windows on a *padded* image of a sliding protocol."""
    if protocol.window is None:
        raise ValueError("a protocol of kind 'whole' has no windows")
    (window_height, window_width), (down, across) = protocol.window, protocol.steps()
    return (
        spans(height, window_height, down, protocol.border),
        spans(width, window_width, across, protocol.border),
    )


def coverage(length: int, windows: list[tuple[int, int]], weighting: str) -> NDArray[np.float64]:
    """(length,) sum of the weights that each pixel along one axis gets from all windows."""
    total = np.zeros(length)
    for start, end in windows:
        total[start:end] += taper(end - start, weighting)
    return total
