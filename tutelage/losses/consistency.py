"""One prediction teaches another: pseudo labels, and the cross-entropy towards them.

Legend: B batch, K classes, H W pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

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
