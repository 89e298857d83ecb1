"""Scoring the test images, against the plain loop with torchmetrics: the same weights, from files to mIoU."""

from __future__ import annotations

import torch

from benchmarks.common import HEADER, in_turns, ratio_line, street_data
from benchmarks.plain import MEAN_STD, make_net, score
from tutelage.data.dataset import Dataset
from tutelage.evaluation.evaluate import evaluate
from tutelage.evaluation.protocol import Protocol
from tutelage.nets.build import build
from tutelage.nets.settings import NetSettings


def main(rounds: int = 3) -> None:
    """Print the ratio table."""
    data, name = street_data()
    test: Dataset = data["test"]
    classes = len(test.classes)
    print(f"\n## Evaluation of {len(test)} test images, from files to mIoU ({name})\n")
    print(f"EfficientNet-Lite0 DeepLabV3+, whole images.\n\n{HEADER}")
    settings = NetSettings(encoder="tf_efficientnet_lite0", decoder="deeplabv3plus", weights="packaged")
    ours = build(settings, classes, seed=0).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    theirs = make_net("tf_efficientnet_lite0", 256, classes)
    mean, std = MEAN_STD["lite"]

    def run(precision: str) -> None:
        with ours.inferring(precision):
            evaluate(ours, test, Protocol(), device=torch.device("cpu"))

    ways = {
        "theirs": lambda: score(theirs, test, mean, std, classes),
        "bf16": lambda: run("bf16"),
        "fp32": lambda: run("fp32"),
    }
    times = in_turns(ways, rounds, warm_up=0)
    print(ratio_line("bf16", times["theirs"], times["bf16"]))
    print(ratio_line("fp32", times["theirs"], times["fp32"]), flush=True)


if __name__ == "__main__":
    main()
