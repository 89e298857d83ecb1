"""CIRKD's losses in blocks against the dense forms: time and peak memory of forward and backward, each by itself."""

from __future__ import annotations

import argparse
import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import dense
from benchmarks.common import in_process, ratio_line
from tutelage.engine.allocator import keep_freed_memory
from tutelage.engine.meter import peak_memory
from tutelage.losses.relations import bank_relations, pair_relations, unit

TEMPERATURE = 0.1
CLASSES, PIXEL_SLOTS, REGION_SLOTS, PIXELS, REGIONS = 19, 20_000, 2_000, 216, 54
ROUNDS = 3
CPU = torch.device("cpu")


def rows(seed: int, *shape: int) -> Tensor:
    """Unit vectors."""
    return unit(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)))


def peak_since() -> float:
    """Forget the peak so far, which the inputs' making may have set; what is resident now, in MiB (Linux)."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return peak_memory(CPU)


def one(kind: str, way: str, small: bool) -> dict[str, Any]:
    """Time a loss and its gradient after one warm-up, in this process alone."""
    positions, width = (300, 32) if small else (64 * 128, 256)
    images = 2
    dtype = torch.bfloat16 if way == "bf16" else torch.float32
    if kind == "pair":
        student = rows(0, images, positions, width // 2).to(dtype).requires_grad_()
        teacher = rows(1, images, positions, width)
        loss: Any = partial(dense.pair_relations if way == "dense" else pair_relations, student, teacher, TEMPERATURE)
    else:
        student = rows(0, images * positions, width).to(dtype).requires_grad_()
        teacher = rows(1, images * positions, width)
        slots = (200, 60) if small else (PIXEL_SLOTS, REGION_SLOTS)
        stored = torch.float32 if way == "dense" else torch.float16
        pixels, regions = (rows(2, CLASSES * count, width).view(CLASSES, count, width).to(stored) for count in slots)
        shuffled = torch.Generator().manual_seed(3)
        draws = tuple(
            torch.randperm(total, generator=shuffled)[:count]
            for total, count in zip(slots, (PIXELS, REGIONS), strict=True)
        )

        def loss() -> Tensor:
            if way == "dense":
                return dense.memory_relations(student, teacher, (pixels, regions), draws, TEMPERATURE)
            banks = (queue[:, chosen].flatten(0, 1) for queue, chosen in zip((pixels, regions), draws, strict=True))
            return torch.stack([bank_relations(student, teacher, bank, None, TEMPERATURE) for bank in banks]).sum()

    keep_freed_memory()  # for both sides alike
    before = peak_since()
    times = []
    for number in range(1 + ROUNDS):
        start = time.perf_counter()
        value = loss()
        value.backward()
        if number:
            times.append(time.perf_counter() - start)
        student.grad = None
    return {"times": times, "mib": peak_memory(CPU) - before, "loss": float(value.detach())}


def main(small: bool = False) -> None:
    """Print both tables."""
    print("\n## CIRKD's relational losses, forward and backward (dense form | in blocks)\n")
    print("| what | dense | in blocks | ratio | range | memory, dense | memory, in blocks | share |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    size = ("--small",) if small else ()
    for kind, name in (
        ("pair", "mini-batch pixel-to-pixel, 2 images of 64x128, 128 and 256 channels"),
        ("memory", "memory pixel and region, 19 classes, 20,000 + 2,000 slots, 256 channels"),
    ):
        plain = in_process("benchmarks.relations", kind, "dense", *size)
        for way in ("fp32", "bf16"):
            ours = in_process("benchmarks.relations", kind, way, *size)
            assert abs(ours["loss"] - plain["loss"]) < (1e-4 if way == "fp32" else 0.05) * plain["loss"]
            line = ratio_line(f"{name}, {way}", plain["times"], ours["times"])
            share = ours["mib"] / plain["mib"]
            print(f"{line} {plain['mib']:.0f} MiB | {ours['mib']:.0f} MiB | {share:.3f} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=("pair", "memory"))
    parser.add_argument("way", choices=("dense", "fp32", "bf16"))
    parser.add_argument("--small", action="store_true")
    given = parser.parse_args()
    print(json.dumps(one(given.kind, given.way, given.small)))
