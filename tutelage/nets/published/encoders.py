"""The published encoders by name: their levels and modules.

Every convolution rounds sizes up, so that images of any size need no padding and give the published grids.
"""

from __future__ import annotations

from torch import nn

import tutelage.torchvision_operators  # noqa: F401  (before segmentation_models_pytorch)
from tutelage.nets.published.mobilenet_v2 import MobileNetV2
from tutelage.nets.published.mobilenet_v3 import MobileNetV3
from tutelage.nets.published.mobilevit import MobileViTXXS
from tutelage.nets.published.resnet import DeepStemResNet

from segmentation_models_pytorch.encoders import get_encoder  # isort: skip

# Channels of the four levels, finest first.
LEVELS: dict[str, tuple[int, int, int, int]] = {
    "cirkd_resnet18": (64, 128, 256, 512),
    "cirkd_resnet101": (256, 512, 1024, 2048),
    "cirkd_mobilenetv2": (24, 32, 96, 320),
    "cirkd_mobilenetv3_small": (16, 24, 48, 576),
    "cirkd_mobilenetv3_large": (24, 40, 112, 960),
    "cirkd_mobilevit_xxs": (24, 48, 64, 320),
    "cirkd_mit_b0": (32, 64, 160, 256),
    "cirkd_mit_b4": (64, 128, 320, 512),
}


def strides(name: str) -> tuple[int, int, int, int]:
    """The strides of the four levels in pixels."""
    return (4, 8, 16, 32) if name.startswith("cirkd_mit") else (4, 8, 8, 8)


def make_encoder(name: str, drop_path: float) -> nn.Module:
    """The encoder with random weights; ``drop_path`` is the Mix Transformers' highest share."""
    kind = name.removeprefix("cirkd_")
    match kind:
        case "resnet18" | "resnet101":
            return DeepStemResNet(kind)
        case "mobilenetv2":
            return MobileNetV2()
        case "mobilenetv3_small" | "mobilenetv3_large":
            return MobileNetV3(kind.removeprefix("mobilenetv3_"))
        case "mobilevit_xxs":
            return MobileViTXXS()
        case _:
            # segmentation-models-pytorch's equals the published one, with tensor names and epsilons.
            encoder = get_encoder(kind, weights=None)
            encoder.reset_drop_path(drop_path)
            net: nn.Module = encoder
            return net
