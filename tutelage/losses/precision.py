"""Losses are computed in float32, whatever their nets compute in."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


def in_float32(loss: Callable[P, R]) -> Callable[P, R]:
    """``loss`` with its tensors in float32 and autocast switched off: a product of matrices would be rounded again."""

    @wraps(loss)
    def exact(*args: P.args, **kwargs: P.kwargs) -> R:
        arguments = [_float32(value) for value in args]
        options = {name: _float32(value) for name, value in kwargs.items()}
        kind = next((value.device.type for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
        if kind is None or not torch.is_autocast_enabled(kind):
            return loss(*arguments, **options)
        with torch.autocast(kind, enabled=False):
            return loss(*arguments, **options)

    return exact


def _float32(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value
