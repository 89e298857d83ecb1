"""A whole step of distillation by each method, against a step of pixel KD: the same nets, images and optimizer."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.common import in_turns, street_data
from tutelage.data.augmentation import AugmentSettings
from tutelage.data.batch import Batch
from tutelage.data.settings import ViewSettings
from tutelage.data.stream import Stream
from tutelage.engine.allocator import keep_freed_memory
from tutelage.engine.contract import Method, StepContext, TaskInfo
from tutelage.methods.cirkd import CIRKD, CIRKDV2
from tutelage.methods.distillation.distill import Distill
from tutelage.methods.pixel_kd import PixelKD
from tutelage.nets.build import build
from tutelage.nets.settings import NetSettings

CROP, BATCH, CLASSES = 256, 8, 11
CPU = torch.device("cpu")
METHODS: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "pixel_kd": (PixelKD, {}),
    "cwd": (Distill, {"losses": {"cwd": 3.0, "pixel_kd": 1.0}}),
    "skd": (Distill, {"losses": {"skd_pairwise": 10.0, "pixel_kd": 1.0}}),
    "cirkd, group_size 4": (CIRKD, {}),
    "cirkd, group_size 8": (CIRKD, {"minibatch": {"group_size": 8}}),
    "cirkd_v2, group_size 4": (CIRKDV2, {}),
}


def stepper(kind: type[Any], settings: dict[str, Any], batches: dict[str, Batch], stride: int) -> Callable[[], None]:
    """One training step: forward of both nets, the losses, backward, the optimizer."""
    nets = {
        "student": NetSettings(encoder="tf_efficientnet_lite0", decoder="deeplabv3", output_stride=stride, width=128),
        "teacher": NetSettings(encoder="tf_efficientnet_lite2", decoder="deeplabv3", output_stride=stride, width=256),
    }
    built = {role: build(own, CLASSES, seed=0) for role, own in nets.items()}
    info = TaskInfo(CLASSES, size=lambda: (CROP, CROP))
    return stepper_of(kind(built, kind.Settings.model_validate(settings), info), batches)


def stepper_of(method: Method, batches: dict[str, Batch]) -> Callable[[], None]:
    """The same for a method that is made."""
    for role in ("student", "teacher"):
        net = method.get_submodule(role)
        net.to(memory_format=torch.channels_last)
        net.precision = "bf16"
    method.train()
    method.get_submodule("teacher").requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=1e-3, momentum=0.9)

    def step() -> None:
        totals = {name: count.float() for name, count in method.counts(batches).items()}
        terms = method(batches, "train", StepContext(0, 10, 0, CPU, "train", totals=totals))
        torch.stack(list(terms.values())).sum().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def main(rounds: int = 5, stride: int = 8) -> None:
    """Print the ratio table."""
    keep_freed_memory()
    data, name = street_data()
    augment = AugmentSettings(crop=(CROP, CROP), scale=(0.5, 1.5), flip=0.5)
    stream = Stream("labeled", [data["train"]], 0, BATCH, {"weak": ViewSettings()}, augment)
    batches = {"labeled": next(iter(stream.batches(0, 1, 1, 0, 1, CPU)))}
    ways = {what: stepper(*settings, batches, stride) for what, settings in METHODS.items()}
    times = in_turns(ways, rounds)
    print(
        f"\n## A step of distillation ({name}, batch {BATCH}, {CROP}x{CROP}, EfficientNet-Lite2 to Lite0, "
        f"stride {stride}, bf16, images ready)\n\n| method | step | times pixel_kd | range |\n| --- | --- | --- | --- |"
    )
    for what, seconds in times.items():
        ratios = [own / base for own, base in zip(seconds, times["pixel_kd"], strict=True)]
        print(
            f"| {what} | {statistics.median(seconds):.3g} s | **{statistics.median(ratios):.2f}** | "
            f"{min(ratios):.2f}-{max(ratios):.2f} |"
        )


if __name__ == "__main__":
    main()
