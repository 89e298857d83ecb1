"""How one architecture's view of an image follows another's: features early on, attention late (TriKD).

Nets of different kinds have different grids. The attention of the finer one is large (1024 x 1024 for each of 12 heads
at 512 pixels), so that images are compared one after the other, and the gradient is formed in the forward.

Legend: B images, C channels, h w a grid and H W another's, n heads, N = h w and M = H W tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tutelage.losses.options import AttentionResize, Mean
from tutelage.losses.precision import in_float32

Grid = tuple[int, int]


# A feature without variance, such as that of a blank image, gives no large loss.
_LEAST_VARIANCE = 1e-6


@in_float32
def spatial_loss(student_BChw: Tensor, cnn_BCHW: Tensor, *, relative: bool = False) -> Tensor:
    """Mean over all elements of the squared difference of two features with the same channels; none to the ``cnn``.

    On another grid, the student's feature is resized to the cnn's (bilinear, by the pixels' outer edges).
    ``relative``: divided by the mean variance of the cnn's channels, so that it is about 1 for a student that knows
    their means alone, whatever the size of the features. Source: TriKD's code, the spatial loss.
    """
    size = cnn_BCHW.shape[2:]
    if student_BChw.shape[2:] != size:
        student_BChw = F.interpolate(student_BChw, (size[0], size[1]), mode="bilinear", align_corners=False)
    target_BCHW = cnn_BCHW.detach()
    loss = F.mse_loss(student_BChw, target_BCHW)
    if relative:
        variance = (target_BCHW - target_BCHW.mean((0, 2, 3), keepdim=True)).square().mean()
        loss = loss / variance.clamp(min=_LEAST_VARIANCE)
    return loss


@in_float32
def attention_loss(
    student_BnNN: Tensor,
    vit_BnMM: Tensor,
    *,
    grids: tuple[Grid, Grid] | None = None,
    resize: AttentionResize = "published",
    mean: Mean = "elements",
) -> Tensor:
    """KL(softmax of the ``vit``'s rows || softmax of the student's), both given as logits, with as many heads.

    Rows are queries. ``grids``: (h, w) of the student's tokens and (H, W) of the other's, which are taken to cover the
    same area; needed but for ``published``. ``mean``: over all elements, which makes the loss as many times smaller as
    a row has keys, or over rows. No gradient to the ``vit``; that of the student is formed at once, so that there is no
    second derivative. ValueError where grids are missing or do not fit.
    Source: TriKD's code, the attention loss.
    """
    if resize != "published":
        if grids is None:
            raise ValueError(f"resize {resize!r} must know the grids of the tokens")
        for tokens, (height, width) in zip((student_BnNN, vit_BnMM), grids, strict=True):
            if tokens.shape[-1] != height * width:
                raise ValueError(f"{tokens.shape[-1]} tokens do not make a grid of {height}x{width}")
    loss: Tensor = _AttentionLoss.apply(student_BnNN, vit_BnMM.detach(), grids, resize, mean)  # type: ignore[no-untyped-call]
    return loss


class _AttentionLoss(torch.autograd.Function):
    """Image by image, so that only one map of the size of the finer attention is held."""

    @staticmethod
    def forward(
        ctx: Any,
        student_BnNN: Tensor,
        vit_BnMM: Tensor,
        grids: tuple[Grid, Grid] | None,
        resize: AttentionResize,
        mean: Mean,
    ) -> Tensor:
        images = student_BnNN.shape[0]
        wanted = ctx.needs_input_grad[0]
        gradient_BnNN = torch.empty_like(student_BnNN) if wanted else None
        total = student_BnNN.new_zeros(())
        for image in range(images):
            with torch.set_grad_enabled(wanted):
                student_nNN = student_BnNN[image].detach().requires_grad_(wanted)
                loss = _divergence(student_nNN, vit_BnMM[image], grids, resize, mean) / images
            total += loss.detach()
            if gradient_BnNN is not None:
                gradient_BnNN[image] = torch.autograd.grad(loss, student_nNN)[0]
        if gradient_BnNN is not None:
            ctx.save_for_backward(gradient_BnNN)
        return total

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None, None, None]:
        (gradient_BnNN,) = ctx.saved_tensors
        return gradient_BnNN * upstream, None, None, None, None


def _divergence(
    student_nNN: Tensor, vit_nMM: Tensor, grids: tuple[Grid, Grid] | None, resize: AttentionResize, mean: Mean
) -> Tensor:
    """The loss of one image."""
    if resize == "pool":
        assert grids is not None
        with torch.no_grad():
            target = _pooled(vit_nMM.softmax(2), *reversed(grids))
    else:
        if resize == "spatial":
            assert grids is not None
            student_nNN = _stretched(student_nNN, *grids)
        elif student_nNN.shape != vit_nMM.shape:
            size = (vit_nMM.shape[1], vit_nMM.shape[2])
            student_nNN = F.interpolate(student_nNN[None], size, mode="bilinear", align_corners=True)[0]
        target = vit_nMM.softmax(2)
    divergence = F.kl_div(student_nNN.log_softmax(2), target, reduction="sum")
    return divergence / (target[..., 0].numel() if mean == "rows" else target.numel())


def _stretched(logits_nNN: Tensor, old: Grid, new: Grid) -> Tensor:
    """Attention logits (n, N, N) on another grid (n, M, M): keys, then queries, bilinear as maps."""
    if old == new:
        return logits_nNN
    for _ in range(2):  # the last axis is resized, then changes places
        maps = F.interpolate(logits_nNN.reshape(*logits_nNN.shape[:2], *old), new, mode="bilinear", align_corners=False)
        logits_nNN = maps.flatten(2).transpose(1, 2)
    return logits_nNN


def _pooled(probability_nMM: Tensor, old: Grid, new: Grid) -> Tensor:
    """Attention (n, M, M) on another grid (n, N, N): masses of keys summed by cell, queries averaged; rows sum to 1."""
    if old == new:
        return probability_nMM
    for _ in range(2):
        maps = F.adaptive_avg_pool2d(probability_nMM.reshape(*probability_nMM.shape[:2], *old), new)
        probability_nMM = maps.flatten(2).transpose(1, 2)
    # The mean over a cell's keys in place of the sum; and cells may share a row where sizes do not divide.
    return probability_nMM / probability_nMM.sum(2, keepdim=True)
