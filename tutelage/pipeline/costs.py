"""Measures the cost of nets for one image under a protocol, and describes the machine.

A protocol may run a net several times for one image: per window, scale and mirror image. Costs are sums over all
passes.
"""

from __future__ import annotations

import importlib.metadata
import platform
import statistics
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import torch

from tutelage.evaluation.protocol import Protocol
from tutelage.evaluation.windows import grid, padded_size
from tutelage.nets.cost import flops, latency, parameters
from tutelage.nets.segmentor import Segmentor
from tutelage.report.content import InferenceCost
from tutelage.version import __version__

Size = tuple[int, int]

_ROUNDS = 3
_PATIENCE_MS = 4000.0
"""Seconds per net, size and round; at least one pass is measured."""
_MOST_REPEATS = 10
_LIBRARIES = ("torch", "torchvision", "timm", "segmentation-models-pytorch", "numpy", "pillow")


def passes(protocol: Protocol, size: Size) -> Counter[Size]:
    """Number of passes at each size (H, W) for one image of ``size``."""
    result: Counter[Size] = Counter()
    mirrored = 2 if protocol.flip else 1
    for height, width in protocol.input_sizes(*size):
        if protocol.kind == "whole":
            result[height, width] += mirrored
            continue
        rows, columns = grid(*padded_size(height, width, protocol), protocol)
        for top, bottom in rows:
            for left, right in columns:
                result[bottom - top, right - left] += mirrored
    return result


def measured(
    nets: Mapping[str, Segmentor], protocol: Protocol, size: Size, device: torch.device
) -> tuple[dict[str, InferenceCost], str]:
    """The cost of each net for one image of ``size``, and a sentence on the setting and machine.

    Nets are measured in turn, so that a slowdown of the machine affects all of them.
    """
    wanted = passes(protocol, size)
    repeats: dict[tuple[str, Size], int] = {}
    times: dict[tuple[str, Size], list[float]] = {}
    for _ in range(_ROUNDS):
        for label, net in nets.items():
            with net.inferring(protocol.precision):
                for one in wanted:
                    if (label, one) not in repeats:
                        first = latency(net, one, repeats=1, warm_up=1)
                        repeats[label, one] = max(1, min(_MOST_REPEATS, int(_PATIENCE_MS / first)))
                    times.setdefault((label, one), []).append(latency(net, one, repeats=repeats[label, one], warm_up=1))
    costs = {
        label: InferenceCost(
            parameters=parameters(net),
            multiply_adds=float(sum(count * flops(net, one) for one, count in wanted.items())),
            milliseconds=sum(count * statistics.median(times[label, one]) for one, count in wanted.items()),
        )
        for label, net in nets.items()
    }
    return costs, _setting(wanted, protocol, size, device)


def _setting(wanted: Counter[Size], protocol: Protocol, size: Size, device: torch.device) -> str:
    runs = ", ".join(
        f"{count} {'pass' if count == 1 else 'passes'} at {height}x{width}" for (height, width), count in wanted.items()
    )
    threads = torch.get_num_threads()
    hands = "" if device.type != "cpu" else f", {threads} {'thread' if threads == 1 else 'threads'}"
    return (
        f"For one image of {size[0]}x{size[1]} under the protocol ({runs}), {protocol.precision}, on "
        f"{machine(device)}{hands}; nets measured in turn, medians of the forward passes alone."
    )


def machine(device: torch.device) -> str:
    """The name of the device."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return f"{platform.machine()} ({device.type})"
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def environment(device: torch.device) -> tuple[tuple[str, str], ...]:
    """Versions, machine and threads."""
    versions = [(name, _version(name)) for name in _LIBRARIES]
    return (
        ("tutelage", __version__),
        ("python", platform.python_version()),
        *versions,
        ("system", f"{platform.system()} {platform.machine()}"),
        ("machine", machine(device)),
        ("threads", str(torch.get_num_threads())),
    )


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
