"""CutMix: one box per image in which its partner is pasted (UniMatch V1 and V2, and their FixMatch).

    with probability p:  area A ~ U(0.02, 0.4) H W, once;  then until the box lies inside the image:
                         aspect r ~ U(0.3, 1 / 0.3),  h = floor(sqrt(A r)),  w = floor(sqrt(A / r)),
                         x in 0 .. W - 1,  y in 0 .. H - 1

A box is a function of a seed, a view's name and an image's position in its stream, drawn on the host: the draw does not
synchronise with the device and does not depend on micro-batches or processes.

Legend: B batch, H W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tutelage.data.draws import generator

AREA = (0.02, 0.4)
"""Range of a box's area as a fraction of the image's."""
ASPECT = (0.3, 1 / 0.3)
"""Range of a box's height over its width."""


class Box(NamedTuple):
    """A box in pixels: rows ``top`` to ``top + height - 1``, columns ``left`` to ``left + width - 1``."""

    top: int
    left: int
    height: int
    width: int


NOWHERE = Box(0, 0, 0, 0)


def box_size(area: float, aspect: float, size: tuple[int, int]) -> tuple[int, int]:
    """Height and width in pixels of a box; ``area`` is its fraction of the image (H, W), ``aspect`` height / width."""
    pixels = area * (size[0] * size[1])
    return math.floor(math.sqrt(pixels * aspect)), math.floor(math.sqrt(pixels / aspect))


def draw_box(draw: np.random.Generator, size: tuple[int, int]) -> Box:
    """Draw a box inside an image (H, W) by the rule of the module's header.

    Aspects with which a box of its area cannot fit are excluded beforehand; they would be drawn again. If none is left
    (a narrow crop), the box is as high, or as wide, as the image. In images of a few pixels a side may be 0: then
    nothing is pasted.
    """
    height, width = size
    area = draw.uniform(*AREA)
    pixels = area * (height * width)
    lowest = min(max(ASPECT[0], pixels / (width + 1) ** 2), height**2 / pixels)
    highest = max(min(ASPECT[1], (height + 1) ** 2 / pixels), pixels / width**2)
    while True:
        high, wide = box_size(area, draw.uniform(lowest, highest), size)
        left, top = int(draw.integers(width)), int(draw.integers(height))
        if left + wide <= width and top + high <= height:
            return Box(top, left, high, wide)


def draw_boxes(
    seed: int, view: str, positions: Iterable[int], size: tuple[int, int], probability: float = 0.5
) -> list[Box]:
    """Draw a box for each position of a stream, or :data:`NOWHERE` with probability ``1 - probability``."""
    boxes = []
    for position in positions:
        draw = generator(seed, f"cutmix/{view}", "box", position)
        boxes.append(draw_box(draw, size) if draw.random() < probability else NOWHERE)
    return boxes


def box_masks(boxes: Sequence[Box], size: tuple[int, int], device: torch.device | None = None) -> Tensor:
    """Masks (B, H, W), bool: true inside each box."""
    top_B1, left_B1, height_B1, width_B1 = torch.tensor(boxes).view(-1, 4, 1).to(device, non_blocking=True).unbind(1)
    row_H, column_W = (torch.arange(side, device=device) for side in size)
    rows_BH = (row_H >= top_B1) & (row_H < top_B1 + height_B1)
    columns_BW = (column_W >= left_B1) & (column_W < left_B1 + width_B1)
    return rows_BH[:, :, None] & columns_BW[:, None, :]
