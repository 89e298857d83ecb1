"""Classes on a grid: counts, means, and the choice of some positions of each class.

Nothing here waits for a GPU: no number is read back, nothing is indexed by a mask.

Legend: B images, K classes, P positions, C channels, F chosen positions, H W the labels, h w the grid.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def shrink_labels(label_BHW: Tensor, size: tuple[int, int]) -> Tensor:
    """Labels (B, h, w) on a grid, the nearest: index floor(i H / h), in float32 as torch's ``interpolate`` computes it.

    Where i H / h is a whole number that rounding misses, the index is the one below. Source: CIRKD's code.
    """
    rows, columns = (_nearest_index(old, new, label_BHW) for old, new in zip(label_BHW.shape[1:], size, strict=True))
    return label_BHW[:, rows[:, None], columns]


def _nearest_index(old: int, new: int, like: Tensor) -> Tensor:
    place = torch.arange(old, device=like.device, dtype=torch.float32)
    return F.interpolate(place[None, None], new, mode="nearest")[0, 0].long()


def membership(label_BP: Tensor, classes: int) -> Tensor:
    """Whether a position shows a class (B, K, P); ignored positions show none."""
    return label_BP[:, None] == torch.arange(classes, device=label_BP.device)[:, None]


def class_counts(label_BP: Tensor, classes: int) -> Tensor:
    """Positions of each class in each image (B, K)."""
    return membership(label_BP, classes).sum(2)


def class_means(rows_BPC: Tensor, label_BP: Tensor, counts_BK: Tensor) -> Tensor:
    """Mean of the rows of each class in each image (B, K, C), in float32; 0 for a class that is absent."""
    member = membership(label_BP, counts_BK.shape[1]).float()
    return torch.bmm(member, rows_BPC.float()) / counts_BK.clamp(min=1)[..., None]


def random_ranks(counts_BK: Tensor, limit: int, generator: torch.Generator) -> Tensor:
    """Distinct numbers (B, K, limit) below each count, all such sets being as likely; -1 beyond min(count, limit).

    Floyd's sampling: its cost does not depend on the counts.
    """
    step = torch.arange(limit, device=counts_BK.device)
    draws = torch.rand((*counts_BK.shape, limit), generator=generator, device=counts_BK.device, dtype=torch.float64)
    largest = (counts_BK - limit).clamp(min=0)[..., None] + step
    ranks = (draws * (largest + 1)).long()
    for place in range(1, limit):
        taken = (ranks[..., :place] == ranks[..., place, None]).any(-1)
        ranks[..., place] = torch.where(taken, largest[..., place], ranks[..., place])
    return ranks.masked_fill(step >= counts_BK[..., None], -1)


def positions_of_ranks(label_BP: Tensor, ranks_BKF: Tensor, counts_BK: Tensor) -> Tensor:
    """Where the r-th position of each class lies, counted row by row (B, K, F); -1 where the rank is."""
    order_BP = label_BP.argsort(dim=1, stable=True)
    start_BK = counts_BK.cumsum(1) - counts_BK
    place = (start_BK[..., None] + ranks_BKF).clamp(0, label_BP.shape[1] - 1)
    positions = order_BP.gather(1, place.flatten(1)).view_as(ranks_BKF)
    return positions.masked_fill(ranks_BKF < 0, -1)
