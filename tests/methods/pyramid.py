"""A net with encoder and decoder that can be followed by hand, and unlabelled batches for it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.methods.cases import CLASSES, batch
from tutelage.data.batch import Batch
from tutelage.nets.segmentor import Features, Prediction

VIEWS = ("weak", "strong", "strong2")


class Pyramid(nn.Module):
    """Two levels, 1x1 convolutions of the means over 4x4 pixels; logits are a 1x1 convolution of both."""

    stride = 4

    def __init__(self, widths: Sequence[int] = (6, 6), norm: bool = False, seed: int = 0) -> None:
        super().__init__()
        self.levels = nn.ModuleList(nn.Conv2d(3, width, 1) for width in widths)
        self.norm = nn.BatchNorm2d(3) if norm else nn.Identity()
        self.classifier = nn.Conv2d(sum(widths), CLASSES, 1)
        self.modes: list[tuple[bool, bool, int]] = []
        """Of every pass over the encoder: training, with gradient, number of images."""
        draw = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in (*self.levels.parameters(), *self.classifier.parameters()):
                parameter.copy_(2 * torch.randn(parameter.shape, generator=draw))

    def forward(self, image: Tensor) -> Prediction:
        return self.decode(self.encode(image))

    def encode(self, image: Tensor) -> Features:
        self.modes.append((self.training, torch.is_grad_enabled(), len(image)))
        pooled = F.avg_pool2d(self.norm(image), 4, ceil_mode=True)
        return Features(tuple(level(pooled) for level in self.levels), (image.shape[2], image.shape[3]))

    def decode(self, features: Features) -> Prediction:
        embedding = torch.cat(features.levels, 1)
        return Prediction(self.classifier(embedding), embedding, features.levels, None, {})


def full(net: nn.Module, image: Tensor) -> Tensor:
    """Logits at the size of the image."""
    logits = F.interpolate(net(image).logits, scale_factor=4, mode="bilinear")
    return logits[..., : image.shape[2], : image.shape[3]]


def few_and_many(
    labeled: int = 2,
    unlabeled: int = 3,
    size: tuple[int, int] = (32, 32),
    labeled_size: tuple[int, int] | None = None,
    padding: int = 0,
) -> dict[str, Batch]:
    """A labelled batch and an unlabelled one in three views, of which ``padding`` rows at the bottom are padding."""
    given = {
        "labeled": batch(1, count=labeled, size=labeled_size or size),
        "unlabeled": batch(2, views=VIEWS, count=unlabeled, size=size, labels=False),
    }
    for view in given["unlabeled"].views.values():
        view.valid[:, size[0] - padding :] = False
    return given
