"""The views of ProDA's golden files: as the published code replays them on maps, and as geometries of the product.

The published code replays a strong view one operation after the other: flip, shear along x and y, translation along x
and y, rotation, each sampled to the nearest cell in float32, then the cutout.

Legend: B images, K channels, h w the grid of the maps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from tutelage.data.augmentation import Geometry
from tutelage.data.batch import Geometries

File = Mapping[str, NDArray]
Grid = tuple[int, int]

NOT_APPLIED = 10000
SCALE = 4
"""Pixels of a view for each cell, in all files."""


@dataclass(frozen=True)
class StrongRecord:
    """The operations on one image; 0: not applied. Lengths in cells."""

    flip: bool
    shear_x: float
    shear_y: float
    translate_x: int
    translate_y: int
    rotate: float
    """Degrees, counter-clockwise."""
    cutout: tuple[int, int, int, int]
    """Left, top, right, bottom; the last two are outside."""

    def steps(self, grid: Grid) -> Iterator[NDArray]:
        """Each operation but flip and cutout: from places in the result to places before it (3, 3), both in -1..1."""
        height, width = grid
        if self.shear_x:
            slope = self.shear_x * height / width
            yield np.array([[1.0, slope, slope], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
        if self.shear_y:
            slope = self.shear_y * width / height
            yield np.array([[1.0, 0.0, 0.0], [slope, 1.0, slope], [0.0, 0.0, 1.0]])
        if self.translate_x:  # a share of the height, not of the width: a slip of the published code
            yield np.array([[1.0, 0.0, 2.0 * self.translate_x / height], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
        if self.translate_y:
            yield np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 2.0 * self.translate_y / height], [0.0, 0.0, 1.0]])
        if self.rotate:
            cosine, sine = math.cos(math.radians(self.rotate)), math.sin(math.radians(self.rotate))
            ratio = height / width
            yield np.array([[cosine, -sine * ratio, 0.0], [sine / ratio, cosine, 0.0], [0.0, 0.0, 1.0]])

    def all_steps(self, grid: Grid) -> list[NDArray]:
        """The same with the flip, which comes first."""
        return [*([np.diag([-1.0, 1.0, 1.0])] if self.flip else []), *self.steps(grid)]

    def cut(self, grid: Grid) -> NDArray:
        """The cells (h, w) that the cutout hides."""
        hidden = np.zeros(grid, dtype=bool)
        left, top, right, bottom = self.cutout
        hidden[top:bottom, left:right] = True
        return hidden


def records(file: File) -> list[StrongRecord]:
    """The file's strong views."""

    def amount(name: str, number: int) -> float:
        value = float(file[f"strong_{name}"][number])
        return 0.0 if value == NOT_APPLIED else value

    def box(number: int) -> tuple[int, int, int, int]:
        left, top, right, bottom = (int(side) // SCALE for side in file["strong_cutout_x0y0x1y1"][number])
        return left, top, right, bottom

    return [
        StrongRecord(
            bool(flip),
            amount("shear_x", number),
            amount("shear_y", number),
            int(amount("translate_x", number) // SCALE),
            int(amount("translate_y", number) // SCALE),
            amount("rotate_deg", number),
            box(number),
        )
        for number, flip in enumerate(file["strong_hflip"])
    ]


def published_cells(views: list[StrongRecord], grid: Grid) -> Tensor:
    """For each cell of the strong view, the cell that the published replay shows there: (B, h, w), -1 for none."""
    return torch.stack([_published_cells(view, grid) for view in views])


def _published_cells(view: StrongRecord, grid: Grid) -> Tensor:
    height, width = grid
    cells = torch.arange(1.0, height * width + 1).view(1, 1, height, width)  # from 1: sampling puts 0 outside
    if view.flip:
        cells = cells.flip(3)
    for matrix in view.steps(grid):
        place = F.affine_grid(torch.tensor(matrix[None, :2]).float(), [1, 1, height, width], align_corners=False)
        cells = F.grid_sample(cells, place, mode="nearest", padding_mode="zeros", align_corners=False)
    return cells[0, 0].long().masked_fill(torch.from_numpy(view.cut(grid)), 0) - 1


def replay(maps: Tensor, cells_Bhw: Tensor, padding: float) -> Tensor:
    """Maps (B, h, w) or (B, K, h, w) at these cells; ``padding`` where there is none."""
    planes_BKP = (maps if maps.ndim == 4 else maps[:, None]).flatten(2)
    cells_B1P = cells_Bhw.flatten(1)[:, None]
    shown = planes_BKP.gather(2, cells_B1P.clamp(min=0).expand(-1, planes_BKP.shape[1], -1))
    return shown.masked_fill(cells_B1P < 0, padding).view(maps.shape)


def in_pixels(normalised: NDArray, size: Grid) -> NDArray:
    """A map between places in -1..1 as one between pixels of a view (H, W)."""
    height, width = size
    pixels = np.array([[width / 2, 0.0, width / 2], [0.0, height / 2, height / 2], [0.0, 0.0, 1.0]])
    return pixels @ normalised @ np.linalg.inv(pixels)


def near_a_tie(matrix: NDArray, grid: Grid, within: float = 1e-4) -> NDArray:
    """The cells (h, w) that a map between pixels of a grid takes so near to a border that rounding decides."""
    y, x = np.mgrid[: grid[0], : grid[1]] + 0.5
    places = np.einsum("ij,jhw->ihw", matrix[:2], np.stack([x, y, np.ones_like(x)]))
    close: NDArray = (np.abs(places - places.round()) < within).any(0)
    return close


def composed_cells(view: StrongRecord, grid: Grid) -> tuple[NDArray, NDArray]:
    """The cells (h, w) that all operations as one map show, -1 for none, and which of them lie near a tie."""
    matrix = np.eye(3)
    for step in view.all_steps(grid):
        matrix = matrix @ in_pixels(step, grid)
    y, x = np.mgrid[: grid[0], : grid[1]] + 0.5
    column, row = np.floor(np.einsum("ij,jhw->ihw", matrix[:2], np.stack([x, y, np.ones_like(x)]))).astype(int)
    inside = (row >= 0) & (row < grid[0]) & (column >= 0) & (column < grid[1]) & ~view.cut(grid)
    return np.where(inside, row * grid[1] + column, -1), near_a_tie(matrix, grid)


def full_geometry(size: Grid, count: int) -> Geometries:
    """The whole image, which has the size of its view."""
    return Geometries.stack([Geometry.crop(size, size, (0, 0), size, False)] * count)


def weak_geometry(file: File, full: Grid, crop: Grid) -> Geometries:
    """The weak views as geometries over the full view, both (H, W) in pixels.

    The published code resizes maps of cells with corners aligned and cuts out of them: cell i shows the place
    (i + offset) (m - 1) / (n - 1) between the cells of the full view, for m cells resized to n.
    """
    full_cells, cells = _cells(full), _cells(crop)
    made = []
    for resized, box, flip in zip(file["weak_size_hw"], file["weak_crop_y1y2x1x2"], file["weak_hflip"], strict=True):
        matrix = np.eye(3)
        for axis, (old, new, start) in enumerate(
            zip(full_cells[::-1], resized[::-1].tolist(), (box[2], box[0]), strict=True)
        ):
            step = (old - 1) / (int(new / SCALE) - 1)
            matrix[axis, axis], matrix[axis, 2] = step, step * (int(start / SCALE) - 0.5) + 0.5
        if int(flip):
            matrix = matrix @ np.array([[-1.0, 0.0, cells[1]], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
        into_cells = np.diag([cells[1] / crop[1], cells[0] / crop[0], 1.0])
        to_pixels = np.diag([full[1] / full_cells[1], full[0] / full_cells[0], 1.0])
        made.append(Geometry((to_pixels @ matrix @ into_cells)[:2], full, crop))
    return Geometries.stack(made)


def strong_geometry(views: list[StrongRecord], weak: Geometries) -> Geometries:
    """The strong views as geometries, which continue those of the weak ones: all operations as one map."""
    made = []
    for view, own, source in zip(views, weak.matrix.numpy(), weak.source.tolist(), strict=True):
        matrix = np.vstack((own, (0.0, 0.0, 1.0)))
        for step in view.all_steps(_cells(weak.size)):
            matrix = matrix @ in_pixels(step, weak.size)
        made.append(Geometry(matrix[:2], (source[0], source[1]), weak.size))
    return Geometries.stack(made)


def strong_valid(views: list[StrongRecord], size: Grid) -> Tensor:
    """Pixels (B, H, W) of the strong views that the cutout leaves, in whole cells."""
    hidden = torch.from_numpy(np.stack([view.cut(_cells(size)) for view in views]))
    return F.interpolate((~hidden)[:, None].float(), size, mode="nearest-exact")[:, 0] > 0


def _cells(size: Grid) -> Grid:
    return size[0] // SCALE, size[1] // SCALE
