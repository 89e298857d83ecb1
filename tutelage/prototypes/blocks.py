"""Rows in blocks: nothing here makes a tensor as large as the rows themselves, not even a converted copy of them.

Legend: N rows, n rows of a block, C channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from tutelage.errors import TutelageError

# Elements of one block. On a CPU a block should still lie in the cache when it is used for the second time.
_CPU, _GPU = 1 << 19, 1 << 24


def block_length(channels: int, device: torch.device) -> int:
    """How many rows of so many channels make one block."""
    return max(256, (_CPU if device.type == "cpu" else _GPU) // max(channels, 1))


def blocks(
    rows_NC: Tensor, shift_C: Tensor, dtype: torch.dtype, *, squares: bool = False
) -> Iterator[tuple[int, Tensor]]:
    """(first row, rows - shift) of each block (n, C) in ``dtype``; the difference is taken in that dtype.

    With ``squares`` (n, 2C): the differences, and beside them their squares. The memory of a block is used again for
    the next one.
    """
    rows, channels = rows_NC.shape
    length = min(block_length(channels, rows_NC.device), max(rows, 1))
    shift = shift_C.to(rows_NC.device, dtype)
    memory = torch.empty(length, 2 * channels if squares else channels, dtype=dtype, device=rows_NC.device)
    for start in range(0, rows, length):
        block = memory[: min(length, rows - start)]
        shifted = block[:, :channels]
        shifted.copy_(rows_NC[start : start + length]).sub_(shift)
        if squares:
            torch.mul(shifted, shifted, out=block[:, channels:])
        yield start, block


@dataclass(frozen=True)
class Summary:
    """Statistics of the rows after one pass."""

    mean_C: Tensor
    """The mean of each channel, float64."""

    lowest: float
    """The smallest number among all rows and channels."""

    highest: float
    """The largest."""


def summary(rows_NC: Tensor, owner: str) -> Summary:
    """Mean and range of rows (N, C).

    TutelageError, naming ``owner``, where there is no row or a number is not finite.
    """
    if rows_NC.ndim != 2 or not rows_NC.shape[0] or not rows_NC.shape[1]:
        raise TutelageError(
            "no-features", f"{owner} has no features (shape {tuple(rows_NC.shape)})", "leave it out, or add samples"
        )
    total = torch.zeros(rows_NC.shape[1], dtype=torch.float64, device=rows_NC.device)
    bounds = []
    for _, block in blocks(rows_NC, torch.zeros(rows_NC.shape[1]), torch.float64):
        total += block.sum(0)
        bounds.append(torch.stack(torch.aminmax(block)))
    lowest, highest = torch.stack(bounds).T
    low, high = float(lowest.min()), float(highest.max())
    if not (-float("inf") < low and high < float("inf")):  # NaN fails both
        raise TutelageError(
            "features-not-finite",
            f"features of {owner} are not finite (from {low} to {high})",
            "use precision fp32 or bf16 if the net overflows in fp16, or a checkpoint of a run that did not diverge",
        )
    return Summary(total / rows_NC.shape[0], low, high)
