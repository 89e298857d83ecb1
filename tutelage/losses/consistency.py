"""One prediction teaches another: pseudo labels and the cross-entropy towards them, or the divergence from it.

Legend: B batch, K classes, H W pixels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from tutelage.losses.precision import in_float32
from tutelage.losses.segmentation import IGNORE


@torch.no_grad()
def pseudo_label(logits_BKHW: Tensor) -> tuple[Tensor, Tensor]:
    """Class maps (B, H, W) int64 and their probabilities (B, H, W) in 0..1; without a gradient."""
    # The largest softmax is 1 / sum(exp(z - max z)): a third to a half of the time of a softmax and its maximum.
    logits = logits_BKHW.float()
    highest = logits.max(1)
    return highest.indices, (logits - highest.values[:, None]).exp_().sum(1).reciprocal_()


def masked_consistency(
    logits_BKHW: Tensor, pseudo_BHW: Tensor, confidence_BHW: Tensor, valid_BHW: Tensor, threshold: float
) -> Tensor:
    """Cross-entropy where the pseudo label's confidence reaches the threshold, divided by ALL valid pixels.

    So it grows with the share of pixels that are sure. 0 where no pixel is valid or none is sure.
    Source: UniMatch (CVPR 2023) and its code; FixMatch's equation 4 for pixels.
    """
    kept_BHW = valid_BHW.bool() & (confidence_BHW >= threshold) & (pseudo_BHW != IGNORE)
    loss_BHW = F.cross_entropy(logits_BKHW.float(), pseudo_BHW, ignore_index=IGNORE, reduction="none")
    return (loss_BHW * kept_BHW).sum() / valid_BHW.sum().clamp(min=1)


def cross_pseudo_supervision(logits_BKHW: Tensor, pseudo_BHW: Tensor, valid_BHW: Tensor | None = None) -> Tensor:
    """Plain cross-entropy towards another net's class map: mean over all pixels, or over the valid ones.

    Source: CPS (CVPR 2021), equation 2. 0 where no pixel is valid.
    """
    loss_BHW = F.cross_entropy(logits_BKHW.float(), pseudo_BHW, ignore_index=IGNORE, reduction="none")
    counted_BHW = pseudo_BHW != IGNORE
    if valid_BHW is not None:
        counted_BHW = counted_BHW & valid_BHW.bool()
    return (loss_BHW * counted_BHW).sum() / counted_BHW.sum().clamp(min=1)


@in_float32
def masked_divergence(
    student_BKHW: Tensor, teacher_BKHW: Tensor, shown_BHW: Tensor, *, normalizer: Tensor | None = None
) -> Tensor:
    """KL(softmax teacher || softmax student) of logits, summed where the student's view shows the image.

    The divisor is the number of shown pixels times K: the published mean runs over pixels and classes. 0 where
    nothing is shown; no gradient to the teacher. ``normalizer``: what stands for the number of shown pixels.
    Source: BiSMAP (ACM MM 2022), target consistency, its code.
    """
    target = teacher_BKHW.detach().log_softmax(1)
    difference_BHW = (target.exp() * (target - student_BKHW.log_softmax(1))).sum(1)
    number = shown_BHW.sum() if normalizer is None else normalizer
    return difference_BHW.masked_fill(~shown_BHW.bool(), 0.0).sum() / (student_BKHW.shape[1] * number.clamp(min=1e-12))


def ramp_up(step: int, length: int) -> float:
    """exp(-5 (1 - t)^2) with t rising from 0 to 1 over ``length`` steps; 1 from there on, and for ``length`` 0.

    Source: temporal ensembling (ICLR 2017), as in BiSMAP's code.
    """
    done = min(step, length) / length if length else 1.0
    return math.exp(-5.0 * (1.0 - done) ** 2)
