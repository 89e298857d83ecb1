"""DAFormer's feature distance: on things, the encoder must not forget what ImageNet taught it.

    L = mean over the cells of things of || F - F_0 ||_2          F_0: features of the encoder as it started

A cell of the features' grid has a class where one label covers most of it.

Legend: B images, C channels, K classes, L = K + 1 labels (the last is the ignored one), H W pixels, h w cells.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from tutelage.losses.precision import in_float32
from tutelage.losses.segmentation import IGNORE


@torch.no_grad()
def majority_label(label_BHW: Tensor, stride: int, classes: int, share: float = 0.75) -> Tensor:
    """Labels (B, h, w) of cells of stride x stride pixels: the commonest of a cell, if it covers ``share`` of it.

    h and w are H / stride and W / stride, rounded up; what lies beyond the image counts as ignored. Ignored pixels are
    a label of their own; a cell that they win, or that no class wins, is 255. Source: DAFormer (CVPR 2022), its code.
    """
    height, width = label_BHW.shape[1:]
    index_BHW = F.pad(label_BHW, (0, -width % stride, 0, -height % stride), value=IGNORE).clamp(max=classes)
    best_Bhw = F.avg_pool2d((index_BHW == classes).float(), stride)
    winner_Bhw = torch.full_like(best_Bhw, IGNORE, dtype=torch.int64)
    for label in range(classes):  # one map at a time, not one for each label at once
        covered_Bhw = F.avg_pool2d((index_BHW == label).float(), stride)
        wins_Bhw = covered_Bhw > best_Bhw
        winner_Bhw = torch.where(wins_Bhw, label, winner_Bhw)
        best_Bhw = torch.where(wins_Bhw, covered_Bhw, best_Bhw)
    # A share is a mean of floats: a cell that is covered by exactly ``share`` may come out a rounding below.
    return torch.where(best_Bhw >= share - 1e-6, winner_Bhw, IGNORE)


@torch.no_grad()
def things_mask(label_Bhw: Tensor, thing_K: Tensor) -> Tensor:
    """(B, h, w) bool: cells whose class is a thing; ``thing_K``: whether a class is a thing (bool)."""
    valid_Bhw = label_Bhw != IGNORE
    return valid_Bhw & thing_K[label_Bhw.masked_fill(~valid_Bhw, 0)]


@in_float32
def feature_distance(
    feature_BChw: Tensor, origin_BChw: Tensor, mask_Bhw: Tensor | None = None, *, normalizer: Tensor | None = None
) -> Tensor:
    """Mean over the cells of a mask (or all) of the Euclidean distance of two feature vectors; 0 without a cell.

    No gradient to ``origin``; none where the two are equal. ``normalizer``: what the sum is divided by instead of the
    number of cells. Source: DAFormer (CVPR 2022), equation 8 and its code, where an empty mask gives NaN.
    """
    square_Bhw = (feature_BChw - origin_BChw.detach()).square().sum(1)
    if mask_Bhw is None:
        mask_Bhw = torch.ones_like(square_Bhw, dtype=torch.bool)
    number = mask_Bhw.sum().float() if normalizer is None else normalizer
    differs_Bhw = mask_Bhw & (square_Bhw.detach() > 0)  # the root has no slope at 0
    distance_Bhw = torch.where(differs_Bhw, square_Bhw, 1.0).sqrt() * differs_Bhw
    return distance_Bhw.sum() / number.clamp(min=1e-12)
