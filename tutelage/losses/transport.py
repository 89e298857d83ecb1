"""Features drawn to a classifier's own weights, in both directions (PBAL, IEEE TMM 2024, bidirectional learning).

    cost[n, c, i] = 1 - cos(feature at i, weight of class c)
    pixel to prototype: the mean over pixels of    sum over classes of  softmax_classes(logits) cost
    prototype to pixel: the mean over classes of   sum over pixels of   softmax_pixels(logits) cost

In the first, frequent classes count most; in the second all classes count the same and each must find pixels, also one
that occurs nowhere. Its softmax runs over all images of a batch, which may lie on several processes: a pixel needs to
know but three numbers a class of the others (:func:`pixel_sums`).

Gradients flow through the softmax and through the cost; whether they reach the weights is for :func:`cosine_cost`.

Legend: B images, K classes, C channels, h w the grid, P = h w, R processes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tutelage.losses.precision import in_float32
from tutelage.losses.relations import unit

_LOWEST = torch.finfo(torch.float32).min
_SHORTEST = 1e-12  # the published bound of a length


@in_float32
def cosine_cost(features_BChw: Tensor, prototypes_KC: Tensor, prototype_grad: bool = False) -> Tensor:
    """1 - cosine of every feature and prototype (B, K, h, w), in 0..2; 1 for a vector of length 0, without gradient."""
    prototypes = prototypes_KC if prototype_grad else prototypes_KC.detach()
    return 1.0 - cosines(features_BChw, prototypes)


@in_float32
def cosines(features_BChw: Tensor, prototypes_KC: Tensor) -> Tensor:
    """Cosine of every feature and prototype: (B, K, h, w); 0 for a vector of length 0, without gradient.

    No tensor of positions x classes x channels is made, nor one of normalised features: the product is divided instead.
    """
    features_BCP = features_BChw.flatten(2)
    length_B1P = torch.linalg.vector_norm(features_BCP, dim=1, keepdim=True)
    inverse_B1P = torch.where(length_B1P > _SHORTEST, length_B1P.clamp(min=_SHORTEST).reciprocal(), 0.0)
    cosine_BKP = torch.matmul(unit(prototypes_KC), features_BCP) * inverse_B1P
    return cosine_BKP.view(*cosine_BKP.shape[:2], *features_BChw.shape[2:])


@in_float32
def pixel_to_prototype(
    logits_BKhw: Tensor, cost_BKhw: Tensor, valid_Bhw: Tensor | None = None, normalizer: Tensor | None = None
) -> Tensor:
    """Every pixel spreads itself over the prototypes: mean over (valid) pixels; 0 where none is valid.

    ``normalizer``: what the sum over pixels is divided by instead of their number. Source: PBAL, ``s2t`` of its code.
    """
    cost_Bhw = (logits_BKhw.softmax(1) * cost_BKhw).sum(1)
    if valid_Bhw is None:
        return cost_Bhw.mean() if normalizer is None else cost_Bhw.sum() / normalizer.clamp(min=1e-12)
    number = valid_Bhw.sum() if normalizer is None else normalizer
    return (cost_Bhw * valid_Bhw).sum() / number.clamp(min=1e-12)


@in_float32
def prototype_to_pixel(
    logits_BKhw: Tensor, cost_BKhw: Tensor, valid_Bhw: Tensor | None = None, sums_K3: Tensor | None = None
) -> Tensor:
    """Every prototype spreads itself over all (valid) pixels of the batch: mean over classes; 0 where none is valid.

    ``sums``: what :func:`merged` made of the sums of all processes. The result is then this process's part: the parts
    of all add up to the loss, in value and in gradient. Where gradients are averaged over processes, multiply the part
    by their number. Source: PBAL, ``t2s`` of its code.
    """
    logits_BKP, cost_BKP = logits_BKhw.flatten(2), cost_BKhw.flatten(2)
    valid_BP = None if valid_Bhw is None else valid_Bhw.flatten(1).bool()
    if sums_K3 is None:
        sums_K3 = pixel_sums(logits_BKhw, cost_BKhw, valid_Bhw)
    part: Tensor = _PixelShares.apply(logits_BKP, cost_BKP, valid_BP, sums_K3)  # type: ignore[no-untyped-call]
    return part


@torch.no_grad()
@in_float32
def pixel_sums(logits_BKhw: Tensor, cost_BKhw: Tensor, valid_Bhw: Tensor | None = None) -> Tensor:
    """Of each class (K, 3): the largest logit m, the sum of exp(logit - m), and the sum of exp(logit - m) cost."""
    logits_BKP = logits_BKhw.flatten(2)
    if valid_Bhw is not None:
        logits_BKP = logits_BKP.masked_fill(~valid_Bhw.flatten(1).bool()[:, None], -torch.inf)
    largest_K = logits_BKP.amax((0, 2)).clamp(min=_LOWEST)  # finite where no pixel is valid
    weight_BKP = (logits_BKP - largest_K[:, None]).exp_()
    return torch.stack([largest_K, weight_BKP.sum((0, 2)), (weight_BKP * cost_BKhw.flatten(2)).sum((0, 2))], 1)


@torch.no_grad()
def merged(sums_RK3: Tensor) -> Tensor:
    """Sums over the pixels of several processes (or micro-batches), in any order: (R, K, 3) to (K, 3)."""
    largest_K = sums_RK3[..., 0].amax(0)
    scale_RK1 = (sums_RK3[..., :1] - largest_K[:, None]).exp()
    return torch.cat([largest_K[:, None], (sums_RK3[..., 1:] * scale_RK1).sum(0)], 1)


class _PixelShares(torch.autograd.Function):
    """sum of q cost / K over the pixels here, q being their shares of the softmax over all pixels everywhere.

    d / d cost = q / K; d / d logits = q (cost - E) / K with E the class's whole sum of q cost, wherever it was taken.
    """

    @staticmethod
    def forward(ctx: Any, logits_BKP: Tensor, cost_BKP: Tensor, valid_BP: Tensor | None, sums_K3: Tensor) -> Tensor:
        largest_K1, total_K1, cost_K1 = sums_K3[..., None].unbind(1)
        total_K1 = total_K1.clamp(min=torch.finfo(torch.float32).tiny)  # 0 where no pixel is valid
        share_BKP = (logits_BKP - largest_K1).exp_().div_(total_K1 * logits_BKP.shape[1])
        if valid_BP is not None:
            share_BKP = share_BKP.masked_fill(~valid_BP[:, None], 0.0)
        ctx.save_for_backward(share_BKP, cost_BKP, cost_K1 / total_K1)
        return (share_BKP * cost_BKP).sum()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor, None, None]:
        share_BKP, cost_BKP, expected_K1 = ctx.saved_tensors
        of_cost = share_BKP * upstream
        return (cost_BKP - expected_K1).mul_(of_cost), of_cost, None, None
