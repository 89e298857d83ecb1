"""Supervised segmentation losses.

Every docstring names the elements of its mean. ``normalizer`` is the number (or weight) of labels that a sum is divided
by; methods pass the share of the whole step's count, so that micro-batches and ranks make one batch. A batch
without a single valid label gives exactly 0 with a zero gradient.
"""

# Legend: B batch, K classes, H W pixels.

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

IGNORE = 255


def label_weight(label_BHW: Tensor, class_weight_K: Tensor | None = None) -> Tensor:
    """The weight of all valid labels: their number, or the sum of their classes' weights (0-d float)."""
    valid = label_BHW != IGNORE
    if class_weight_K is None:
        return valid.sum().float()
    return (class_weight_K[label_BHW.masked_fill(~valid, 0)] * valid).sum()


def cross_entropy(
    logits_BKHW: Tensor,
    label_BHW: Tensor,
    *,
    normalizer: Tensor | None = None,
    class_weight_K: Tensor | None = None,
    smoothing: float = 0.0,
) -> Tensor:
    """Cross-entropy over valid labels, divided by their (class-weighted) number.

    Equal to torch's mean reduction where one label is valid; 0 instead of NaN where none is.
    """
    total = F.cross_entropy(
        logits_BKHW.float(),
        label_BHW,
        weight=class_weight_K,
        ignore_index=IGNORE,
        reduction="sum",
        label_smoothing=smoothing,
    )
    if normalizer is None:
        normalizer = label_weight(label_BHW, class_weight_K)
    return total / normalizer.clamp(min=1e-12)  # an empty batch: 0 / 1e-12


def weighted_cross_entropy(
    logits_BKHW: Tensor, label_BHW: Tensor, weight_BHW: Tensor | None = None, *, normalizer: Tensor | None = None
) -> Tensor:
    """Sum over valid labels of weight (0 to 1) times cross-entropy, divided by their NUMBER; 0 without any.

    So a batch of low weights has a small loss; dividing by the sum of weights would undo that. Without weights it is
    the plain mean. ``normalizer``: what the sum is divided by instead of the number of valid labels.
    Source: BiSMAP (ACM MM 2022), source transferability, its code.
    """
    if weight_BHW is None:
        return cross_entropy(logits_BKHW, label_BHW, normalizer=normalizer)
    loss_BHW = F.cross_entropy(logits_BKHW.float(), label_BHW, ignore_index=IGNORE, reduction="none")
    number = label_weight(label_BHW) if normalizer is None else normalizer
    return (loss_BHW * weight_BHW).sum() / number.clamp(min=1e-12)


def ohem_cross_entropy(
    logits_BKHW: Tensor,
    label_BHW: Tensor,
    *,
    threshold: float = 0.7,
    min_kept: int = 100_000,
    class_weight_K: Tensor | None = None,
) -> Tensor:
    """Cross-entropy over the hard pixels (online hard example mining): mean over the pixels that are kept.

    A pixel is kept when its true class has probability at most ``max(threshold, r)``, r being the ``min_kept``-th
    smallest such probability of the batch (ignored pixels count as 1). Fewer valid pixels than ``min_kept``, or
    ``min_kept`` 0: all are kept. The selection carries no gradient. Source: UniMatch's and TriKD's code.
    """
    loss_BHW = F.cross_entropy(
        logits_BKHW.float(), label_BHW, weight=class_weight_K, ignore_index=IGNORE, reduction="none"
    )
    valid = label_BHW != IGNORE
    with torch.no_grad():
        target = label_BHW.masked_fill(~valid, 0)
        log_probability = F.log_softmax(logits_BKHW.detach().float(), 1).gather(1, target[:, None])[:, 0]
        probability = log_probability.exp().masked_fill(~valid, 1.0)
        if min_kept > 0:
            rank = min(min_kept, probability.numel())
            bound = probability.flatten().kthvalue(rank).values.clamp(min=threshold)
            few = valid.sum() < min_kept
            kept = valid & ((probability <= bound) | few)
        else:
            kept = valid
    return (loss_BHW * kept).sum() / label_weight(label_BHW.masked_fill(~kept, IGNORE), class_weight_K).clamp(min=1e-12)


def dice_loss(logits_BKHW: Tensor, label_BHW: Tensor, *, smooth: float = 1.0) -> Tensor:
    """One minus the soft Dice coefficient, averaged over the classes that occur in the batch's labels."""
    valid_B1HW = (label_BHW != IGNORE)[:, None]
    probability = logits_BKHW.float().softmax(1) * valid_B1HW
    truth = F.one_hot(label_BHW.masked_fill(label_BHW == IGNORE, 0), logits_BKHW.shape[1]).movedim(-1, 1) * valid_B1HW
    overlap_K = (probability * truth).sum((0, 2, 3))
    size_K = probability.sum((0, 2, 3)) + truth.sum((0, 2, 3))
    present_K = truth.sum((0, 2, 3)) > 0
    dice_K = (2.0 * overlap_K + smooth) / (size_K + smooth)
    return ((1.0 - dice_K) * present_K).sum() / present_K.sum().clamp(min=1)
