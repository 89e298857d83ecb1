"""Block masks of MIC: most square blocks of an image are hidden; the net predicts them from their context.

    U(0, 1) for each cell of a grid of round(H / b) x round(W / b);  a cell is kept iff U > ratio

A draw is a function of a seed and an image's position in its stream, computed on the host.

Legend: B images, H W pixels, h w cells of the grid, b side of a block in pixels.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tutelage.data.draws import generator


def grid_of(size: tuple[int, int], block: int) -> tuple[int, int]:
    """Grid size (h, w) of an image (H, W): each side divided by the block's, rounded half to even, at least 1."""
    return max(round(size[0] / block), 1), max(round(size[1] / block), 1)


def draw_grids(
    seed: int, stream: str, positions: Iterable[int], size: tuple[int, int], block: int, device: torch.device
) -> Tensor:
    """Draw uniform numbers (B, h, w) in [0, 1), one per block, for each position of a stream."""
    cells = grid_of(size, block)
    grids = [generator(seed, stream, "blocks", position).random(cells, dtype=np.float32) for position in positions]
    return torch.from_numpy(np.stack(grids)).to(device, non_blocking=True)


def block_masks(uniform_Bhw: Tensor, size: tuple[int, int], ratio: float) -> Tensor:
    """Masks (B, H, W), bool: true in blocks that are kept, those with a number above ``ratio``.

    The grid is stretched over the image: pixel i of H lies in cell floor(i h / H), computed in float32.
    Source: MIC (CVPR 2023), its code.
    """
    kept_B1hw = (uniform_Bhw > ratio)[:, None].float()
    return F.interpolate(kept_B1hw, size, mode="nearest")[:, 0] > 0


def hidden(image_B3HW: Tensor, mask_BHW: Tensor, fill_13: Tensor) -> Tensor:
    """Images (B, 3, H, W) with the colour ``fill`` outside the masks; ``fill`` broadcasts, e.g. (1, 3, 1, 1).

    With the mean colour that the net subtracts, its normalised input is 0 there.
    """
    return torch.where(mask_BHW[:, None], image_B3HW, fill_13)
