"""Losses between features and prototypes, and thresholds by class, against their plain transcriptions.

The plain losses hold a tensor of pixels x classes x channels, as a formula with a norm inside reads; the plain
thresholds hold the confidences of all pixels. Every side runs in a process of its own, for its peak of memory, on one
thread; times are seconds of the processor: other work on the machine disturbs them least.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.common import in_process, one_thread, peak_since, ratio_line
from tests.annotate.exact_quantiles import confidence_histogram, exact_thresholds
from tutelage.annotate.class_quantiles import histogram_thresholds
from tutelage.engine.allocator import keep_freed_memory
from tutelage.engine.meter import peak_memory
from tutelage.losses.prototype_contrast import prototype_contrast
from tutelage.losses.prototypes import prototype_distances
from tutelage.losses.transport import cosine_cost, pixel_to_prototype, prototype_to_pixel

CLASSES, CHANNELS, GRID = 19, 256, (128, 224)
IMAGES, SIZE = 20, (1024, 2048)
QUANTILE, CAP = 0.5, 0.9
CPU = torch.device("cpu")

Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def plain_distances(features: Tensor, prototypes: Tensor, logits: Tensor, label: Tensor) -> Tensor:
    """Mean distance of every feature to every prototype (ProDA)."""
    return (features[:, None] - prototypes[None, :, :, None, None]).norm(dim=2).mean()


def our_distances(features: Tensor, prototypes: Tensor, logits: Tensor, label: Tensor) -> Tensor:
    """The same."""
    return prototype_distances(features, prototypes).mean()


def plain_transport(features: Tensor, prototypes: Tensor, logits: Tensor, label: Tensor) -> Tensor:
    """Both directions of PBAL's first stage."""
    cost = 1 - F.cosine_similarity(features[:, None], prototypes.detach()[None, :, :, None, None], dim=2)
    over_pixels = logits.transpose(0, 1).flatten(1).softmax(1)
    to_pixel = (over_pixels * cost.transpose(0, 1).flatten(1)).sum(1).mean()
    return (logits.softmax(1) * cost).sum(1).mean() + to_pixel


def our_transport(features: Tensor, prototypes: Tensor, logits: Tensor, label: Tensor) -> Tensor:
    """The same."""
    cost = cosine_cost(features, prototypes)
    return pixel_to_prototype(logits, cost) + prototype_to_pixel(logits, cost)


def plain_contrast(features: Tensor, prototypes: Tensor, logits: Tensor, label: Tensor) -> Tensor:
    """PBAL's second stage: products of unit vectors, and labels as planes of 0 and 1."""
    rows = F.normalize(features, dim=1)[:, None] * F.normalize(prototypes, dim=1)[None, :, :, None, None]
    log_share = (rows.sum(2) / 0.07).log_softmax(1)
    known = label != 255
    planes = F.one_hot(label.masked_fill(~known, 0), CLASSES).movedim(-1, 1) * known[:, None]
    return -(planes * log_share).sum() / label.numel()


def our_contrast(features: Tensor, prototypes: Tensor, logits: Tensor, label: Tensor) -> Tensor:
    """The same."""
    return prototype_contrast(features, label, prototypes, 0.07)


LOSSES: dict[str, dict[str, Loss]] = {
    "distances": {"plain": plain_distances, "ours": our_distances},
    "transport": {"plain": plain_transport, "ours": our_transport},
    "contrast": {"plain": plain_contrast, "ours": our_contrast},
}


def loss(what: str, way: str, small: bool) -> dict[str, Any]:
    """Seconds of a forward and backward for one crop's features, after one warm-up; value and peak memory."""
    channels, grid = (8, (6, 8)) if small else (CHANNELS, GRID)
    draw = torch.Generator().manual_seed(0)
    features = torch.randn(1, channels, *grid, generator=draw).relu_().requires_grad_()
    prototypes = torch.randn(CLASSES, channels, generator=draw).requires_grad_()
    logits = torch.randn(1, CLASSES, *grid, generator=draw).requires_grad_()
    label = torch.randint(0, CLASSES, (1, *grid), generator=draw)
    label = label.masked_fill(torch.rand(1, *grid, generator=draw) < 0.3, 255)
    inputs = (features, prototypes, logits)

    def run() -> float:
        for one in inputs:
            one.grad = None
        value = LOSSES[what][way](*inputs, label)
        value.backward()
        return float(value)

    before = peak_since()
    run()
    times = []
    for _ in range(1 if small else 3):
        began = time.process_time()
        value = run()
        times.append(time.process_time() - began)
    return {"times": times, "mib": peak_memory(CPU) - before, "value": value}


def said(images: int, size: tuple[int, int]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Confidences and classes of one image after the other, as a net gives them."""
    draw = np.random.default_rng(0)
    for _ in range(images):
        yield (
            1 - draw.random(size, dtype=np.float32) ** 2,
            draw.integers(0, CLASSES, size, dtype=np.uint8),
        )


def thresholds(way: str, small: bool) -> dict[str, Any]:
    """Seconds of the thresholds of a set of images, without what makes the images; their mean and peak memory."""
    images, size = (2, (16, 32)) if small else (IMAGES, SIZE)
    spent = 0.0
    kept: list[tuple[np.ndarray, np.ndarray]] = []
    histogram = np.zeros((CLASSES, 4096), dtype=np.int64)
    before = peak_since()
    for confidence, prediction in said(images, size):
        began = time.process_time()
        if way == "ours":
            histogram += confidence_histogram(confidence, prediction, CLASSES)
        else:
            kept.append((confidence.astype(np.float16), prediction))
        spent += time.process_time() - began
    began = time.process_time()
    if way == "ours":
        found = histogram_thresholds(histogram, QUANTILE, CAP)
    else:
        whole = (np.concatenate([pair[part].ravel() for pair in kept]) for part in (0, 1))
        found = exact_thresholds(*whole, CLASSES, QUANTILE, CAP)
    spent += time.process_time() - began
    return {"times": [spent], "mib": peak_memory(CPU) - before, "value": float(found.threshold_K.mean())}


@one_thread()
def main(small: bool = False) -> None:
    """Print the table."""
    size = ("--small",) if small else ()
    print(f"\n## Prototypes ({GRID[0]} x {GRID[1]} positions, {CLASSES} classes, {CHANNELS} channels)\n")
    print("| what | plain | tutelage | ratio | range | memory, plain | memory, tutelage | values |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for what, name in (
        ("distances", "distances, forward and backward"),
        ("transport", "transport in both directions, forward and backward"),
        ("contrast", "contrast, forward and backward"),
        ("thresholds", f"thresholds by class of {IMAGES} images of {SIZE[0]} x {SIZE[1]}"),
    ):
        theirs, ours = (in_process("benchmarks.prototypes", what, way, *size) for way in ("plain", "ours"))
        line = ratio_line(name, theirs["times"], ours["times"])
        print(
            f"{line} {theirs['mib']:.0f} MiB | {ours['mib']:.0f} MiB | {theirs['value']:.5f}, {ours['value']:.5f} |",
            flush=True,
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=(*LOSSES, "thresholds"))
    parser.add_argument("way", choices=("plain", "ours"))
    parser.add_argument("--small", action="store_true")
    given = parser.parse_args()
    keep_freed_memory()  # for all sides alike
    if given.what == "thresholds":
        print(json.dumps(thresholds(given.way, given.small)))
    else:
        print(json.dumps(loss(given.what, given.way, given.small)))
