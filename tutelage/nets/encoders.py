"""Encoders: what timm's nets give, at which strides, and how to read it.

The module that a :class:`~tutelage.nets.segmentor.Segmentor` holds as ``encoder`` is timm's own (so its parameters
keep timm's names); an :class:`EncoderSpec` says how to call it. Channels, strides and the multiple that image sides
must have are measured once per encoder with a shape-only pass on torch's meta device, because what nets state and
what they do differ (some need multiples of 64, some accept one image size only).
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

import tutelage.torchvision_operators  # noqa: F401  (before timm)
from tutelage.errors import TutelageError
from tutelage.nets import tokens
from tutelage.nets.multigrid_deeplab import set_multigrid
from tutelage.nets.published.encoders import LEVELS as PUBLISHED_LEVELS
from tutelage.nets.published.encoders import strides as published_strides
from tutelage.nets.published.simclr import CHANNELS as SIMCLR_CHANNELS
from tutelage.nets.published.simclr import NAMES as SIMCLR

import timm  # isort: skip
from timm.layers import DropPath  # isort: skip
from timm.models.vision_transformer import VisionTransformer  # isort: skip
from segmentation_models_pytorch.encoders import encoders as smp_encoders  # isort: skip
from segmentation_models_pytorch.encoders import get_encoder  # isort: skip

MEAN_STD: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    # BGR in 0..255 minus its mean, in terms of RGB in 0..1; the net reverses the channels afterwards.
    "caffe": ((122.67891434 / 255, 116.66876762 / 255, 104.00698793 / 255), (1 / 255, 1 / 255, 1 / 255)),
}

# ResNets of bottlenecks whose last stage may be dilated as a multi-grid: `resnet101_multigrid`.
MULTIGRID = tuple(f"resnet{depth}_multigrid" for depth in (50, 101, 152))

MIX_TRANSFORMERS = tuple(f"mit_b{size}" for size in range(6))

# Arguments that allow any image size in timm's fixed-size transformers; they differ by family.
_ANY_SIZE: tuple[dict[str, Any], ...] = ({}, {"strict_img_size": False}, {"dynamic_img_size": True})


@dataclass(frozen=True)
class EncoderSpec:
    """How to build and read one encoder.

    ``channels`` and ``strides`` describe the levels, finest first; image sides must be multiples of ``multiple``.
    """

    name: str
    kind: Literal["timm", "mit", "vit", "published", "simclr"]
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    multiple: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    # Whether the normalised channels are passed as blue, green, red.
    bgr: bool = False
    # Placeholders that smp's decoders expect before the first level: one per power of two finer than it.
    stand_ins: int = 0
    channels_last: bool = False
    indices: tuple[int, ...] = ()
    tokens: bool = False
    # Read as TriKD's views: vision transformers without prefix tokens, a TinyViT with a global last block.
    view: bool = False
    # Whether the dilations of the last stage increase from block to block.
    multigrid: bool = False
    arguments: dict[str, Any] = field(default_factory=dict)

    @property
    def smp_name(self) -> str:
        """The encoder's name in segmentation-models-pytorch."""
        return self.name if self.kind == "mit" else f"tu-{self.name}"

    def unwrap(self, smp_encoder: Any, drop_path: float) -> nn.Module:
        """The bare net of segmentation-models-pytorch's encoder, without the parts that features do not use."""
        if self.kind == "mit":
            smp_encoder.reset_drop_path(drop_path)
        elif self.kind == "vit":
            smp_encoder.model.prune_intermediate_layers(list(self.indices), prune_norm=True, prune_head=True)
        net: nn.Module = smp_encoder if self.kind == "mit" else smp_encoder.model
        tokens.keep_no_biases(net)
        if self.multigrid:
            set_multigrid(net)
        if self.view:
            tokens.attend_globally(net)
        if not drop_path:
            for module in net.modules():  # Swin and the Mix Transformers have 0.1 by default
                if isinstance(module, DropPath):
                    module.drop_prob = 0.0
        return net

    def read(self, encoder: Any, image: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Levels (B, C, H / stride, W / stride), finest first, and prefix tokens (B, N, C) of vision transformers."""
        if self.kind == "vit" and self.view:
            return tokens.patch_levels(encoder, image, self.indices), ()
        if self.kind == "vit":
            found = encoder.forward_intermediates(
                image, indices=list(self.indices), intermediates_only=True, return_prefix_tokens=self.tokens
            )
            if self.tokens:
                return tuple(level for level, _ in found), tuple(tokens for _, tokens in found)
            return tuple(found), ()
        levels = encoder(image)[-len(self.channels) :]  # the Mix Transformers return the image and a placeholder first
        if self.channels_last:
            levels = [level.permute(0, 3, 1, 2).contiguous() for level in levels]
        return tuple(levels), ()


def find_encoder(name: str, stride: int, *, plain: bool = False, view: bool = False) -> EncoderSpec:
    """The spec of encoder ``name`` at output stride ``stride``; ``plain``: a plain vision transformer.

    ``view``: a plain vision transformer or a pyramid of at least four levels, whichever ``name`` is, read as TriKD's
    views: prefix tokens are dropped before the first block, a TinyViT's last block attends to all tokens. Raises
    TutelageError for unknown names, and for encoders that cannot be dilated to ``stride``, need one fixed image size,
    or lack the levels that the decoder reads.
    """
    check_name(name)
    bare, _, tag = name.partition(".")
    if bare in MULTIGRID:
        if plain:
            raise _not_plain(name)
        dilated = bare.removesuffix("_multigrid") + (f".{tag}" if tag else "")
        return replace(find_encoder(dilated, stride, view=view), multigrid=True)
    if view:
        return _view(name, stride)
    if name in PUBLISHED_LEVELS:  # its settings allow only the papers' decoders and strides
        return EncoderSpec(
            name, "published", PUBLISHED_LEVELS[name], published_strides(name), 1, *MEAN_STD["caffe"], bgr=True
        )
    if name in SIMCLR:  # its settings allow only decoders of this package
        strides = tuple(min(finest, stride) for finest in (4, 8, 16, 32))
        return EncoderSpec(name, "simclr", SIMCLR_CHANNELS, strides, 1, *MEAN_STD["none"])
    if name in MIX_TRANSFORMERS:
        if plain:
            raise _not_plain(name)
        if stride != 32:
            raise _not_dilatable(name, stride)
        channels = tuple(smp_encoders[name]["params"]["out_channels"][2:])
        return EncoderSpec(name, "mit", channels, (4, 8, 16, 32), 32, *MEAN_STD["imagenet"], stand_ins=2)
    return _plain(name) if plain else _pyramid(name, stride)


def _view(name: str, stride: int) -> EncoderSpec:
    plain = name not in MIX_TRANSFORMERS and _is_vision_transformer(name)
    spec = find_encoder(name, stride, plain=plain)
    if len(spec.channels) < 4:
        raise TutelageError(
            "encoder-unsupported",
            f"decoder dual_frequency needs four levels; encoder {name} has {len(spec.channels)}",
            "use an encoder such as resnet18, tf_efficientnet_lite0, tiny_vit_11m_224 or deit_small_patch16_224",
        )
    if not plain:
        return replace(spec, view=True)
    # A level at half the tokens' grid must cover the image.
    return replace(spec, view=True, tokens=False, multiple=2 * spec.strides[-1])


@lru_cache(maxsize=64)
def _is_vision_transformer(name: str) -> bool:
    return isinstance(_on_meta(partial(timm.create_model, name)), VisionTransformer)


def check_name(name: str) -> None:
    bare = name.split(".")[0]
    if (
        bare in MIX_TRANSFORMERS
        or bare in MULTIGRID
        or name in PUBLISHED_LEVELS
        or name in SIMCLR
        or (":" not in name and timm.is_model(bare))
    ):
        return
    if ":" in name:
        raise TutelageError(
            "unknown-encoder",
            f"encoder must be a name, not an address: {name!r}",
            "name a timm model; give the path of downloaded weights under weights:",
        )
    known = [*timm.list_models(), *MIX_TRANSFORMERS, *MULTIGRID, *PUBLISHED_LEVELS, *SIMCLR]
    near = difflib.get_close_matches(bare, known, n=4, cutoff=0.5)
    raise TutelageError(
        "unknown-encoder",
        f"unknown encoder {name!r} (timm {timm.__version__})",
        f"did you mean {', '.join(near)}?"
        if near
        else "list all names with: python -c 'import timm; print(timm.list_models())'",
    )


def _not_dilatable(name: str, stride: int) -> TutelageError:
    return TutelageError(
        "encoder-unsupported",
        f"encoder {name} cannot be dilated to output stride {stride}",
        "set output_stride: 32 with decoder lraspp, pspnet, fpn, upernet, segformer or unet, or use an encoder that "
        "can be dilated: resnet, tf_efficientnet, mobilenetv3, mobilenetv4, regnet, convnext",
    )


def _not_plain(name: str) -> TutelageError:
    return TutelageError(
        "encoder-unsupported",
        f"encoder {name} is not a plain vision transformer that accepts any image size",
        "use an encoder such as vit_small_patch16_224, deit_small_patch16_224 or vit_small_patch14_dinov2, "
        "or, for a pyramid encoder, decoder fpn, upernet or segformer",
    )


def _stated(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The mean and deviation that timm states for an encoder; ImageNet's if it states none."""
    stated = timm.models.get_pretrained_cfg(name, allow_unregistered=True)
    return (tuple(stated.mean), tuple(stated.std)) if stated is not None else MEAN_STD["imagenet"]


@lru_cache(maxsize=256)
def _pyramid(name: str, stride: int) -> EncoderSpec:
    refusal: Exception | None = None
    for arguments in _ANY_SIZE:
        try:
            net = _on_meta(partial(get_encoder, f"tu-{name}", output_stride=stride, **arguments))
            widths = list(net.out_channels)
            stand_ins = len(widths) - len(net.model.feature_info.channels())
            return _measure(name, net, stride, stand_ins, arguments)
        except TutelageError:
            raise
        except ValueError as error:
            if "downsampling pattern" in str(error):
                raise TutelageError(
                    "encoder-unsupported",
                    f"encoder {name} has no pyramid of strides 4, 8, 16 and 32",
                    "use decoder dpt or dual_frequency for a plain vision transformer (vit_*, deit_*), "
                    "or another encoder",
                ) from error
            refusal = error
        except (TypeError, AssertionError, NotImplementedError, RuntimeError, IndexError) as error:
            if stride != 32 and (
                isinstance(error, (AssertionError, NotImplementedError)) or "output_stride" in str(error)
            ):
                raise _not_dilatable(name, stride) from error
            refusal = refusal or error
    raise TutelageError(
        "encoder-unsupported",
        f"encoder {name} does not accept images of any size ({refusal})",
        "use an encoder without a fixed image size, e.g. a resnet, efficientnet, convnext, pvt_v2 or swin",
    ) from refusal


def _measure(name: str, net: Any, stride: int, stand_ins: int, arguments: dict[str, Any]) -> EncoderSpec:
    """Run the meta net on two sizes and read channels, strides and the multiple off its levels."""
    channels_last = str(getattr(net.model, "output_fmt", "NCHW")).endswith("NHWC")
    for multiple in (stride, 2 * stride):
        height, width = 3 * multiple, 5 * multiple  # odd, to reveal the coarsest level's requirements
        levels = net(torch.empty(1, 3, height, width, device="meta"))[stand_ins:]
        strides = tuple(height // level.shape[-2] for level in levels)
        even = all(
            level.shape[-2] * s == height and level.shape[-1] * s == width
            for level, s in zip(levels, strides, strict=True)
        )
        if even:
            break
    else:
        raise RuntimeError(f"its levels have sizes {[tuple(level.shape[-2:]) for level in levels]}")
    if strides[-1] != stride:
        raise _not_dilatable(name, stride)
    channels = tuple(level.shape[1] for level in levels)
    return EncoderSpec(
        name,
        "timm",
        channels,
        strides,
        multiple,
        *_stated(name),
        stand_ins=stand_ins,
        channels_last=channels_last,
        arguments=arguments,
    )


@lru_cache(maxsize=64)
def _plain(name: str) -> EncoderSpec:
    arguments: dict[str, Any] = {"dynamic_img_size": True, "num_classes": 0}
    try:
        net = _on_meta(partial(timm.create_model, name, **arguments))
        reductions = {info["reduction"] for info in net.feature_info}
        if reductions == {14}:
            # DPT fuses by doubling, so a token must cover 8, 16 or 32 pixels; patch weights are resampled.
            arguments["patch_size"] = 16
            net = _on_meta(partial(timm.create_model, name, **arguments))
            reductions = {info["reduction"] for info in net.feature_info}
        depth = len(net.blocks)
        indices = tuple(depth * part // 4 - 1 for part in (1, 2, 3, 4))
        spec = EncoderSpec(
            name,
            "vit",
            tuple(net.feature_info[i]["num_chs"] for i in indices),
            tuple(net.feature_info[i]["reduction"] for i in indices),
            32,
            *_stated(name),
            indices=indices,
            tokens=net.num_prefix_tokens > 0,
            arguments=arguments,
        )
        levels, _ = spec.read(net, torch.empty(1, 3, 64, 96, device="meta"))
    except (TypeError, AttributeError, AssertionError, RuntimeError, KeyError) as error:
        raise _not_plain(name) from error
    if len(reductions) != 1 or any(level.shape[-2] * s != 64 for level, s in zip(levels, spec.strides, strict=True)):
        raise _not_plain(name)
    return spec


def _on_meta(make: Callable[[], Any]) -> Any:
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")
        return make().eval()


def stand_ins(levels: Sequence[Tensor], strides: Sequence[int], count: int) -> list[Tensor]:
    """Zero-channel maps for the ``count`` strides 1, 2 before the first level; smp's decoders read their sizes."""
    batch, _, height, width = levels[0].shape
    image = (height * strides[0], width * strides[0])
    return [levels[0].new_empty((batch, 0, image[0] >> i, image[1] >> i)) for i in range(count)]
