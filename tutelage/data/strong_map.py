"""Replay of ProDA's strong view on maps: the geometry and cutout of an image, applied to labels or distances.

A strong view is computed from an existing view, so that maps of the view must follow: flip, shear along x and y,
translation along x and y, rotation, each sampled at the nearest cell, then the cutout. As published, the replay has
this order whatever the order of the operations on the image, and keeps one of two draws of the same operation.

Cells are computed on the host, in float32, one image and one operation at a time, so that the rounding of a cell
half-way between two others is the same on every machine and for every batch. Maps on any device are then gathered
once, whatever the number of operations and channels.

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
"""Translation along x relative to the map's width (``exact``), or to its height, a bug of ProDA's code (``code``)."""

Matrix = tuple[tuple[float, float, float], tuple[float, float, float]]


@dataclass(frozen=True)
class StrongRecord:
    """Operations applied to one image; the defaults mean not applied. Lengths are in pixels of the view."""

    flip: bool = False
    """Horizontal flip."""
    shear_x: float = 0.0
    """Horizontal shift per row, in columns."""
    shear_y: float = 0.0
    """Vertical shift per column, in rows."""
    translate_x: float = 0.0
    """Columns by which the source position is to the right."""
    translate_y: float = 0.0
    """Rows by which the source position is below."""
    rotate: float = 0.0
    """Degrees, counter-clockwise in the displayed image."""
    cutout: tuple[int, int, int, int] = (0, 0, 0, 0)
    """Left, top, right, bottom; the last two are exclusive. An empty box: no cutout."""


def strong_cells(
    records: Sequence[StrongRecord], grid: tuple[int, int], scale: int = 4, translate_x: TranslateX = "exact"
) -> Tensor:
    """Source cell in the view for each cell of the strong view: (B, h, w) int64 on the host.

    Cells are numbered row by row; -1 is outside the view or in the cutout. ``scale``: pixels of the view per cell;
    lengths in pixels are divided by it and rounded down. Source: code of ProDA (CVPR 2021).
    """
    return torch.stack([_cells(record, grid, scale, translate_x) for record in records])


def replay(maps: Tensor, cells_Bhw: Tensor, padding: float) -> Tensor:
    """Gather maps (B, h, w) or (B, K, h, w) into the strong view; ``padding`` where a cell has no source.

    Differentiable. Raises ``ValueError`` if the shapes of maps and cells differ.
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
    # Numbered from 1, because grid_sample pads with 0.
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
    """For each applied operation, the matrix from output to input coordinates, both in -1..1."""
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
