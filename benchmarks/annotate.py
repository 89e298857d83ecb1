"""Pseudo labels of a folder: images per second of reading, net, writing and checksums, against the net's forward alone.

``python -m benchmarks.annotate [--small]``: torch and OpenMP on one thread; both ways in turns, on the same images.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.common import in_turns, ratio_line, street_data
from tutelage.annotate.policies import Argmax, ClassQuantile, Policy
from tutelage.annotate.pseudo_labels import annotate
from tutelage.data.dataset import Dataset
from tutelage.evaluation.protocol import Protocol
from tutelage.nets.build import build
from tutelage.nets.segmentor import Segmentor
from tutelage.nets.settings import NetSettings

CPU = torch.device("cpu")
NETS = {
    "EfficientNet-Lite0, DeepLabV3+ (width 64)": NetSettings(
        encoder="tf_efficientnet_lite0", decoder="deeplabv3plus", width=64
    ),
    "MobileNetV3 small 0.5, LR-ASPP (width 32)": NetSettings(
        encoder="mobilenetv3_small_050", decoder="lraspp", width=32
    ),
}
HEADER = "| what | annotate | forward alone | time ratio | range |\n| --- | --- | --- | --- | --- |"


@torch.no_grad()
def forward_alone(net: Segmentor, images: list[torch.Tensor]) -> None:
    """The net over images that lie in memory, as floats, in its memory layout; its logits are thrown away."""
    for image_13HW in images:
        net(image_13HW)


def labelled(net: Segmentor, dataset: Dataset, policy: Policy) -> None:
    """All of it, into a folder that is removed again; the checksums are there in the end."""
    root = Path(tempfile.mkdtemp(prefix="tutelage-bench-annotate-"))
    try:
        written = annotate(net, dataset, root, policy=policy, device=CPU, protocol=Protocol(), producer="benchmark")
        assert written is not None
        assert all(written.files[path] for path in written.files if path.suffix == ".png")
    finally:
        shutil.rmtree(root)


def main(rounds: int = 5, count: int = 12) -> None:
    """Print the table."""
    if "--small" in sys.argv:
        rounds, count = 1, 2
    torch.set_num_threads(1)
    data, name = street_data()
    dataset = data["train"].subset(range(count)).without_labels()
    images = [
        torch.from_numpy(dataset.image(index).copy())
        .permute(2, 0, 1)[None]
        .float()
        .div_(255)
        .contiguous(memory_format=torch.channels_last)
        for index in range(count)
    ]
    size = tuple(images[0].shape[2:])
    print(f"\n## Pseudo labels of a folder ({name}, {size[0]}x{size[1]}, {count} images; seconds per image)\n")
    print(f"One thread of torch; reading and writing have threads of their own.\n\n{HEADER}")
    classes = len(dataset.classes)
    for title, settings in NETS.items():
        net = build(settings, classes, seed=0).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        with net.inferring("fp32"):
            ways = {
                "bare": lambda net=net: forward_alone(net, images),
                "argmax": lambda net=net: labelled(net, dataset, Argmax(classes)),
                "quantile": lambda net=net: labelled(net, dataset, ClassQuantile(classes, 0.5, 0.9)),
            }
            times = {way: [spent / count for spent in found] for way, found in in_turns(ways, rounds).items()}
        print(ratio_line(f"{title}: argmax", times["argmax"], times["bare"]))
        twice = [2 * spent for spent in times["bare"]]
        print(ratio_line(f"{title}: class_quantile, against two forwards", times["quantile"], twice), flush=True)
        shares = sorted(bare / whole for bare, whole in zip(times["bare"], times["argmax"], strict=True))
        print(f"| {title}: share of the bare forward's images/s (argmax) | | | {shares[len(shares) // 2]:.2f} | |")


if __name__ == "__main__":
    main()
