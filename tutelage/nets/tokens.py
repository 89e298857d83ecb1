"""Tokens of transformers as in TriKD's views: which are kept, and what they attend to.

TriKD (arXiv 2309.12557 and its released code) reads a plain vision transformer without its class token and TinyViT
with a last block that attends over the whole stage.

Dimensions: B batch, C channels, N tokens, h w a grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import tutelage.torchvision_operators  # noqa: F401  (before timm)

from timm.models.tiny_vit import Attention as WindowAttention  # isort: skip
from timm.models.tiny_vit import TinyVitBlock  # isort: skip


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
    """Attention of all tokens (B, N, C) to all, without relative position biases.

    Reuses the layers of TinyViT's windowed attention under their names, without its table of biases.
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
    """TinyViT's block with :class:`GlobalAttention` instead of windows (TriKD's hybrid view), under the same names."""

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
    """TinyViT's windowed attention that gathers its biases in every pass.

    timm caches them in evaluation mode, where updates by a moving average of weights would have no effect and a net
    that once ran with gradients could not be copied.
    """

    def get_attention_biases(self, device: torch.device) -> Tensor:
        """Biases (n, N, N) of all pairs of tokens in a window."""
        biases_nNN: Tensor = self.attention_biases[:, self.attention_bias_idxs]
        return biases_nNN


def keep_no_biases(net: nn.Module) -> None:
    """Make all windowed attention of a TinyViT :class:`FreshBiases`; other nets are unchanged."""
    for module in net.modules():
        if type(module) is WindowAttention:
            module.__class__ = FreshBiases


def attend_globally(net: nn.Module) -> None:
    """Let the last block of a TinyViT attend to all tokens; other nets are unchanged."""
    windowed = [(name, module) for name, module in net.named_modules() if isinstance(module, TinyVitBlock)]
    if windowed:
        name, block = windowed[-1]
        net.set_submodule(name, GlobalBlock(block), strict=True)
