"""Modes of BatchNorm and dropout that persist through train() and eval().

A method declares a net's mode once (an EMA teacher in batch-statistics mode without dropout, frozen scale and shift in
the AdaptSegNet line of work); the engine calls train() and eval() as usual.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

import tutelage.torchvision_operators  # noqa: F401  (before timm)
from tutelage.errors import TutelageError

from timm.layers import DropBlock2d, DropPath, PatchDropout  # isort: skip

NormMode = Literal["batch", "running"]

_DROPPING = (_DropoutNd, DropPath, DropBlock2d, PatchDropout)


@dataclass(frozen=True)
class Modes:
    """The declared modes; None and False: not declared."""

    norm: NormMode | None = None
    dropout: bool | None = None
    frozen_affine: bool = False
    frozen_statistics: bool = False

    def declare(self, norm: NormMode | None, dropout: bool | None) -> Modes:
        """A copy with another BatchNorm mode and dropout switch."""
        if norm not in (None, "batch", "running"):
            raise TutelageError("invalid-value", f"unknown norm mode {norm!r}", "use batch, running or None")
        return replace(self, norm=norm, dropout=dropout)._checked()

    def freeze(self, net: nn.Module, affine: bool, statistics: bool) -> Modes:
        """A copy with BatchNorm parts frozen or released; released scale and shift become trainable at once."""
        changed = replace(self, frozen_affine=affine, frozen_statistics=statistics)._checked()
        if self.frozen_affine and not affine:
            for layer in _batch_norms(net):
                _set_trainable(layer, True)
        return changed

    def apply(self, net: nn.Module) -> None:
        """Set every layer of ``net`` to its declared mode."""
        for layer in _batch_norms(net):
            if self.frozen_statistics or self.norm == "running":
                layer.eval()
            elif self.norm == "batch":
                layer.train()
            if self.frozen_affine:
                _set_trainable(layer, False)
        if self.dropout is not None:
            for module in net.modules():
                if isinstance(module, _DROPPING):
                    module.train(self.dropout)

    def _checked(self) -> Modes:
        if self.frozen_statistics and self.norm == "batch":
            raise TutelageError(
                "option-conflict",
                "BatchNorm cannot normalise by batch statistics while its running statistics are frozen",
                "leave statistics free (`frozen_norm: affine`, freeze_norm(statistics=False)), or use mode(norm=None)",
            )
        return self


@contextmanager
def keeping_statistics(net: nn.Module) -> Iterator[None]:
    """In the block, BatchNorm normalises as usual, but running statistics and batch counts do not change."""
    layers = [layer for layer in _batch_norms(net) if layer.track_running_stats]
    for layer in layers:
        layer.track_running_stats = False
    try:
        yield
    finally:
        for layer in layers:
            layer.track_running_stats = True


def _batch_norms(net: nn.Module) -> Iterator[_BatchNorm]:
    return (module for module in net.modules() if isinstance(module, _BatchNorm))


def _set_trainable(layer: _BatchNorm, trainable: bool) -> None:
    for parameter in layer.parameters(recurse=False):
        parameter.requires_grad_(trainable)
