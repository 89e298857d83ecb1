"""CAG-UDA's anchors: the source's class means over positions that are predicted right, and labels by the nearest one.

Anchors are :class:`~.means.ClassMeans` of a net in evaluation mode, which do not change afterwards. The loss towards
them is ``losses.prototypes.anchor_distance``.

Legend: B images, K classes, C channels, h w the grid of features and logits, H W the labels.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from tutelage.losses.prototypes import prototype_distances
from tutelage.losses.segmentation import IGNORE


@torch.no_grad()
def anchor_labels(
    features_BChw: Tensor, anchors_KC: Tensor, margin: float = 2.5, present_K: Tensor | None = None
) -> Tensor:
    """The class of the nearest anchor (B, h, w), 255 unless the second nearest lies farther by at least ``margin``.

    Distances are Euclidean and depend on the features' scale. A class that is not present labels nothing.
    """
    distance_BKhw = prototype_distances(features_BChw, anchors_KC)
    if present_K is not None:
        distance_BKhw = distance_BKhw.masked_fill(~present_K[:, None, None], math.inf)
    distance_BKhw = F.pad(distance_BKhw, (0, 0, 0, 0, 0, 1), value=math.inf)  # a single class has no second
    nearest = distance_BKhw.topk(2, dim=1, largest=False)
    ahead = nearest.values[:, 1] - nearest.values[:, 0]  # NaN where both are infinite: not ahead
    return nearest.indices[:, 0].masked_fill(~(ahead >= margin), IGNORE)


@torch.no_grad()
def confident_labels(logits_BKhw: Tensor, threshold: float = 0.95) -> Tensor:
    """The predicted class (B, h, w), 255 unless its probability is larger than ``threshold``."""
    best = logits_BKhw.float().softmax(1).max(1)
    return best.indices.masked_fill(~(best.values > threshold), IGNORE)
