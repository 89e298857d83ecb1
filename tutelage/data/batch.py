"""Views, batches, and replaying a geometry on maps that are computed later.

A worker decodes and crops and returns bytes (:class:`RawBatch`). On the device the batch becomes named views with
float images; colours are changed there (:mod:`tutelage.data.colour`).
"""

# Legend: B batch, H W pixels of the view, 3 channels RGB, M N rows and columns of a source map.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tutelage.data.augmentation import Geometry
from tutelage.data.colour import colour_batch


@dataclass(frozen=True)
class Geometries:
    """The geometry records of a batch."""

    matrix: Tensor
    """(B, 2, 3) float64: output pixel (x, y, 1) to source pixel (x, y)."""
    source: Tensor
    """(B, 2) int64: height and width of each source image."""
    size: tuple[int, int]
    """Height and width of the view."""

    @staticmethod
    def stack(records: Sequence[Geometry]) -> Geometries:
        """Geometries of one size as a batch."""
        matrix = torch.from_numpy(np.stack([record.matrix for record in records]))
        return Geometries(matrix, torch.tensor([record.source for record in records]), records[0].size)

    def to(self, device: torch.device) -> Geometries:
        """The same records on a device."""
        return Geometries(self.matrix.to(device), self.source.to(device), self.size)

    def __getitem__(self, chosen: slice) -> Geometries:
        return Geometries(self.matrix[chosen], self.source[chosen], self.size)


@dataclass(frozen=True)
class View:
    """One view of a batch of images."""

    image: Tensor
    """(B, 3, H, W) float32 RGB in 0..1, channels last, not normalised: each net normalises its own input."""
    valid: Tensor
    """(B, H, W) bool: false in padding."""
    maps: Mapping[str, Tensor]
    """Maps resampled by the same geometry, (B, H, W): `label` int64 with 255 = ignore, `confidence` and `weight` float
    in 0..1."""
    geometry: Geometries

    @property
    def label(self) -> Tensor:
        """(B, H, W) int64 train ids, 255 = ignore."""
        return self.maps["label"]


@dataclass(frozen=True)
class Batch:
    """Named views of the same samples."""

    views: Mapping[str, View]
    positions: Tensor
    """(B,) int64: position of each sample in the stream."""
    samples: tuple[str, ...] = ()
    """Name of each sample, for error messages."""

    def __getitem__(self, name: str) -> View:
        return self.views[name]

    def __len__(self) -> int:
        return len(self.positions)


@dataclass
class RawView:
    """A worker's output for one geometry: bytes, before colour augmentation."""

    image_BHW3: Tensor
    valid_BHW: Tensor
    maps: dict[str, Tensor]
    geometry: Geometries


@dataclass
class RawBatch:
    """A worker's output for one micro-batch: a cut per geometry and colour parameters per view."""

    cuts: dict[str, RawView]
    views: dict[str, tuple[str, np.ndarray]]
    """View name → name of its cut, and its colour parameters (B, 6)."""
    positions: Tensor
    samples: tuple[str, ...] = field(default_factory=tuple)

    def pin_memory(self) -> RawBatch:
        """Move the batch to page-locked memory (called by torch's loader on CUDA machines)."""
        for cut in self.cuts.values():
            cut.image_BHW3 = cut.image_BHW3.pin_memory()
            cut.valid_BHW = cut.valid_BHW.pin_memory()
            cut.maps = {name: values.pin_memory() for name, values in cut.maps.items()}
        return self

    def render(self, device: torch.device) -> Batch:
        """Move the batch to ``device`` and compute its views there."""
        images, rest = {}, {}
        for name, cut in self.cuts.items():
            images[name] = cut.image_BHW3.to(device, non_blocking=True)
            maps = {key: _widen(key, values.to(device, non_blocking=True)) for key, values in cut.maps.items()}
            rest[name] = (cut.valid_BHW.to(device, non_blocking=True), maps, cut.geometry.to(device))
        views = {
            view: View(colour_batch(images[cut], numbers), *rest[cut]) for view, (cut, numbers) in self.views.items()
        }
        return Batch(views, self.positions, self.samples)


def _widen(key: str, values: Tensor) -> Tensor:
    return values.to(torch.int64) if key == "label" else values.to(torch.float32) / 255.0


def places(geometry: Geometries, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Source coordinates of the cells of a grid (h, w) over the view: y and x (B, h, w) float64, in source pixels."""
    matrix, (height, width) = geometry.matrix, grid
    y = (torch.arange(height, device=matrix.device, dtype=torch.float64) + 0.5) * (geometry.size[0] / height)
    x = (torch.arange(width, device=matrix.device, dtype=torch.float64) + 0.5) * (geometry.size[1] / width)
    source_x = matrix[:, 0, 0, None, None] * x + matrix[:, 0, 1, None, None] * y[:, None] + matrix[:, 0, 2, None, None]
    source_y = matrix[:, 1, 0, None, None] * x + matrix[:, 1, 1, None, None] * y[:, None] + matrix[:, 1, 2, None, None]
    return source_y, source_x


def between(shown: Geometries, base: Geometries) -> Geometries:
    """Geometry from one view to another of the same images: ``warp`` with it takes maps of ``base`` to ``shown``.

    Pixels of ``shown`` that are not in ``base`` are outside. No geometry is singular, so the inverse exists.
    """
    (xx, xy), (yx, yy) = base.matrix[:, 0, :2].unbind(1), base.matrix[:, 1, :2].unbind(1)
    # Inverted by hand: torch.linalg.inv checks for success on the device, which synchronises.
    back = torch.stack((yy, -xy, -yx, xx), 1).view(-1, 2, 2) / (xx * yy - xy * yx)[:, None, None]
    moved = torch.cat((shown.matrix[:, :, :2], shown.matrix[:, :, 2:] - base.matrix[:, :, 2:]), 2)
    source = torch.ones_like(shown.source)
    source[:, 0], source[:, 1] = base.size
    return Geometries(back @ moved, source, shown.size)


def warp(
    map_: Tensor, geometry: Geometries, grid: tuple[int, int] | None = None, mode: str = "nearest", fill: float = 0.0
) -> Tensor:
    """Replay a geometry on maps of the source images: (B, M, N) or (B, K, M, N) to the view's grid.

    The maps may have any resolution; each covers its whole source image. ``grid`` is the output size (h, w), by
    default the view's size. ``nearest`` matches the loader's resampling of labels exactly; ``bilinear`` is for
    probabilities and features. The result is ``fill`` where the view is padding. Raises ``ValueError`` for another
    ``mode``.
    """
    planes = map_ if map_.ndim == 4 else map_[:, None]
    rows, columns = planes.shape[-2:]
    height, width = grid or geometry.size
    source_y, source_x = places(geometry, (height, width))
    extent_y, extent_x = geometry.source[:, 0, None, None], geometry.source[:, 1, None, None]
    inside = (source_x >= 0) & (source_x < extent_x) & (source_y >= 0) & (source_y < extent_y)
    if mode == "nearest":
        row = (source_y * rows / extent_y).floor().long().clamp_(0, rows - 1)
        column = (source_x * columns / extent_x).floor().long().clamp_(0, columns - 1)
        index = (row * columns + column).flatten(1)[:, None].expand(-1, planes.shape[1], -1)
        result = planes.flatten(2).gather(2, index).view(*planes.shape[:2], height, width)
    elif mode == "bilinear":
        place = torch.stack((source_x / extent_x, source_y / extent_y), dim=-1) * 2.0 - 1.0
        result = F.grid_sample(
            planes, place.to(planes.dtype), mode="bilinear", padding_mode="border", align_corners=False
        )
    else:
        raise ValueError(f"mode must be 'nearest' or 'bilinear', got {mode!r}")
    result = torch.where(inside[:, None], result, torch.as_tensor(fill, dtype=result.dtype, device=result.device))
    return result if map_.ndim == 4 else result[:, 0]
