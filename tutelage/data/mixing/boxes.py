"""CutMix masks of CPS: boxes that toggle the mask, so that nothing is exchanged where two boxes overlap.

Legend: B masks, n boxes per mask, H W pixels; a box is (top, left, bottom, right) in pixels, the last two exclusive.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tutelage.data.settings import BoxSettings


def box_masks(
    draw: np.random.Generator, images: int, size: tuple[int, int], settings: BoxSettings, device: torch.device
) -> Tensor:
    """Draw random masks (B, H, W), bool: true where the partner's pixels are pasted."""
    shape = (images, settings.count)
    boxes_Bn4 = boxes_of(draw.random(shape), draw.random(shape), draw.random((*shape, 2)), size, settings.area)
    return toggled(torch.from_numpy(boxes_Bn4).to(device), size)


def boxes_of(
    area_Bn: NDArray, aspect_Bn: NDArray, position_Bn2: NDArray, size: tuple[int, int], areas: tuple[float, float]
) -> NDArray:
    """Boxes (B, n, 4), int64, from uniform numbers in [0, 1): one for the area, one for the shape, two (y, x) for the
    position.

    A box of area a has height a^u and width a / a^u, as fractions of the image; both are divided by sqrt(n).
    Source: code of CPS (CVPR 2021), from CutMix-Seg (BMVC 2020).
    """
    share_Bn = areas[0] + (areas[1] - areas[0]) * area_Bn.astype(np.float64)
    height_Bn = share_Bn ** aspect_Bn.astype(np.float64)
    sides_Bn2 = np.stack([height_Bn, share_Bn / height_Bn], 2) * np.sqrt(1.0 / area_Bn.shape[1])
    image_2 = np.array(size, dtype=np.float64)
    sides_Bn2 = np.round(sides_Bn2 * image_2)
    first_Bn2 = np.round((image_2 - sides_Bn2) * position_Bn2)
    return np.concatenate([first_Bn2, first_Bn2 + sides_Bn2], 2).astype(np.int64)


def toggled(boxes_Bn4: Tensor, size: tuple[int, int]) -> Tensor:
    """Masks (B, H, W), bool: true where an even number of boxes overlap, including none."""
    row_H1 = torch.arange(size[0], device=boxes_Bn4.device)[:, None]
    column_W = torch.arange(size[1], device=boxes_Bn4.device)
    top, left, bottom, right = boxes_Bn4[..., None, None].unbind(2)
    inside_BnHW = (row_H1 >= top) & (row_H1 < bottom) & (column_W >= left) & (column_W < right)
    return inside_BnHW.sum(1) % 2 == 0
