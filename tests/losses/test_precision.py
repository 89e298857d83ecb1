"""Losses compute in float32, whatever they are called with and under."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tutelage.losses.precision import in_float32


@in_float32
def seen(first: Tensor, number: float = 1.0, *, named: Tensor | None = None, mask: Tensor | None = None) -> list[Any]:
    """Types of what arrives, and that of a product."""
    assert isinstance(number, float)
    return [
        first.dtype,
        None if named is None else named.dtype,
        None if mask is None else mask.dtype,
        (first @ first).dtype,
    ]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("autocast", [False, True])
def test_tensors_arrive_in_float32_by_place_and_by_name(dtype: torch.dtype, autocast: bool) -> None:
    values, mask = torch.ones(2, 2, dtype=dtype), torch.ones(2, dtype=torch.bool)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        found = seen(values, named=values, mask=mask)
        assert torch.is_autocast_enabled("cpu") == autocast, "as before afterwards"
    assert found == [torch.float32, torch.float32, torch.bool, torch.float32]


def test_gradients_return_in_the_type_that_was_given() -> None:
    values = torch.ones(2, dtype=torch.bfloat16, requires_grad=True)
    in_float32(lambda x: x.square().sum())(values).backward()
    assert values.grad is not None
    assert values.grad.dtype == torch.bfloat16
