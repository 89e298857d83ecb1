"""Boundary IoU: quality of region borders, independent of region size.

Cheng, Girshick, Dollar, Berg, Kirillov: "Boundary IoU: Improving Object-Centric Image Segmentation Evaluation",
CVPR 2021. The boundary of a mask is the mask minus its erosion by a distance d: the pixels from which another
class, or the image's border, is at most d steps of a 3x3 neighbourhood away.

The definition is per class: two erosions each. Here one pass does all classes at once, since a pixel survives the
erosion of its own class's mask exactly if the (2d+1) x (2d+1) window around it is of one class.

An ignored pixel counts as outside the image, in label and prediction: it is in no mask, and regions on both sides
have a boundary there, as the original has along the image's border.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from tutelage.errors import TutelageError
from tutelage.evaluation.histogram import IGNORE, check_class_count, check_maps, histogram, sum_over_ranks


@dataclass(frozen=True)
class BoundaryScores:
    """Boundary IoU of each class (C,), NaN without boundary pixels, and its mean over the other classes."""

    iou: NDArray[np.float64]
    miou: float


class BoundaryIoU:
    """Streaming boundary IoU over images: one (C, 2) counter of intersection and union pixels."""

    def __init__(self, num_classes: int, ratio: float = 0.02, device: torch.device | str = "cpu") -> None:
        check_class_count(num_classes)
        if not ratio > 0:
            raise TutelageError(
                "invalid-value", f"boundary ratio must be above 0, got {ratio}", "use e.g. 0.02, the paper's value"
            )
        self.num_classes = num_classes
        self.ratio = ratio
        self.counts = torch.zeros((num_classes, 2), dtype=torch.int64, device=device)

    def update(self, prediction: Tensor, label: Tensor) -> None:
        """Count one image (H, W) or a batch (B, H, W) of class ids; 255 in the label = ignored.

        Ids outside 0..C-1 count as no class: :class:`~tutelage.evaluation.confusion.Confusion` reports them.
        """
        check_maps(prediction, label)
        counts = boundary_counts(prediction, label, self.num_classes, self.ratio)
        self.counts += counts.to(self.counts.device)

    def all_reduce(self) -> BoundaryIoU:
        """The exact sum over all ranks as a new object; a copy without a process group. Every rank must call it."""
        total = BoundaryIoU(self.num_classes, self.ratio, self.counts.device)
        total.counts = sum_over_ranks(self.counts)
        return total

    def scores(self) -> BoundaryScores:
        """Boundary IoU of everything counted so far."""
        intersection, union = self.counts.cpu().numpy().astype(np.float64).T
        iou = np.divide(intersection, union, out=np.full_like(union, np.nan), where=union > 0)
        return BoundaryScores(iou=iou, miou=float(np.nanmean(iou)) if (union > 0).any() else float("nan"))


def boundary_distance(height: int, width: int, ratio: float = 0.02) -> int:
    """The width d of a boundary in pixels: ``ratio`` of the image's diagonal, rounded, at least 1."""
    return max(1, round(ratio * math.hypot(height, width)))


def boundary_counts(prediction: Tensor, label: Tensor, num_classes: int, ratio: float = 0.02) -> Tensor:
    """(H, W) or (B, H, W) integer maps -> (C, 2) int64: boundary pixels in both maps, and in at least one."""
    height, width = label.shape[-2:]
    if not label.numel():
        return torch.zeros((num_classes, 2), dtype=torch.int64, device=label.device)
    distance = boundary_distance(height, width, ratio)
    truth_BHW = _outside_beyond(label, num_classes)
    guess_BHW = _outside_beyond(prediction, num_classes).masked_fill(truth_BHW == IGNORE, IGNORE)
    # Remove pixels inside their region from the maps: the boundaries with their classes remain.
    truth_BHW, guess_BHW = (ids.masked_fill(_is_inside(ids, distance), IGNORE) for ids in (truth_BHW, guess_BHW))
    both = truth_BHW.masked_fill(truth_BHW != guess_BHW, IGNORE)
    intersection, of_truth, of_guess = (
        histogram(ids, IGNORE + 1)[:num_classes] for ids in (both, truth_BHW, guess_BHW)
    )
    return torch.stack([intersection, of_truth + of_guess - intersection], dim=1)


def _outside_beyond(ids: Tensor, num_classes: int) -> Tensor:
    """The map as (B, H, W) uint8, with 255 for every value that is not a class."""
    ids = ids if ids.ndim == 3 else ids[None]
    return ids.masked_fill((ids < 0) | (ids >= num_classes), IGNORE).to(torch.uint8)


def _is_inside(ids_BHW: Tensor, distance: int) -> Tensor:
    """(B, H, W) bool: the (2 distance + 1)-square around the pixel is of one class and inside the image."""
    padded = F.pad(ids_BHW, (distance, distance, distance, distance), value=IGNORE)
    # A square has one value if each of its rows has one and its rows agree in one column, the middle one.
    rows = _all_of_next(padded[..., 1:] == padded[..., :-1], 2 * distance, dim=-1)
    middle = padded[..., distance : distance + ids_BHW.shape[-1]]
    agree = _all_of_next(middle[:, 1:] == middle[:, :-1], 2 * distance, dim=-2)
    return agree.logical_and_(_all_of_next(rows, 2 * distance + 1, dim=-2))


def _all_of_next(flags: Tensor, count: int, dim: int) -> Tensor:
    """Whether an entry and the ``count - 1`` after it are all true; the axis becomes ``count - 1`` shorter."""
    covered = 1
    while covered < count:
        step = min(covered, count - covered)
        length = flags.shape[dim] - step
        flags = flags.narrow(dim, 0, length) & flags.narrow(dim, step, length)
        covered += step
    return flags
