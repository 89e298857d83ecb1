"""Cost of a net: parameters, multiply-adds and time.

Multiply-adds are the "FLOPs" or "GFLOPs" of segmentation papers: one multiplication with its addition counts once
(torch's counter counts both, so its number is halved). Convolutions and matrix products, attention included, are
counted; normalisation, activations and resizing are not.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count


def parameters(net: nn.Module) -> int:
    """The number of trainable and frozen values; buffers are not counted."""
    return sum(parameter.numel() for parameter in net.parameters())


def flops(net: nn.Module, size: tuple[int, int]) -> int:
    """Multiply-adds of one image (3, H, W), ``size`` = (H, W), in evaluation mode with the net's other modes.

    Computes with shapes only: time and memory do not depend on the size.
    """
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    counter = FlopCounterMode(display=False)
    try:
        # Plain attention: the counter does not know the fused kernels of some devices and would count them as 0.
        with (
            torch.no_grad(),
            FakeTensorMode(allow_non_fake_inputs=True),
            sdpa_kernel(SDPBackend.MATH),
            counter,
        ):
            net(torch.empty(1, 3, *size, device=_device(net)))
    finally:
        for module, training in modes:
            module.training = training
    return counter.get_total_flops() // 2


@contextmanager
def counting() -> Iterator[Callable[[], float]]:
    """Count the multiply-adds in the block, backward passes included; yields a function that returns the number."""
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.convolution_backward: _backward})
    with sdpa_kernel(SDPBackend.MATH), counter:
        yield lambda: counter.get_total_flops() / 2


def _backward(
    grad_out: Sequence[int],
    x: Sequence[int],
    weight: Sequence[int],
    _bias: Any,
    _stride: Any,
    _padding: Any,
    _dilation: Any,
    transposed: bool,
    _output_padding: Any,
    _groups: int,
    output_mask: Sequence[bool],
    **_: Any,
) -> int:
    """Each gradient of a convolution costs as much as the convolution; torch overcounts those of groups."""
    return sum(output_mask[:2]) * conv_flop_count(list(x), list(weight), list(grad_out), transposed)


def latency(net: nn.Module, size: tuple[int, int], *, repeats: int = 20, warm_up: int = 5) -> float:
    """Median milliseconds for one image (3, H, W), ``size`` = (H, W), in evaluation mode on the net's own device."""
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    device = _device(net)
    image = torch.rand(1, 3, *size, device=device)
    times = []
    try:
        with torch.inference_mode():
            for _ in range(warm_up + repeats):
                _synchronise(device)
                start = time.perf_counter()
                net(image)
                _synchronise(device)
                times.append(1000 * (time.perf_counter() - start))
    finally:
        for module, training in modes:
            module.training = training
    return statistics.median(times[warm_up:])


def _device(net: nn.Module) -> torch.device:
    return next(net.parameters()).device


def _synchronise(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
