"""Features against one prototype a class: distances, the weights of soft labels that follow, and CAG-UDA's distance.

Legend: B images, K classes, C channels, h w the grid, P positions.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tutelage.losses.precision import in_float32
from tutelage.losses.segmentation import IGNORE

_ROUNDING = 8 * torch.finfo(torch.float32).eps  # of |f|^2 + |eta|^2: a squared distance below it is noise


@in_float32
def prototype_distances(features_BChw: Tensor, prototypes_KC: Tensor) -> Tensor:
    """|f - eta| of every feature and prototype (K, C), neither normalised: (B, K, h, w), float32.

    By |f|^2 + |eta|^2 - 2 f eta: no tensor of positions x classes x channels exists, neither here nor in the backward.
    A distance below rounding (a thousandth of the lengths) is 0, with the gradient 0. Source: ProDA (CVPR 2021), 3.1.
    """
    distance_BKP: Tensor = _Distances.apply(features_BChw.flatten(2), prototypes_KC)  # type: ignore[no-untyped-call]
    return distance_BKP.view(*distance_BKP.shape[:2], *features_BChw.shape[2:])


class _Distances(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features_BCP: Tensor, prototypes_KC: Tensor) -> Tensor:
        length_B1P = torch.linalg.vector_norm(features_BCP, dim=1, keepdim=True).square_()
        lengths_BKP = length_B1P + prototypes_KC.square().sum(1)[:, None]
        squared_BKP = torch.matmul(prototypes_KC, features_BCP).mul_(-2).add_(lengths_BKP)
        distance = squared_BKP.masked_fill_(squared_BKP <= _ROUNDING * lengths_BKP, 0).sqrt_()
        ctx.save_for_backward(features_BCP, prototypes_KC, distance)
        return distance

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, Tensor | None]:
        # d |f - eta| / d f = (f - eta) / |f - eta|
        features, prototypes, distance = ctx.saved_tensors
        share_BKP = torch.where(distance > 0, upstream / distance, 0.0)
        of_features = of_prototypes = None
        if ctx.needs_input_grad[0]:
            of_features = features * share_BKP.sum(1, keepdim=True)
            of_features -= torch.matmul(prototypes.T, share_BKP)
        if ctx.needs_input_grad[1]:
            of_prototypes = prototypes * share_BKP.sum((0, 2))[:, None]
            of_prototypes -= torch.matmul(share_BKP, features.transpose(1, 2)).sum(0)
        return of_features, of_prototypes


@in_float32
def prototype_weights(distance_BKhw: Tensor, temperature: float = 1.0) -> Tensor:
    """omega = softmax over classes of -T (d - min d): (B, K, h, w). T multiplies. Source: ProDA, equation 5."""
    return (-temperature * distance_BKhw).softmax(1)  # softmax takes the largest off itself


@torch.no_grad()
def rectify(soft_BKhw: Tensor, weight_BKhw: Tensor, threshold: float = 0.0) -> tuple[Tensor, Tensor]:
    """ProDA's rectified labels (B, h, w) and their confidence: argmax of weight x soft label, and its share of the sum.

    Below ``threshold`` the label is 255. A position where all products are 0 has the confidence 0.
    """
    rectified = soft_BKhw.float() * weight_BKhw.float()
    best = rectified.max(1)
    confidence = best.values / rectified.sum(1).clamp(min=torch.finfo(torch.float32).tiny)
    return best.indices.masked_fill(confidence < threshold, IGNORE), confidence


@in_float32
def anchor_distance(
    vectors_BKC: Tensor,
    valid_BK: Tensor,
    counts_BK: Tensor,
    anchors_KC: Tensor,
    positions: int,
    clip: float = 5.0,
    weight: float = 10.0,
) -> Tensor:
    """CAG-UDA's distance of class means of an image to the anchors: ``weight`` times the mean over the valid ones.

    Of each the mean over channels of smooth L1, divided by 10 until it is at most ``clip``. The gradient of a vector
    is multiplied by 2 counts / positions, ``positions`` being those of one image, so that a class counts by its area.
    0 with a zero gradient where no vector is valid. Source: the code of CAG-UDA (NeurIPS 2019).
    """
    valid_BK = valid_BK.bool()
    area_BK1 = (2.0 / positions) * counts_BK[..., None]
    scaled = vectors_BKC.detach() + (vectors_BKC - vectors_BKC.detach()) * area_BK1
    scaled = scaled.where(valid_BK[..., None], 0.0)
    loss_BK = F.smooth_l1_loss(scaled, anchors_KC.expand_as(scaled), reduction="none").mean(2)
    divisions = (loss_BK.detach() / clip).clamp(min=1.0).log10().ceil()
    loss_BK = loss_BK * torch.pow(10.0, -divisions)
    return weight * (loss_BK * valid_BK).sum() / valid_BK.sum().clamp(min=1)
