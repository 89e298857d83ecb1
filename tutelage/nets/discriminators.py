"""Discriminators of the domain of a segmentation output, or of a student's and its teacher's outputs.

Dimensions: B batch, C channels, H W the output map's grid, h w a map inside, P = h w.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

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
                "size-mismatch",
                f"discriminator halves its input five times; a map of {height}x{width} is too small",
                "resize the maps to the image's size first, or train on crops of at least 32x32 pixels",
            )
        logits: Tensor = self.layers(map_BCHW)
        return logits


class ProDADiscriminator(nn.Module):
    """Four 3x3 convolutions of stride 2 (C, 64, 128, 256, 512), then 1x1 to one logit.

    ReLU after the first three, LeakyReLU 0.2 after the fourth. Reads softmax maps. Source: ProDA (CVPR 2021), the
    warm-up of its code.
    """

    def __init__(self, channels: int, width: int = 64) -> None:
        super().__init__()
        widths = [channels, width, 2 * width, 4 * width, 8 * width]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.ReLU(inplace=True)]
        layers[-1] = nn.LeakyReLU(0.2, inplace=True)
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 1))

    def forward(self, map_BCHW: Tensor) -> Tensor:
        """Logits (B, 1, H / 16, W / 16), rounded up, of maps (B, C, H, W) of any size."""
        logits: Tensor = self.layers(map_BCHW)
        return logits


class HolisticCritic(nn.Module):
    """Critic of raw logits: blocks of a 4x4 convolution of stride 2, self-attention after the last two.

    As published for maps of at least 64x64: batch norm of the input; four blocks of 64, 128, 256 and 512 channels,
    spectrally normalised, LeakyReLU 0.1; a 4x4 convolution to one score, without padding or normalisation. Smaller
    maps get as many blocks as leave 4x4 positions (24x24: two), at least one; the last kernel covers the remaining
    positions if fewer. Source: structured knowledge distillation (CVPR 2019), holistic term, as in CIRKD.
    """

    def __init__(self, channels: int, size: tuple[int, int], width: int = 64) -> None:
        super().__init__()
        smallest = min(size)
        if smallest < 2:
            raise TutelageError(
                "size-mismatch",
                f"critic needs maps of at least 2x2, got {size[0]}x{size[1]}",
                "train on larger crops, or use a student with a smaller output stride",
            )
        depth = max(sum(smallest >= 4 << halvings for halvings in (1, 2, 3, 4)), 1)
        widths = [channels, *(width << block for block in range(depth))]
        self.input_norm = nn.BatchNorm2d(channels)
        self.blocks = nn.ModuleList(SpectralConv(before, after) for before, after in pairwise(widths))
        self.attentions = nn.ModuleList(SelfAttention(after) for after in widths[1:][-2:])
        self.final = nn.Conv2d(widths[-1], 1, min(4, smallest >> depth))
        self.size = size

    def forward(self, logits_BCHW: Tensor) -> Tensor:
        """Scores (B, 1, h, w); of maps of 64x64 and more, h = floor(H / 16) - 3."""
        if min(logits_BCHW.shape[2:]) >> len(self.blocks) < self.final.kernel_size[0]:
            (height, width), (rows, columns) = self.size, logits_BCHW.shape[2:]
            raise TutelageError(
                "size-mismatch",
                f"critic expects maps of {height}x{width}, got {rows}x{columns}",
                "train on crops of one size, and build the critic for the grid of the logits",
            )
        map_ = self.input_norm(logits_BCHW)
        attended = len(self.blocks) - len(self.attentions)
        for index, block in enumerate(self.blocks):
            map_ = F.leaky_relu(block(map_), 0.1)
            if index >= attended:
                map_ = self.attentions[index - attended](map_)
        scores: Tensor = self.final(map_)
        return scores


class SpectralConv(nn.Module):
    """A 4x4 convolution of stride 2, padding 1, whose weight is divided by an estimate of its largest singular value.

    The estimate u^T W v does one power iteration per forward in training mode and is fixed in evaluation mode. Not
    torch's own, which warms up before the first step (Miyato et al. 2018 do not).
    """

    power_u: Tensor
    power_v: Tensor

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        plain = nn.Conv2d(channels, width, 4)  # for torch's initialisation
        self.weight, self.bias = plain.weight, plain.bias
        self.register_buffer("power_u", _length_one(torch.randn(width)))
        self.register_buffer("power_v", _length_one(torch.randn(channels * 4 * 4)))

    def forward(self, map_BChw: Tensor) -> Tensor:
        """(B, C, h, w) to (B, width, h // 2, w // 2)."""
        matrix = self.weight.flatten(1)
        if self.training:
            with torch.no_grad():
                self.power_v.copy_(_length_one(matrix.T @ self.power_u))
                self.power_u.copy_(_length_one(matrix @ self.power_v))
        # Copies: the next forward changes the buffers, maybe before this one's backward has read them.
        sigma = self.power_u.clone() @ matrix @ self.power_v.clone()
        return F.conv2d(map_BChw, self.weight / sigma, self.bias, stride=2, padding=1)


def _length_one(vector: Tensor) -> Tensor:
    unit: Tensor = vector / (torch.linalg.vector_norm(vector) + 1e-12)
    return unit


class SelfAttention(nn.Module):
    """x + gain * (values averaged by attention): the block of SAGAN (2019); gain starts at 0."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query = nn.Conv2d(channels, max(channels // 8, 1), 1)
        self.key = nn.Conv2d(channels, max(channels // 8, 1), 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.gain = nn.Parameter(torch.zeros(1))

    def weights(self, map_BChw: Tensor) -> Tensor:
        """Attention (B, P, P): for every position, a distribution over all positions; unscaled products."""
        query_BcP, key_BcP = self.query(map_BChw).flatten(2), self.key(map_BChw).flatten(2)
        weights: Tensor = (query_BcP.transpose(1, 2) @ key_BcP).softmax(2)
        return weights

    def forward(self, map_BChw: Tensor) -> Tensor:
        """The same shape."""
        value_BCP = self.value(map_BChw).flatten(2)
        mixed_BCP = value_BCP @ self.weights(map_BChw).transpose(1, 2)
        out: Tensor = map_BChw + self.gain * mixed_BCP.view_as(map_BChw)
        return out
