"""A net that can be followed with the eye, and which notes how it is called."""

from __future__ import annotations

from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor

from tutelage.deploy.model import Model
from tutelage.evaluation.protocol import Protocol

CLASSES = ("red", "green", "blue")
PALETTE = ((255, 0, 0), (0, 255, 0), (0, 0, 255))


class BrightestChannel:
    """The class of a pixel is its brightest channel, seen at stride 4."""

    stride = 4

    def __init__(self) -> None:
        self.calls: list[tuple[int, ...]] = []

    def __call__(self, image: Tensor, /) -> SimpleNamespace:
        self.calls.append(tuple(image.shape))
        height, width = image.shape[-2:]
        padded = F.pad(image, (0, -width % 4, 0, -height % 4), mode="replicate")
        return SimpleNamespace(logits=20 * F.avg_pool2d(padded, 4))


def model(protocol: Protocol | None = None) -> tuple[Model, BrightestChannel]:
    net = BrightestChannel()
    return Model(net, CLASSES, PALETTE, torch.device("cpu"), protocol, checksum=1), net
