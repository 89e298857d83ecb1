"""Projections: trained 1x1 convolutions that bring the student's features to the teacher's channels."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn


def precision_of(map_BChw: Tensor) -> AbstractContextManager[Any]:
    """Autocast to the precision of a map; none for float32."""
    low = map_BChw.dtype != torch.float32
    return torch.autocast(map_BChw.device.type, map_BChw.dtype if low else torch.bfloat16, enabled=low)


class Projection(nn.Sequential):
    """Layers that compute in the precision of what they are given, as the nets do."""

    def forward(self, map_BChw: Tensor) -> Tensor:
        """The projected map (B, C', h, w)."""
        with precision_of(map_BChw):
            projected: Tensor = super().forward(map_BChw)  # type: ignore[no-untyped-call]
        return projected


def linear(student: int, teacher: int) -> Projection:
    """One 1x1 convolution without bias."""
    return Projection(nn.Conv2d(student, teacher, 1, bias=False))


def two_layers(student: int, teacher: int) -> Projection:
    """CIRKD's projection: 1x1 convolution, batch norm, ReLU, 1x1 convolution, both without bias."""
    return Projection(
        nn.Conv2d(student, teacher, 1, bias=False),
        nn.BatchNorm2d(teacher),
        nn.ReLU(inplace=True),
        nn.Conv2d(teacher, teacher, 1, bias=False),
    )
