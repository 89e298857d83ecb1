"""Regularised self-training (CRST, ICCV 2019): what keeps a net from being too sure of its own pseudo labels.

    MRKLD   CE + lambda * mean over labelled target pixels of (1/K) sum_c -ln p_c     (towards the even distribution)
    LRENT   y_c = (p_c / k_c)^(1 / alpha) / sum over classes, kept where
            sum_c (-y_c ln p_c + alpha y_c ln y_c) < sum_c -y_c ln k_c;  CE towards y

p are the probabilities that label (LRENT) or that are trained (MRKLD), k the class thresholds of class-balanced
self-training. FDA's robust entropy stands here too: it is self-training without labels.
"""

# Legend: B images, K classes, H W pixels.

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from tutelage.losses.segmentation import IGNORE


def robust_entropy(
    logits_BKHW: Tensor, eta: float = 2.0, normaliser: float | None = None, valid_BHW: Tensor | None = None
) -> Tensor:
    """Mean over valid pixels of ((H / normaliser)^2 + 1e-8)^eta, H the entropy in nats; 0 where no pixel is valid.

    ``normaliser``: ln K by default, so that H is in 0..1 whatever the number of classes. The penalty is that of
    Charbonnier: with ``eta`` above 0.5 it turns to the pixels that are unsure. Source: FDA (CVPR 2020), equation 7,
    where the normaliser of its code is 2.9444 (ln 19).
    """
    log_p_BKHW = logits_BKHW.float().log_softmax(1)
    entropy_BHW = -(log_p_BKHW.exp() * log_p_BKHW).sum(1) / (normaliser or math.log(logits_BKHW.shape[1]))
    penalty_BHW = (entropy_BHW.square() + 1e-8) ** eta
    if valid_BHW is None:
        return penalty_BHW.mean()
    return (penalty_BHW * valid_BHW).sum() / valid_BHW.sum().clamp(min=1)


def even_divergence(logits_BKHW: Tensor, counted_BHW: Tensor, normalizer: Tensor | None = None) -> Tensor:
    """MRKLD: sum over counted pixels of (1/K) sum_c -ln p_c, divided by their number (or ``normalizer``); 0 for none.

    ``counted``: valid pseudo labels of the target; pixels of the source do not count. Source: CRST, table 1.
    """
    each_BHW = -logits_BKHW.float().log_softmax(1).mean(1)
    if normalizer is None:
        normalizer = counted_BHW.sum().float()
    return (each_BHW * counted_BHW).sum() / normalizer.clamp(min=1e-12)  # none: 0 / 1e-12


class SoftLabels(NamedTuple):
    """LRENT's labels."""

    soft_BKHW: Tensor
    """Distributions over the classes, of all pixels, kept or not."""
    kept_BHW: Tensor
    """bool: where they are trained on."""

    def hard(self) -> Tensor:
        """(B, H, W) int64: the likeliest class where kept, else 255."""
        return self.soft_BKHW.argmax(1).masked_fill(~self.kept_BHW, IGNORE)


@torch.no_grad()
def entropy_regularised_labels(probability_BKHW: Tensor, threshold_K: Tensor, alpha: float = 0.25) -> SoftLabels:
    """LRENT: the soft labels that probabilities (B, K, H, W) and class thresholds (K,) in 0..1 lead to.

    ``alpha`` above 0: the larger, the softer. Source: CRST, its code.
    """
    threshold_1K11 = threshold_K.to(probability_BKHW)[None, :, None, None]
    # In logarithms: a fourth power of small ratios has no room in single precision.
    tiny = torch.finfo(probability_BKHW.dtype).tiny
    log_ratio_BKHW = probability_BKHW.clamp(min=tiny).log() - threshold_1K11.clamp(min=tiny).log()
    exponent_BKHW = log_ratio_BKHW / alpha
    # With these y both sides of the condition fold into -alpha ln sum_c (p_c / k_c)^(1 / alpha) < 0.
    kept_BHW = exponent_BKHW.logsumexp(1) > 0
    return SoftLabels(exponent_BKHW.softmax(1), kept_BHW)


def soft_cross_entropy(logits_BKHW: Tensor, soft_BKHW: Tensor, kept_BHW: Tensor) -> Tensor:
    """Cross-entropy towards distributions, mean over the pixels kept; 0 where there is none. Source: CRST, LRENT."""
    loss_BHW = F.cross_entropy(logits_BKHW.float(), soft_BKHW.float(), reduction="none")
    return (loss_BHW * kept_BHW).sum() / kept_BHW.sum().clamp(min=1)
