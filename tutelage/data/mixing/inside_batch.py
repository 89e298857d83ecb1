"""Strong mixing of U2PL: half of each image is erased, or replaced by the next image of the batch.

A keep mask is true where an image is unchanged. The maps of the image use the same mask.

Legend: B images, K classes, H W pixels, L = K + 1 labels (the last is the ignored one).
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def half_holes(
    draw: np.random.Generator, images: int, size: tuple[int, int], device: torch.device, ratio: int = 2
) -> Tensor:
    """Draw keep masks (B, H, W), bool: false in one random rectangle of 1 / ``ratio`` of the image's area."""
    holes_B4 = np.array([_hole(draw, size, ratio) for _ in range(images)], dtype=np.int64)
    return around(torch.from_numpy(holes_B4).to(device), size)


def hole_height(size: tuple[int, int], width: int, ratio: int = 2) -> int:
    """Height of a hole of this width that covers 1 / ``ratio`` of an image (H, W), rounded."""
    return round(size[0] * size[1] / ratio / width)


def around(holes_B4: Tensor, size: tuple[int, int]) -> Tensor:
    """Keep masks (B, H, W), bool: false inside the holes (left, top, width, height)."""
    row_H1 = torch.arange(size[0], device=holes_B4.device)[:, None]
    column_W = torch.arange(size[1], device=holes_B4.device)
    left, top, width, height = holes_B4[..., None, None].unbind(1)
    return ~((row_H1 >= top) & (row_H1 < top + height) & (column_W >= left) & (column_W < left + width))


def class_halves(label_BHW: Tensor, score_BL: Tensor) -> Tensor:
    """Keep masks (B, H, W), bool: true on half (rounded down) of the labels of an image.

    The labels with the smallest ``score`` (one per class, the last for the ignored label) are kept: random scores
    choose a random half. Source: ClassMix (WACV 2021), as in the code of U2PL.
    """
    labels = score_BL.shape[1]
    index_BP = label_BHW.clamp(max=labels - 1).flatten(1)
    present_BL = (index_BP[:, None] == torch.arange(labels, device=index_BP.device)[:, None]).any(2)
    rank_BL = score_BL.masked_fill(~present_BL, float("inf")).argsort(stable=True, dim=1).argsort(1)
    chosen_BL = present_BL & (rank_BL < present_BL.sum(1, keepdim=True) // 2)
    keep_BHW: Tensor = chosen_BL.gather(1, index_BP).view_as(label_BHW)
    return keep_BHW


def _hole(draw: np.random.Generator, size: tuple[int, int], ratio: int) -> NDArray:
    low = min(int(size[1] / ratio + 1), size[1])
    width = int(draw.integers(low, max(size[1], low + 1)))  # an image of two columns leaves no choice
    height = min(hole_height(size, width, ratio), size[0])
    left, top = draw.integers(0, size[1] - width + 1), draw.integers(0, size[0] - height + 1)
    return np.array([left, top, width, height])
