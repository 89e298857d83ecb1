"""Pixels against the classifier's own weights as prototypes (PBAL, IEEE TMM 2024, prototypical self-training).

Legend: B images, K classes, C channels, E channels behind the projection, h w the grid.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from tutelage.losses.options import Reduction
from tutelage.losses.precision import in_float32
from tutelage.losses.segmentation import IGNORE
from tutelage.losses.transport import cosines


@in_float32
def prototype_contrast(
    features_BChw: Tensor,
    label_Bhw: Tensor,
    prototypes_KC: Tensor,
    temperature: float = 0.07,
    *,
    reduction: Reduction = "all",
    prototype_grad: bool = True,
    projection_EC: Tensor | None = None,
    normalizer: Tensor | None = None,
) -> Tensor:
    """Cross-entropy of cos(feature, prototype) / temperature over labelled positions; exactly 0 where there is none.

    Labels lie on the features' grid (:func:`tutelage.losses.regions.shrink_labels`), 255 = ignored. ``prototype_grad``:
    whether the gradient reaches the prototypes. ``projection``: a matrix that features and prototypes go through first.
    ``normalizer``: what the sum is divided by instead of the number that ``reduction`` names.
    Source: PBAL; the gradient to the prototypes and no projection are its code, the contrary is its figure.
    """
    prototypes = prototypes_KC if prototype_grad else prototypes_KC.detach()
    if projection_EC is not None:
        features_BChw = F.conv2d(features_BChw, projection_EC[..., None, None])
        prototypes = prototypes @ projection_EC.T
    logits_BKhw = cosines(features_BChw, prototypes) / temperature
    total = F.cross_entropy(logits_BKhw, label_Bhw, ignore_index=IGNORE, reduction="sum")
    if normalizer is not None:
        return total / normalizer.clamp(min=1e-12)
    if reduction == "all":
        return total / label_Bhw.numel()
    return total / (label_Bhw != IGNORE).sum().clamp(min=1)
