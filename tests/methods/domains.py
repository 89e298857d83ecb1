"""Batches of two domains, and nets that can be followed by hand, for methods that mix them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.methods.cases import FACTS, Stub, batch, context
from tutelage.data.batch import Batch
from tutelage.data.settings import ColourSettings

PLAIN = ColourSettings()


class Shown(Stub):
    """A stub that keeps the images it is shown, and knows the colour that it subtracts."""

    def __init__(self, seed: int = 0, **options: Any) -> None:
        super().__init__(seed, **options)
        self.register_buffer("mean", torch.tensor([0.4, 0.5, 0.6]).view(1, 3, 1, 1))
        self.seen: list[Tensor] = []

    def forward(self, image: Tensor) -> Any:
        self.seen.append(image.detach().clone())
        return super().forward(image)


def domains(count: int = 2, size: tuple[int, int] = (32, 32), padding: int = 0, **options: Any) -> dict[str, Batch]:
    """A source batch, and a target batch of which ``padding`` rows at the bottom are padding."""
    given = {
        "source": batch(1, count=count, size=size, **options),
        "target": batch(2, count=count, size=size, labels=False),
    }
    given["target"]["weak"].valid[:, size[0] - padding :] = False
    return given


def made(kind: Any, net: nn.Module | None = None, ema: nn.Module | None = None, **settings: Any) -> Any:
    """A method whose average is another net than its student, so that they can be told apart."""
    method = kind({"student": net or Shown()}, kind.Settings(**settings), FACTS)
    other = ema or Shown(seed=7)
    with torch.no_grad():
        for mine, theirs in zip(method.ema.parameters(), other.parameters(), strict=False):
            if mine.shape == theirs.shape:
                mine.copy_(theirs)
    return method


def passes(method: Any, given: Mapping[str, Batch], **changes: Any) -> dict[str, dict[str, Tensor]]:
    """The terms of each pass of a step."""
    at = {"step": 0, **changes}
    return {
        each.name: method(given, each.name, context(method, given, **at, pass_name=each.name))
        for each in method.passes(at["step"])
    }


def full(net: nn.Module, image: Tensor, stride: int = 4) -> Tensor:
    """Logits at the size of the image."""
    logits = F.interpolate(net(image).logits, scale_factor=stride, mode="bilinear")
    return logits[..., : image.shape[2], : image.shape[3]]
