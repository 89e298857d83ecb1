"""Decoders: from an encoder's levels to the embedding, the input of the 1x1 classifier.

All but LR-ASPP, the dual-frequency decoder, DeepLabV2 (which has none), those of adaptation methods (DAFormer, PBAL,
BiSMAP, ProDA) and the heads of published nets are segmentation-models-pytorch's, taken from its public model classes.
Its heads are not used (their convolution is 1x1 or 3x3 and they upsample the logits): here every net but DeepLabV2
ends in one 1x1 classifier on the decoder's own grid. DeepLabV3+ and FPN align corners when they resize, as in that
library, and so does the dual-frequency decoder, as its authors do. Decoders with a global pooling branch and BatchNorm
(deeplabv3*, upernet, dual_frequency) need at least two images per batch in training.

Dimensions: B batch, C channels, D embedding, h w a level's grid.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

import tutelage.torchvision_operators  # noqa: F401  (before segmentation_models_pytorch)
from tutelage.nets.daformer import ContextFusion
from tutelage.nets.deeplabv2 import DILATIONS, LastLevel, dilate_first_blocks
from tutelage.nets.encoders import EncoderSpec, stand_ins
from tutelage.nets.frequency import NECK_SCALES, NECK_WIDTH, DualFrequencyDecoder, MultiLevelNeck
from tutelage.nets.lraspp import LRASPP
from tutelage.nets.multigrid_deeplab import Flavour, MultigridDeepLab
from tutelage.nets.published.encoders import make_encoder
from tutelage.nets.published.heads import Head, make_head
from tutelage.nets.published.simclr import SimCLRResNet
from tutelage.nets.pyramid_attention import PyramidAttention
from tutelage.nets.settings import FrequencySettings, NetSettings

import segmentation_models_pytorch as smp  # isort: skip
from segmentation_models_pytorch.encoders.timm_vit import TimmViTEncoder  # isort: skip

# The stride of the embedding where it does not depend on the encoder's output stride.
_STRIDE = {"deeplabv3plus": 4, "fpn": 4, "upernet": 4, "segformer": 4, "unet": 1, "dpt": 2, "lraspp": 8}

# Decoders of this package, which use a bare encoder.
_FLAVOURS: dict[str, Flavour] = {"deeplabv3plus_pbal": "pbal", "deeplabv3plus_bismap": "bismap"}
_WHOLLY_DILATED = {"proda", *DILATIONS}
_OWN = {"lraspp", "dual_frequency", "daformer", "proda", *DILATIONS, *_FLAVOURS}

# Decoders with their own dropout; the others get a channel dropout at their end if set.
_OWN_DROPOUT = {"deeplabv3", "deeplabv3plus", "pspnet", "fpn", "dpt"}


class Decoder(nn.Module):
    """One of segmentation-models-pytorch's decoders on an encoder's levels.

    ``channels`` is D, ``stride`` the embedding's; ``tail`` follows the decoder before the classifier.
    """

    def __init__(self, body: nn.Module, tail: nn.Module, spec: EncoderSpec, channels: int, stride: int) -> None:
        super().__init__()
        self.body = body
        self.tail = tail
        self.spec = spec
        self.channels = channels
        self.stride = stride

    def forward(self, levels: tuple[Tensor, ...], tokens: tuple[Tensor, ...]) -> Tensor:
        """Embedding (B, D, H / stride, W / stride) of all levels (B, C, h, w) of an image (H, W)."""
        if self.spec.kind == "vit":
            merged = self.body(list(levels), list(tokens) or [None] * len(levels))
        else:
            merged = self.body([*stand_ins(levels, self.spec.strides, self.spec.stand_ins), *levels])
        embedding_BDhw: Tensor = self.tail(merged)
        return embedding_BDhw


class LightDecoder(nn.Module):
    """LR-ASPP on the last level and the first level of stride 8."""

    def __init__(self, spec: EncoderSpec, width: int, dropout: float | None) -> None:
        super().__init__()
        self.low_level = spec.strides.index(8)
        self.body = LRASPP(spec.channels[-1], spec.channels[self.low_level], width)
        self.tail: nn.Module = nn.Identity() if dropout is None else nn.Dropout2d(dropout)
        self.channels = self.body.channels
        self.stride = 8

    def forward(self, levels: tuple[Tensor, ...], tokens: tuple[Tensor, ...]) -> Tensor:
        """Embedding (B, D, H / 8, W / 8) of all levels (B, C, h, w) of an image (H, W)."""
        embedding_BDhw: Tensor = self.tail(self.body(levels[-1], levels[self.low_level]))
        return embedding_BDhw


class FrequencyDecoder(nn.Module):
    """TriKD's dual-frequency decoder on the last four levels of a pyramid, or of a vision transformer's neck.

    Channels of the four levels for ``width`` 256, scaled by other widths: 48, 96, 192 and 320 for a pyramid; 128, 256,
    256 and 512 for one whose last level has 2048 channels or more (ResNet-50 and larger); 48, 96, 192 and 256 after a
    neck of 448 channels for a vision transformer.
    """

    def __init__(self, spec: EncoderSpec, width: int, dropout: float | None, settings: FrequencySettings) -> None:
        super().__init__()
        given: Sequence[int] = spec.channels[-4:]
        self.stride = spec.strides[-4]
        self.neck: MultiLevelNeck | None = None
        kept: tuple[int, ...]
        if spec.kind == "vit":
            scales = NECK_SCALES[settings.neck]
            between = _scaled(NECK_WIDTH, width)
            self.neck = MultiLevelNeck(given, between, scales)
            self.stride = round(self.stride / scales[0])
            given, kept = [between] * 4, (48, 96, 192, 256)
        elif given[-1] >= 2048:
            kept = (128, 256, 256, 512)
        else:
            kept = (48, 96, 192, 320)
        self.body = DualFrequencyDecoder(given, [_scaled(channels, width) for channels in kept], width, settings)
        self.tail = nn.Dropout2d(0.1 if dropout is None else dropout)
        self.channels = width

    def forward(self, levels: tuple[Tensor, ...], tokens: tuple[Tensor, ...]) -> Tensor:
        """Embedding (B, D, H / stride, W / stride) of all levels (B, C, h, w) of an image (H, W)."""
        pyramid: Sequence[Tensor] = levels[-4:]
        if self.neck is not None:
            pyramid = self.neck(pyramid)
        embedding_BDhw: Tensor = self.tail(self.body(pyramid))
        return embedding_BDhw


def _scaled(channels: int, width: int) -> int:
    return max(8, round(channels * width / 256))


AnyDecoder = (
    Decoder | LightDecoder | FrequencyDecoder | LastLevel | ContextFusion | MultigridDeepLab | PyramidAttention | Head
)


def make(settings: NetSettings, spec: EncoderSpec) -> tuple[nn.Module, AnyDecoder]:
    """The bare encoder and the decoder of ``settings``, with random weights."""
    if spec.kind == "published":
        return make_encoder(spec.name, settings.drop_path), make_head(settings, spec.channels)
    if spec.kind == "simclr":
        simclr = SimCLRResNet(spec.name, settings.stride)
        if settings.decoder in _WHOLLY_DILATED:
            dilate_first_blocks(simclr)
        return simclr, _own_decoder(settings, spec)
    arguments: dict[str, Any] = dict(spec.arguments)
    if settings.drop_path and spec.kind != "mit":
        arguments["drop_path_rate"] = settings.drop_path
    if settings.decoder in _OWN:
        if spec.kind == "vit":
            encoder = TimmViTEncoder(spec.name, pretrained=False, output_indices=list(spec.indices), **arguments)
        else:
            encoder = smp.encoders.get_encoder(spec.smp_name, output_stride=settings.stride, **arguments)
        net = spec.unwrap(encoder, settings.drop_path)
        if settings.decoder in _WHOLLY_DILATED:
            dilate_first_blocks(net)
        return net, _own_decoder(settings, spec)
    model_class, own = _model(settings)
    if spec.kind == "timm" and "encoder_output_stride" not in own:
        arguments["output_stride"] = settings.stride
    with warnings.catch_warnings():
        # DPT warns about encoders without prefix tokens; its readout is then a plain projection, as intended.
        warnings.filterwarnings("ignore", message="Encoder does not have prefix tokens")
        model = model_class(spec.smp_name, encoder_weights=None, classes=1, **own, **arguments)
    tail: nn.Module = nn.Identity()
    if settings.decoder == "dpt":
        tail = nn.Sequential(*list(model.segmentation_head.head)[:-1])
        for layer in tail:
            if isinstance(layer, nn.Dropout) and settings.dropout is not None:
                layer.p = settings.dropout
        width = settings.channels
    else:
        width = model.segmentation_head[0].in_channels
    if settings.dropout is not None and settings.decoder not in _OWN_DROPOUT:
        tail = nn.Dropout2d(settings.dropout)
    stride = _STRIDE.get(settings.decoder, settings.stride)
    return spec.unwrap(model.encoder, settings.drop_path), Decoder(model.decoder, tail, spec, width, stride)


def _own_decoder(settings: NetSettings, spec: EncoderSpec) -> AnyDecoder:
    """A decoder of this package, of ``_OWN`` or the published SegFormer head."""
    match settings.decoder:
        case "lraspp":
            return LightDecoder(spec, settings.channels, settings.dropout)
        case "deeplabv2" | "deeplabv2_reduced":
            return LastLevel(spec.channels[-1], spec.strides[-1], settings.dropout)
        case "daformer":
            dropout = 0.1 if settings.dropout is None else settings.dropout
            return ContextFusion(spec.channels, spec.strides, settings.channels, dropout)
        case "deeplabv3plus_pbal" | "deeplabv3plus_bismap":
            dropout = 0.1 if settings.dropout is None else settings.dropout
            flavour = _FLAVOURS[settings.decoder]
            return MultigridDeepLab(flavour, spec.channels, spec.strides, settings.channels, dropout)
        case "proda":
            dropout = 0.1 if settings.dropout is None else settings.dropout
            norm = spec.kind == "simclr"
            return PyramidAttention(spec.channels[-1], settings.channels, spec.strides[-1], dropout, norm)
        case "dual_frequency":
            frequency = settings.frequency or FrequencySettings()
            return FrequencyDecoder(spec, settings.channels, settings.dropout, frequency)
        case _:
            return make_head(settings, spec.channels)


def _model(settings: NetSettings) -> tuple[Any, dict[str, Any]]:
    """The library's model class of a decoder, and its arguments."""
    width = settings.channels
    match settings.decoder:
        case "deeplabv3" | "deeplabv3plus":
            # Rates 6, 12, 18 belong to stride 16 and are doubled at 8 (Chen et al. 2017, section 4.1).
            rates = (6, 12, 18) if settings.stride == 16 else (12, 24, 36)
            dropout = 0.5 if settings.dropout is None else settings.dropout
            return smp.DeepLabV3 if settings.decoder == "deeplabv3" else smp.DeepLabV3Plus, {
                "encoder_output_stride": settings.stride,
                "decoder_channels": width,
                "decoder_atrous_rates": rates,
                "decoder_aspp_dropout": dropout,
            }
        case "pspnet":
            dropout = 0.2 if settings.dropout is None else settings.dropout
            return smp.PSPNet, {"encoder_depth": 5, "psp_out_channels": width, "psp_dropout": dropout}
        case "fpn":
            dropout = 0.2 if settings.dropout is None else settings.dropout
            return smp.FPN, {
                "decoder_pyramid_channels": width,
                "decoder_segmentation_channels": width // 2,
                "decoder_dropout": dropout,
            }
        case "upernet":
            return smp.UPerNet, {"decoder_channels": width}
        case "segformer":
            return smp.Segformer, {"decoder_segmentation_channels": width}
        case "unet":
            return smp.Unet, {"decoder_channels": tuple(width >> block for block in range(5))}
        case _:
            return smp.DPT, {
                "encoder_output_indices": None,
                "decoder_fusion_channels": width,
                "decoder_intermediate_channels": (width, 2 * width, 4 * width, 4 * width),
            }
