"""ProDA's strong view, replayed on maps: what its geometry and its cutout did to an image, done to labels or distances.

A strong view is made of a view that is there already, so that maps of the view must follow: flip, shear along x and y,
translation along x and y, rotation, each sampled to the nearest cell, then the cutout. That is the order of the replay
whatever order the image saw, as published; and of two draws of one operation the record holds one.

Cells are found on the host, in float32, one image and one operation at a time: where a cell falls half-way between
two others, rounding decides, and it shall decide the same on every machine and for every batch. Maps on any device are
then looked up once, whatever the number of operations and channels.

Legend: B images, K channels, h w the grid of the maps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

TranslateX = Literal["exact", "code"]
"""Translation along x in shares of the map's width (``exact``), or of its height, a slip of ProDA's code (``code``)."""

Matrix = tuple[tuple[float, float, float], tuple[float, float, float]]


@dataclass(frozen=True)
class StrongRecord:
    """What happened to one image; an operation without effect was not applied. Lengths in pixels of the view."""

    flip: bool = False
    """Left and right changed places."""
    shear_x: float = 0.0
    """Columns by which a row moves, for each row."""
    shear_y: float = 0.0
    """Rows by which a column moves, for each column."""
    translate_x: float = 0.0
    """Columns by which the place that is shown lies to the right."""
    translate_y: float = 0.0
    """Rows by which it lies below."""
    rotate: float = 0.0
    """Degrees, counter-clockwise as the image is seen."""
    cutout: tuple[int, int, int, int] = (0, 0, 0, 0)
    """Left, top, right, bottom; the last two are outside. Empty: none."""


def strong_cells(
    records: Sequence[StrongRecord], grid: tuple[int, int], scale: int = 4, translate_x: TranslateX = "exact"
) -> Tensor:
    """For each cell (h, w) of the strong view, the cell of the view that it shows: (B, h, w) int64 on the host.

    Cells count row by row; -1 is outside of the view, or cut out. ``scale``: pixels of the view for each cell; lengths
    in pixels are divided by it and rounded down. Source: ProDA (CVPR 2021), its code.
    """
    return torch.stack([_cells(record, grid, scale, translate_x) for record in records])


def replay(maps: Tensor, cells_Bhw: Tensor, padding: float) -> Tensor:
    """Maps (B, h, w) or (B, K, h, w) as the strong view shows them; ``padding`` where it shows nothing of the view.

    Differentiable. ValueError where the cells were made for other images or another grid.
    """
    if (maps.shape[0], *maps.shape[-2:]) != cells_Bhw.shape:
        raise ValueError(f"cells {tuple(cells_Bhw.shape)} do not fit maps {tuple(maps.shape)}")
    planes_BKP = (maps if maps.ndim == 4 else maps[:, None]).flatten(2)
    cells_B1P = cells_Bhw.to(maps.device, non_blocking=True).flatten(1)[:, None]
    shown = planes_BKP.gather(2, cells_B1P.clamp(min=0).expand(-1, planes_BKP.shape[1], -1))
    return shown.masked_fill(cells_B1P < 0, padding).view(maps.shape)


def _cells(record: StrongRecord, grid: tuple[int, int], scale: int, translate_x: TranslateX) -> Tensor:
    """The cells (h, w) of one image."""
    height, width = grid
    # Counted from 1, since sampling puts 0 outside.
    cells = torch.arange(1.0, height * width + 1).view(1, 1, height, width)
    if record.flip:
        cells = cells.flip(3)
    for matrix in _matrices(record, grid, scale, translate_x):
        place = F.affine_grid(torch.tensor([matrix]), [1, 1, height, width], align_corners=False)
        cells = F.grid_sample(cells, place, mode="nearest", padding_mode="zeros", align_corners=False)
    left, top, right, bottom = (side // scale for side in record.cutout)
    cells[..., top:bottom, left:right] = 0
    return cells[0, 0].long() - 1


def _matrices(record: StrongRecord, grid: tuple[int, int], scale: int, translate_x: TranslateX) -> Iterator[Matrix]:
    """Of each operation that was applied: from places in the result to places before it, both in -1..1."""
    height, width = grid
    if record.shear_x:
        slope = record.shear_x * height / width
        yield (1.0, slope, slope), (0.0, 1.0, 0.0)
    if record.shear_y:
        slope = record.shear_y * width / height
        yield (1.0, 0.0, 0.0), (slope, 1.0, slope)
    if record.translate_x:
        side = width if translate_x == "exact" else height
        yield (1.0, 0.0, 2.0 * (record.translate_x // scale) / side), (0.0, 1.0, 0.0)
    if record.translate_y:
        yield (1.0, 0.0, 0.0), (0.0, 1.0, 2.0 * (record.translate_y // scale) / height)
    if record.rotate:
        cosine, sine = math.cos(math.radians(record.rotate)), math.sin(math.radians(record.rotate))
        yield (cosine, -sine * height / width, 0.0), (sine * width / height, cosine, 0.0)
