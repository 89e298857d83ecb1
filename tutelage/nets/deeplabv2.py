"""DeepLabV2: no decoder, and a dilated 3x3 classifier (Chen et al. 2018, section 3.2, ASPP-L).

The net of AdaptSegNet, AdvEnt, CBST, FDA and DACS. Four dilated 3x3 convolutions read the encoder's last level, and
their class scores are summed. AdaptSegNet's code returns inside the loop and sums only the first two, as do DACS and
the comparisons of DAFormer, HRDA and MIC: that is ``reduced``.

Dimensions: B batch, C channels, K classes, h w the grid.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

DILATIONS: dict[str, tuple[int, ...]] = {"deeplabv2": (6, 12, 18, 24), "deeplabv2_reduced": (6, 12)}


def dilate_first_blocks(encoder: Any) -> None:
    """Give the first block of each dilated stage of a ResNet of bottlenecks the dilation of the others, in place.

    timm gives it that of the stage before; DeepLabV2's ResNet, which ProDA shares, does not. Tensors keep their names
    and shapes, and other encoders are unchanged.
    """
    for name in ("layer3", "layer4"):
        first, *others = getattr(encoder, name, None) or [None]
        if others and hasattr(others[-1], "conv3") and isinstance(others[-1].conv2, nn.Conv2d):
            first.conv2.dilation = first.conv2.padding = others[-1].conv2.dilation


class AtrousClassifier(nn.Module):
    """Class scores: the sum of dilated 3x3 convolutions, each with a bias."""

    def __init__(self, channels: int, classes: int, dilations: tuple[int, ...]) -> None:
        super().__init__()
        self.in_channels = channels
        self.branches = nn.ModuleList(
            [nn.Conv2d(channels, classes, 3, padding=rate, dilation=rate) for rate in dilations]
        )
        for branch in self.branches:
            assert isinstance(branch, nn.Conv2d)
            assert branch.bias is not None
            nn.init.normal_(branch.weight, std=0.01)
            nn.init.zeros_(branch.bias)

    def forward(self, feature_BChw: Tensor) -> Tensor:
        """Class scores (B, K, h, w) of the last level (B, C, h, w)."""
        first, *others = self.branches
        logits_BKhw: Tensor = first(feature_BChw)
        for branch in others:
            logits_BKhw = logits_BKhw + branch(feature_BChw)
        return logits_BKhw


class LastLevel(nn.Module):
    """The encoder's last level as the embedding."""

    def __init__(self, channels: int, stride: int, dropout: float | None) -> None:
        super().__init__()
        self.tail: nn.Module = nn.Identity() if dropout is None else nn.Dropout2d(dropout)
        self.channels = channels
        self.stride = stride

    def forward(self, levels: tuple[Tensor, ...], tokens: tuple[Tensor, ...]) -> Tensor:
        """The last of all levels (B, C, h, w) of an image."""
        embedding_BChw: Tensor = self.tail(levels[-1])
        return embedding_BChw
