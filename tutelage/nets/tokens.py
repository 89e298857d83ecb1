"""Tokens of transformers as TriKD's views use them: which are kept, what they attend to, and their attention logits.

TriKD (arXiv 2309.12557 and its released code) reads a plain vision transformer without its class token and TinyViT
with a last block that attends over the whole stage; a third net imitates attention before the softmax. The logits are
computed from the tapped output of the block's ``qkv`` layer, so that the net itself goes on using fused attention and
pays nothing where nobody asks for them.

Dimensions: B batch, C channels, N tokens, n heads, d key channels of one head, h w a grid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import tutelage.torchvision_operators  # noqa: F401  (before timm)
from tutelage.errors import TutelageError
from tutelage.nets.devices import without_autocast

from timm.models.tiny_vit import Attention as WindowAttention  # isort: skip
from timm.models.tiny_vit import TinyVitBlock  # isort: skip

if TYPE_CHECKING:
    from tutelage.nets.segmentor import Prediction, Segmentor

# How one ``qkv`` layer's channels are ordered: all queries before all keys, or each head's three parts together.
Layout = Literal["by_part", "by_head"]


# Reading


def patch_levels(encoder: Any, image_B3HW: Tensor, indices: Sequence[int]) -> tuple[Tensor, ...]:
    """Patch tokens after the blocks ``indices`` of timm's plain vision transformer as maps (B, C, h, w).

    Class and other prefix tokens are given positions and then dropped before the first block; there is no final norm
    (TriKD's ViT view). Image sides must be multiples of the patch.
    """
    patches_BhwC = encoder.patch_embed(image_B3HW)
    grid = patches_BhwC.shape[1:3]
    tokens_BNC = encoder.norm_pre(encoder.patch_drop(encoder._pos_embed(patches_BhwC)))
    tokens_BNC = tokens_BNC[:, encoder.num_prefix_tokens :]
    levels = []
    for number, block in enumerate(encoder.blocks):
        tokens_BNC = block(tokens_BNC)
        if number in indices:
            levels.append(tokens_BNC.transpose(1, 2).unflatten(2, grid).contiguous())
    return tuple(levels)


# TinyViT


class GlobalAttention(nn.Module):
    """Attention of all tokens (B, N, C) to all, without a bias for their relative positions.

    Takes over the layers of TinyViT's windowed attention under their names; its table of biases is left behind.
    """

    def __init__(self, windowed: WindowAttention) -> None:
        super().__init__()
        self.num_heads, self.scale = windowed.num_heads, windowed.scale
        self.key_dim, self.val_dim = windowed.key_dim, windowed.val_dim
        self.norm, self.qkv, self.proj = windowed.norm, windowed.qkv, windowed.proj

    def forward(self, tokens_BNC: Tensor) -> Tensor:
        """Attended tokens (B, N, C)."""
        qkv_BNnd = self.qkv(self.norm(tokens_BNC)).unflatten(2, (self.num_heads, -1))
        query, key, value = qkv_BNnd.transpose(1, 2).split([self.key_dim, self.key_dim, self.val_dim], dim=3)
        attended_BnNd = F.scaled_dot_product_attention(query, key, value)
        attended_BNC: Tensor = self.proj(attended_BnNd.transpose(1, 2).flatten(2))
        return attended_BNC


class GlobalBlock(nn.Module):
    """TinyViT's block with :class:`GlobalAttention` where windows were (TriKD's hybrid view), under the same names."""

    def __init__(self, windowed: TinyVitBlock) -> None:
        super().__init__()
        self.attn = GlobalAttention(windowed.attn)
        self.drop_path1 = windowed.drop_path1
        self.mlp = windowed.mlp
        self.drop_path2 = windowed.drop_path2
        self.local_conv = windowed.local_conv

    def forward(self, map_BhwC: Tensor) -> Tensor:
        """Map (B, h, w, C) of the same size, of any size."""
        attended_BNC = self.attn(map_BhwC.flatten(1, 2))
        map_BhwC = map_BhwC + self.drop_path1(attended_BNC.unflatten(1, map_BhwC.shape[1:3]))
        map_BhwC = self.local_conv(map_BhwC.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        mixed_BhwC: Tensor = map_BhwC + self.drop_path2(self.mlp(map_BhwC))
        return mixed_BhwC


class FreshBiases(WindowAttention):
    """TinyViT's windowed attention that looks its biases up anew at every pass.

    timm keeps them between passes in evaluation mode, where a moving average of weights would go unnoticed and a net
    that once ran with gradients could not be copied.
    """

    def get_attention_biases(self, device: torch.device) -> Tensor:
        """Biases (n, N, N) of all pairs of tokens in a window."""
        biases_nNN: Tensor = self.attention_biases[:, self.attention_bias_idxs]
        return biases_nNN


def keep_no_biases(net: nn.Module) -> None:
    """Make all windowed attention of a TinyViT :class:`FreshBiases`; other nets stay as they are."""
    for module in net.modules():
        if type(module) is WindowAttention:
            module.__class__ = FreshBiases


def attend_globally(net: nn.Module) -> None:
    """Let the last block of a TinyViT attend over all tokens; other nets stay as they are."""
    windowed = [(name, module) for name, module in net.named_modules() if isinstance(module, TinyVitBlock)]
    if windowed:
        name, block = windowed[-1]
        net.set_submodule(name, GlobalBlock(block), strict=True)


# Attention logits


@dataclass(frozen=True)
class AttentionTap:
    """Where a segmentor's last attention can be read: tap ``name``, then ask for :meth:`logits`.

    ``net.tap((*net.taps, tap.name))`` makes the net record it. Holds no tensors and no module, so that it also serves
    copies and exported forms of the net.
    """

    name: str
    """The submodule whose output is recorded: the ``qkv`` layer of the last block."""
    heads: int
    """n, the number of attention heads."""
    key_dim: int
    """d, channels of a query and of a key."""
    scale: float
    """What products of queries and keys are multiplied by: 1 / sqrt(d)."""
    layout: Layout
    """How the layer's channels are ordered."""
    prefix: int
    """Tokens before the patches (class tokens); they are left out of the logits."""
    stride: int
    """Pixels from one token to the next."""
    multiple: int
    """What the net fills images up to a multiple of, in pixels."""

    def logits(self, taps: Mapping[str, Tensor]) -> Tensor:
        """Scaled products of queries and keys before the softmax (B, n, N, N) in float32, tokens row by row.

        Rows are queries, columns keys; N covers the filled-up image. ``taps`` are those of a Prediction. Raises
        TutelageError where ``name`` was not tapped.
        """
        if self.name not in taps:
            raise TutelageError(
                f"attention was asked for, but {self.name!r} was not recorded", "net.tap((*net.taps, tap.name)) first"
            )
        return attention_logits(
            taps[self.name][:, self.prefix :],
            heads=self.heads,
            key_dim=self.key_dim,
            scale=self.scale,
            layout=self.layout,
        )

    def grid(self, prediction: Prediction) -> tuple[int, int]:
        """Rows and columns (h, w) of the tokens, h * w = N, over the filled-up image of this prediction."""
        cells = self.multiple // self.stride
        height, width = (-(-side // cells) * cells for side in prediction.features[-1].shape[-2:])
        return height, width


def attention_logits(qkv_BNX: Tensor, *, heads: int, key_dim: int, scale: float, layout: Layout) -> Tensor:
    """Scaled products of queries and keys (B, n, N, N), float32, from a ``qkv`` layer's output (B, N, X).

    X is n * (d + d + value channels); ``by_part`` orders it (part, head, channel), ``by_head`` (head, part, channel).
    TriKD's S = (q k^T) / sqrt(d).
    """
    with without_autocast(qkv_BNX.device):
        qkv_BNX = qkv_BNX.float()
        shape = (*qkv_BNX.shape[:2], heads, -1)
        if layout == "by_part":
            query, key = (qkv_BNX[..., part * heads * key_dim :][..., : heads * key_dim] for part in (0, 1))
            query, key = query.reshape(shape), key.reshape(shape)
        else:
            by_head_BNnX = qkv_BNX.reshape(shape)
            query, key = by_head_BNnX[..., :key_dim], by_head_BNnX[..., key_dim : 2 * key_dim]
        return torch.matmul((query * scale).transpose(1, 2), key.permute(0, 2, 3, 1))


def attention_tap(net: Segmentor) -> AttentionTap | None:
    """Where the last attention of all tokens to all can be read in ``net``; None for nets that have none.

    Plain vision transformers and TinyViTs with a last :class:`GlobalBlock` (decoder ``dual_frequency``) have one;
    ConvNets and transformers with windows or reduced keys have none. Raises TutelageError for attention that products
    of the ``qkv`` layer do not describe (normalised queries, rotary positions).
    """
    spec = net.spec
    prefix = 0
    if spec.kind == "vit":
        name = f"blocks.{spec.indices[-1]}.attn"
        attention = net.encoder.get_submodule(name)
        layout: Layout = "by_part"
        if not spec.view:
            prefix = int(net.encoder.num_prefix_tokens)  # type: ignore[arg-type]
    else:
        found = [(name, module) for name, module in net.encoder.named_modules() if isinstance(module, GlobalAttention)]
        if not found:
            return None
        name, attention = found[-1]
        layout = "by_head"
    plain = all(isinstance(getattr(attention, part, None), (nn.Identity, type(None))) for part in ("q_norm", "k_norm"))
    if not plain or not isinstance(getattr(attention, "qkv", None), nn.Linear) or "Rope" in type(attention).__name__:
        raise TutelageError(
            f"the attention logits of encoder {spec.name} cannot be read: it changes queries and keys after its qkv "
            "layer",
            "take an encoder such as deit_base_distilled_patch16_384, vit_small_patch16_224 or tiny_vit_11m_224",
        )
    key_dim = int(getattr(attention, "key_dim", 0) or attention.head_dim)  # type: ignore[arg-type]
    return AttentionTap(
        name=f"encoder.{name}.qkv",
        heads=int(attention.num_heads),  # type: ignore[arg-type]
        key_dim=key_dim,
        scale=float(attention.scale),  # type: ignore[arg-type]
        layout=layout,
        prefix=prefix,
        stride=spec.strides[-1],
        multiple=spec.multiple,
    )


def require_attention(net: Segmentor, role: str) -> AttentionTap:
    """:func:`attention_tap` of a net that must have one; raises TutelageError, naming its ``role``, otherwise."""
    tap = attention_tap(net)
    if tap is None:
        raise TutelageError(
            f"net {role} ({net.settings.encoder} + {net.settings.decoder}) has no attention of all tokens to all",
            "take a plain vision transformer (deit_base_distilled_patch16_384, vit_small_patch16_224), or "
            "tiny_vit_11m_224 or tiny_vit_21m_512 with decoder: dual_frequency",
        )
    return tap
