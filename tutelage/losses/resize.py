"""Bringing logits back to the size of the image: three rules, of which a net is trained with one.

Published codes differ here, and a score changes by some tenths with the rule, so that it is a setting of every
method and protocol and never hidden.

Letters: B images, K classes, h x w the grid of the logits, H x W the image.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from tutelage.losses.options import ResizeRule


def resize_logits(logits_BKhw: Tensor, size: tuple[int, int], rule: ResizeRule, stride: int) -> Tensor:
    """Bilinear: (B, K, h, w) -> (B, K, H, W) for ``size`` (H, W).

    ``stride`` is how many pixels lie between two logits; only the rule ``grid`` needs it. ValueError if the grid
    does not reach over the image, or for an unknown rule.
    """
    if rule == "corners":
        return F.interpolate(logits_BKhw, size, mode="bilinear", align_corners=True)
    if rule == "centers":
        return F.interpolate(logits_BKhw, size, mode="bilinear", align_corners=False)
    if rule != "grid":
        raise ValueError(f"invalid resize rule {rule!r}: expected grid, centers or corners")
    height, width = size
    if logits_BKhw.shape[-2] * stride < height or logits_BKhw.shape[-1] * stride < width:
        raise ValueError(
            f"logits {tuple(logits_BKhw.shape[-2:])} at stride {stride} do not reach over {height} x {width} pixels"
        )
    if stride != 1:
        logits_BKhw = F.interpolate(logits_BKhw, scale_factor=float(stride), mode="bilinear", align_corners=False)
    return logits_BKhw[..., :height, :width]


def over_image(logits_BKhw: Tensor, image_B3HW: Tensor, rule: ResizeRule, stride: int) -> Tensor:
    """Logits at the size of the images they were made of: (B, K, h, w) -> (B, K, H, W); see :func:`resize_logits`."""
    return resize_logits(logits_BKhw, (image_B3HW.shape[2], image_B3HW.shape[3]), rule, stride)
