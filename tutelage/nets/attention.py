"""Attention logits of all tokens to all, before the softmax, as distilled into TriKD's third net.

The logits are computed from the tapped output of the last block's ``qkv`` layer, so that the net keeps using fused
attention, without cost if they are not used. Source: TriKD (arXiv 2309.12557 and its released code).

Dimensions: B batch, N tokens, n heads, d key channels of one head, X channels of a ``qkv`` layer, h w a grid.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from tutelage.errors import TutelageError
from tutelage.nets.devices import without_autocast
from tutelage.nets.segmentor import Prediction, Segmentor
from tutelage.nets.tokens import GlobalAttention

# Order of a ``qkv`` layer's channels: all queries before all keys, or the three parts of each head together.
Layout = Literal["by_part", "by_head"]


@dataclass(frozen=True)
class AttentionTap:
    """Location of a segmentor's last attention: tap ``name``, then call :meth:`logits`.

    ``net.tap((*net.taps, tap.name))`` makes the net record it. Holds no tensors and no module, so that it also works
    for copies and exported forms of the net.
    """

    name: str
    """The submodule whose output is recorded: the ``qkv`` layer of the last block."""
    heads: int
    """n, the number of attention heads."""
    key_dim: int
    """d, channels of a query and of a key."""
    scale: float
    """Factor of the products of queries and keys: 1 / sqrt(d)."""
    layout: Layout
    """Order of the layer's channels."""
    prefix: int
    """Tokens before the patches (class tokens), excluded from the logits."""
    stride: int
    """Pixels per token."""
    multiple: int
    """The net pads images to multiples of this, in pixels."""

    def logits(self, taps: Mapping[str, Tensor]) -> Tensor:
        """Scaled products of queries and keys before the softmax (B, n, N, N) in float32, tokens row by row.

        Rows are queries, columns keys; N covers the padded image. ``taps`` are those of a Prediction. Raises
        TutelageError if ``name`` was not tapped.
        """
        if self.name not in taps:
            raise TutelageError(
                "invalid-tap",
                f"submodule {self.name!r} is not tapped",
                "call net.tap((*net.taps, tap.name)) before the forward pass",
            )
        return attention_logits(
            taps[self.name][:, self.prefix :],
            heads=self.heads,
            key_dim=self.key_dim,
            scale=self.scale,
            layout=self.layout,
        )

    def grid(self, prediction: Prediction) -> tuple[int, int]:
        """Rows and columns (h, w) of the tokens, h * w = N, over the padded image of this prediction."""
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
    """Location of the last attention of all tokens to all in ``net``; None for nets without one.

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
            "encoder-unsupported",
            f"cannot read attention logits of encoder {spec.name}: it changes queries and keys after its qkv layer",
            "use an encoder such as deit_base_distilled_patch16_384, vit_small_patch16_224 or tiny_vit_11m_224",
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
