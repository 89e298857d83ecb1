"""Discriminators that tell the domain of a segmentation output.

Dimensions: B batch, C channels, H W the output map's grid.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from tutelage.errors import TutelageError


class OutputDiscriminator(nn.Module):
    """Five 4x4 convolutions of stride 2: C, 64, 128, 256, 512, 1; LeakyReLU 0.2 between, logits out.

    Reads softmax maps (AdaptSegNet, Tsai et al. 2018, section 4.1) or self-information maps (AdvEnt, Vu et al. 2019).
    Weights keep torch's own initialisation, as in both releases.
    """

    def __init__(self, channels: int, width: int = 64) -> None:
        super().__init__()
        widths = [channels, width, 2 * width, 4 * width, 8 * width]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Conv2d(before, after, 4, stride=2, padding=1), nn.LeakyReLU(0.2, inplace=True)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 4, stride=2, padding=1))

    def forward(self, map_BCHW: Tensor) -> Tensor:
        """Logits (B, 1, H // 32, W // 32) of maps (B, C, H, W); TutelageError for maps smaller than 32x32."""
        if min(map_BCHW.shape[-2:]) < 32:
            height, width = map_BCHW.shape[-2:]
            raise TutelageError(
                f"the discriminator halves its input five times and was given a map of {height}x{width}",
                "enlarge the maps to the image's size first, or train on crops of at least 32x32 pixels",
            )
        logits: Tensor = self.layers(map_BCHW)
        return logits
