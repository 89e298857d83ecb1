"""Scores in bands of rows, so that C scores per pixel of a large image are never in memory at once.

A band is its first row and the scores (B, K, rows, W) from there on; a prediction is a sequence of bands from top to
bottom. This module converts one sequence to the next: reading other rows than those that arrive, resizing,
mirroring.

Letters: B images, K classes, W columns, n rows of a band.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from tutelage.losses.options import ResizeRule

Bands = Iterator[tuple[int, Tensor]]
# A band that fits into the processor's cache is processed two to three times faster; a device needs larger ones.
_BAND_BYTES = 4 << 20
_BAND_BYTES_ON_DEVICE = 64 << 20


def rows_of_band(scores_BKnW: Tensor, width: int) -> int:
    """Number of rows of ``width`` pixels per band: small enough for memory, large enough for speed."""
    images, classes = scores_BKnW.shape[:2]
    size = _BAND_BYTES if scores_BKnW.device.type == "cpu" else _BAND_BYTES_ON_DEVICE
    return max(1, size // (4 * images * classes * width))


class RowReader:
    """Reads rows of a sequence of bands by number, forwards only: rows before the requested ones are freed."""

    def __init__(self, bands: Bands) -> None:
        self._bands = bands
        self._first = 0
        self._held: Tensor | None = None

    def take(self, start: int, stop: int) -> Tensor:
        """Rows start..stop: (B, K, stop - start, W)."""
        parts = [] if self._held is None else [self._held[:, :, start - self._first :]]
        end = start + sum(part.shape[2] for part in parts)
        while end < stop:
            first, band = next(self._bands)
            band = band[:, :, max(0, start - first) :]
            if band.shape[2]:
                parts.append(band)
                end += band.shape[2]
        held = parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)
        self._first, self._held = start, held
        return held[:, :, : stop - start]


def stretched(
    take: Callable[[int, int], Tensor],
    source: tuple[int, int],
    size: tuple[int, int],
    rule: ResizeRule,
    stride: int = 1,
) -> Bands:
    """Resize scores from ``source`` to ``size`` band by band, as :func:`~tutelage.losses.resize.resize_logits` does.

    ``take(start, stop)`` returns source rows (B, K, stop - start, w); ``stride`` is only used by the rule ``grid``.
    """
    height, width = size
    position = _row_positions(source[0], height, rule, stride)
    step = rows_of_band(take(0, 1), width)
    for start in range(0, height, step):
        stop = min(start + step, height)
        at = position[start:stop]
        first, last = int(at[0]), min(int(at[-1]) + 2, source[0])
        rows = take(first, last)
        above = at.long()
        below = (above + 1).clamp_max(source[0] - 1)
        share = (at - above).to(rows).view(-1, 1)
        above, below = above.sub_(first).to(rows.device), below.sub_(first).to(rows.device)
        rows = torch.lerp(rows.index_select(2, above), rows.index_select(2, below), share)
        yield start, _stretch_columns(rows, width, rule, stride)


def mirrored(bands: Bands) -> Bands:
    """Flip left to right."""
    for start, scores in bands:
        yield start, scores.flip(-1)


def _row_positions(source_length: int, length: int, rule: ResizeRule, stride: int) -> Tensor:
    """(length,) position of each row among the source rows, in source rows from the centre of the first one."""
    index = torch.arange(length, dtype=torch.float64)
    if rule == "corners":
        position = index * ((source_length - 1) / max(length - 1, 1))
    else:
        scale = 1 / stride if rule == "grid" else source_length / length
        position = (index + 0.5) * scale - 0.5
    return position.clamp(0, source_length - 1)


def _stretch_columns(rows_BKnw: Tensor, width: int, rule: ResizeRule, stride: int) -> Tensor:
    if rule == "grid":
        if stride != 1:
            rows_BKnw = F.interpolate(
                rows_BKnw, scale_factor=(1.0, float(stride)), mode="bilinear", align_corners=False
            )
        return rows_BKnw[..., :width]
    if rows_BKnw.shape[3] == width:
        return rows_BKnw
    size = (rows_BKnw.shape[2], width)
    return F.interpolate(rows_BKnw, size, mode="bilinear", align_corners=rule == "corners")
