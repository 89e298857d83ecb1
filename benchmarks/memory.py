"""Peak resident memory of training, and of predicting an image of 10,000 x 10,000 pixels."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.common import in_process
from tutelage.engine.meter import peak_memory

SIDES = (1_000, 10_000)
CPU = torch.device("cpu")


def predict(side: int) -> None:
    """In a process of its own: predict one image with 512-pixel windows, print the peak."""
    from tutelage.deploy.model import Model
    from tutelage.deploy.predict import predict_files
    from tutelage.evaluation.protocol import Protocol
    from tutelage.nets.build import build
    from tutelage.nets.settings import NetSettings

    net = build(NetSettings(encoder="tf_efficientnet_lite0", decoder="lraspp"), 19, seed=0)
    classes = tuple(f"class {index}" for index in range(19))
    palette = tuple((index * 13, 255 - index * 13, 128) for index in range(19))
    protocol = Protocol(kind="sliding", window=(512, 512), precision="bf16")
    net.eval()
    model = Model(net, classes, palette, CPU, protocol, "bf16")
    before = peak_memory(CPU)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "large.jpg"
        tile = np.random.default_rng(0).integers(0, 256, (500, 500, 3), dtype=np.uint8)
        image = Image.new("RGB", (side, side))
        for top in range(0, side, 500):
            for left in range(0, side, 500):
                image.paste(Image.fromarray(tile), (left, top))
        image.save(path)
        del image
        predict_files(model, [path], Path(folder) / "out", write={"palette"})
    print(json.dumps({"before_mib": before, "peak_mib": peak_memory(CPU)}))


def main() -> None:
    """Print both peaks."""
    print("\n## Peak resident memory\n\n| what | MiB |\n| --- | --- |")
    trained = in_process("benchmarks.ours", "--steps", "10", "--warm-up", "2")
    print(f"| training EfficientNet-Lite0 DeepLabV3+, batch 8, 256x256, bf16 | {trained['peak_rss_mib']:.0f} |")
    for side in SIDES:
        found = in_process("benchmarks.memory", str(side))
        print(
            f"| predicting {side}x{side}, windows of 512x512, 19 classes "
            f"({found['before_mib']:.0f} before the image was made) | {found['peak_mib']:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    predict(int(sys.argv[1]))
