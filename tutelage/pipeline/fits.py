"""What is fitted once and read later: what it is called in its file, and what stands in for it in a trial."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tutelage.annotate import entropies, transferability
from tutelage.annotate.entropies import EntropiesFit
from tutelage.annotate.mixtures import MixturesFit
from tutelage.prototypes import gaussians, means

FILE_KINDS = {
    "means": means.KIND,
    "anchors": means.KIND,
    "mixtures": gaussians.KIND,
    "transferability": transferability.KIND,
    "entropies": entropies.KIND,
}
"""What a fit is called in its file."""


def stand_in(what: Any, classes: int, channels: int) -> dict[str, Tensor]:
    """Random tensors of the shapes that a fit would have, for a trial before there is one."""
    random = torch.Generator().manual_seed(0)
    if isinstance(what, MixturesFit):
        shape = (classes, what.components, channels)
        return {
            "present": torch.ones(classes, dtype=torch.bool),
            "weight": torch.full(shape[:2], 1 / what.components, dtype=torch.float64),
            "mean": torch.randn(shape, generator=random, dtype=torch.float64),
            "variance": torch.ones(shape, dtype=torch.float64),
        }
    if isinstance(what, EntropiesFit):
        return {
            "entropy": torch.rand(classes, generator=random, dtype=torch.float64),
            "pixels": torch.ones(classes, dtype=torch.int64),
        }
    return {"prototypes": torch.randn(classes, channels, generator=random), "counts": torch.ones(classes)}
