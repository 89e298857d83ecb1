"""The loss on mixed images, whose pixels weigh differently.

Legend: B images, K classes, H W pixels.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from tutelage.losses.segmentation import IGNORE


def mixed_cross_entropy(logits_BKHW: Tensor, label_BHW: Tensor, weight_BHW: Tensor) -> Tensor:
    """Sum of weight times cross-entropy over valid labels, divided by the number of ALL pixels, valid or not.

    So it grows with weights and with the share of valid labels; exactly 0 without any. Source: DACS (WACV 2021),
    equation 5 and its code.
    """
    loss_BHW = F.cross_entropy(logits_BKHW.float(), label_BHW, ignore_index=IGNORE, reduction="none")
    return (loss_BHW * weight_BHW).mean()
