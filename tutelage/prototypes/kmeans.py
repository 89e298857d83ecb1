"""k-means as products of matrices, with every random choice a function of a seed.

|x - c|^2 = |x|^2 - 2 x c + |c|^2 on rows from which the mean was subtracted: distances do not change, and less is
cancelled. Sums are float64. A cluster that loses all its rows gets the row that lies farthest from its centre;
published codes divide by 0 there and stop.

Legend: N rows, n rows of a block, M centres, C channels, R draws.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from tutelage.data import draws
from tutelage.prototypes.blocks import Summary, blocks, summary

Start = Literal["plus_plus", "draws"]
"""How the first centres are found: k-means++ (greedy), or the best of some draws of rows (BiSMAP's mixtures)."""

MOST_ROUNDS = 300


@dataclass(frozen=True)
class Clusters:
    """The result of k-means."""

    centres_MC: Tensor
    """float64, in the coordinates of the rows."""

    count_M: Tensor
    """Rows of each cluster (int64), by the last assignment."""

    rounds: int
    """Rounds of assignment and averaging."""

    repaired: int
    """How often an empty cluster was given another row."""


def kmeans(
    rows_NC: Tensor,
    centres: int,
    *,
    seed: int,
    owner: str = "k-means",
    start: Start = "plus_plus",
    tries: int = 20,
    movement: float | None = None,
    rounds: int = MOST_ROUNDS,
) -> Clusters:
    """Centres of rows (N, C), at most N of them.

    ``tries``: draws of the start ``draws``. ``movement``: stop when no centre moves farther, in units of the rows; by
    default sqrt(1e-4 x the mean variance of a channel / centres). ``owner`` names the rows in errors and keys the
    draws. TutelageError for no rows, or rows that are not finite. Source: BiSMAP, stage A (40 centres, ``plus_plus``).
    """
    known = summary(rows_NC, owner)
    centres = min(centres, rows_NC.shape[0])
    if start == "plus_plus":
        chosen = plus_plus(rows_NC, centres, seed=seed, owner=owner, known=known)
    else:
        drawn_RM = draw_rows(rows_NC.shape[0], centres, tries, seed=seed, owner=owner)
        chosen = drawn_RM[int(draw_costs(rows_NC, drawn_RM, known).argmin())]
    if movement is None:
        variance = sum(float(block.square().sum()) for _, block in blocks(rows_NC, known.mean_C, torch.float64))
        movement = math.sqrt(1e-4 * variance / rows_NC.numel() / centres)
    return lloyd(rows_NC, rows_NC[chosen.to(rows_NC.device)], movement=movement, rounds=rounds, known=known)


def draw_rows(rows: int, centres: int, tries: int, *, seed: int, owner: str, attempt: int = 0) -> Tensor:
    """Numbers of distinct rows (tries, centres), int64 on the CPU; ``owner`` and ``attempt`` key the draw."""
    numbers = [
        draws.generator(seed, owner, "rows", number, attempt).choice(rows, centres, replace=False)
        for number in range(tries)
    ]
    return torch.from_numpy(np.stack(numbers).astype(np.int64))


def draw_costs(rows_NC: Tensor, drawn_RM: Tensor, known: Summary) -> Tensor:
    """The summed distance of all rows to the nearest row of each draw (R), float64, in units of the rows.

    Source: BiSMAP's code, which takes the draw with the least sum.
    """
    dtype = _dtype(rows_NC)
    drawn = drawn_RM.to(rows_NC.device)
    centres_GC = rows_NC[drawn.flatten()].to(dtype) - known.mean_C.to(dtype)
    cost_R = torch.zeros(drawn.shape[0], dtype=torch.float64, device=rows_NC.device)
    for _, block in blocks(rows_NC, known.mean_C, dtype):
        nearest = _squared(block, centres_GC).view(*drawn.shape, -1).amin(1)
        cost_R += nearest.sqrt().sum(1, dtype=torch.float64)
    return cost_R


def plus_plus(rows_NC: Tensor, centres: int, *, seed: int, owner: str, known: Summary) -> Tensor:
    """Numbers of rows (M), each drawn with a chance proportional to its squared distance from those before it.

    Of 2 + floor(ln M) candidates the one that leaves the least sum is taken (greedy k-means++). Once all rows lie on
    centres, any row is drawn.
    """
    dtype, device = _dtype(rows_NC), rows_NC.device
    rows = rows_NC.shape[0]
    candidates = 2 + int(math.log(centres))
    squared_N = torch.full((rows,), math.inf, dtype=dtype, device=device)
    chosen: list[Tensor] = []
    for number in range(centres):
        random = draws.generator(seed, owner, "plus_plus", number)
        if number == 0:
            drawn = torch.from_numpy(random.integers(rows, size=1)).to(device)
        else:
            mass_N = squared_N.double().cumsum(0)
            place = torch.from_numpy(random.random(candidates)).to(device) * mass_N[-1]
            drawn = torch.searchsorted(mass_N, place, right=True).clamp(max=rows - 1)
            if not float(mass_N[-1]) > 0:
                drawn = torch.from_numpy(random.integers(rows, size=1)).to(device)
        centres_GC = rows_NC[drawn].to(dtype) - known.mean_C.to(dtype)
        left_GN = torch.cat([_squared(block, centres_GC) for _, block in blocks(rows_NC, known.mean_C, dtype)], 1)
        left_GN = torch.minimum(left_GN, squared_N)
        best = left_GN.sum(1, dtype=torch.float64).argmin()
        squared_N = left_GN[best]
        squared_N[drawn[best]] = 0.0  # not by rounding: a row is not drawn twice while others are left
        chosen.append(drawn[best])
    return torch.stack(chosen).cpu()


def lloyd(
    rows_NC: Tensor, start_MC: Tensor, *, movement: float, rounds: int = MOST_ROUNDS, known: Summary | None = None
) -> Clusters:
    """Assign rows to the nearest centre, move centres to their rows' mean, until none moves farther than ``movement``.

    A cluster without rows is given the row that lies farthest from its centre, unless no row lies farther than
    ``movement``: then the centre stays. Ends after ``rounds`` at the latest. Never NaN for finite rows.
    """
    known = known or summary(rows_NC, "k-means")
    dtype = _dtype(rows_NC)
    shift_C = known.mean_C
    centres_MC = start_MC.to(rows_NC.device).double() - shift_C
    # Movement by rounding does not count.
    least = max(movement, 4 * torch.finfo(dtype).eps * max(abs(known.lowest), abs(known.highest)))
    count_M = torch.zeros(centres_MC.shape[0], dtype=torch.int64, device=rows_NC.device)
    repaired = taken = 0
    while taken < rounds:
        taken += 1
        sum_MC, count_M = _assign(rows_NC, shift_C, centres_MC, dtype)
        mean_MC = sum_MC / count_M.clamp(min=1)[:, None]
        moved_MC = torch.where(count_M[:, None] > 0, mean_MC, centres_MC)
        empty = (count_M == 0).nonzero()[:, 0].tolist()
        mended = 0
        if empty:
            far = _farthest(rows_NC, shift_C, centres_MC, len(empty), dtype)
            for cluster, (distance, row) in zip(empty, far, strict=False):
                if distance > least:
                    moved_MC[cluster] = rows_NC[row].double() - shift_C
                    mended += 1
        repaired += mended
        step = float((moved_MC - centres_MC).norm(dim=1).max())
        centres_MC = moved_MC
        if step <= movement and not mended:
            break
    return Clusters(centres_MC + shift_C, count_M, taken, repaired)


def nearest_distance(rows_NC: Tensor, centres_MC: Tensor) -> Tensor:
    """The Euclidean distance of each row (N, C) to the nearest centre: (N), in the rows' dtype, at least float32."""
    dtype = _dtype(rows_NC)
    shift_C = centres_MC.double().mean(0)
    centres = centres_MC.to(rows_NC.device, dtype)
    centred = (centres_MC.double() - shift_C).to(rows_NC.device, dtype)
    parts = [rows_NC.new_zeros(0, dtype=dtype)]
    for start, block in blocks(rows_NC, shift_C, dtype):
        nearest_n = _squared(block, centred).argmin(0)
        # The products find the centre; the distance to it is that of the rows themselves, so that 0 is 0.
        own = rows_NC[start : start + len(block)].to(dtype)
        parts.append(torch.linalg.vector_norm(own - centres[nearest_n], dim=1))
    return torch.cat(parts)


def _dtype(rows: Tensor) -> torch.dtype:
    return torch.float64 if rows.dtype == torch.float64 else torch.float32


def _squared(block_nC: Tensor, centres_MC: Tensor) -> Tensor:
    """Squared distances (M, n); both sides are centred alike."""
    products_Mn = centres_MC @ block_nC.T
    squared_n = block_nC.square().sum(1)
    return products_Mn.mul_(-2).add_(centres_MC.square().sum(1)[:, None]).add_(squared_n).clamp_(min=0)


def _assign(rows_NC: Tensor, shift_C: Tensor, centres_MC: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Sums (M, C) float64 and numbers (M) of the rows nearest to each centre; the first of equally near ones."""
    centres = centres_MC.to(dtype)
    half_M1 = 0.5 * centres.square().sum(1)[:, None]
    number_M1 = torch.arange(centres.shape[0], device=rows_NC.device)[:, None]
    total = torch.zeros_like(centres_MC)
    count = torch.zeros(centres.shape[0], dtype=torch.int64, device=rows_NC.device)
    for _, block in blocks(rows_NC, shift_C, dtype):
        # |x|^2 is the same for all centres.
        label_n = (centres @ block.T).sub_(half_M1).argmax(0)
        member_Mn = label_n == number_M1
        total += member_Mn.to(dtype) @ block
        count += member_Mn.sum(1)
    return total, count


def _farthest(
    rows_NC: Tensor, shift_C: Tensor, centres_MC: Tensor, number: int, dtype: torch.dtype
) -> list[tuple[float, int]]:
    """(distance to its centre, row) of the rows farthest from their centres, the farthest first."""
    centres = centres_MC.to(dtype)
    distance, row = [], []
    for start, block in blocks(rows_NC, shift_C, dtype):
        top = _squared(block, centres).amin(0).topk(min(number, block.shape[0]))
        distance.append(top.values.sqrt())
        row.append(top.indices + start)
    order = torch.cat(distance).sort(descending=True, stable=True)
    rows = torch.cat(row)[order.indices[:number]]
    return list(zip(order.values[:number].tolist(), rows.tolist(), strict=True))
