"""Tokens of transformers: what TriKD's views keep, and global attention."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tutelage.nets.build import build
from tutelage.nets.segmentor import Segmentor
from tutelage.nets.settings import NetSettings
from tutelage.nets.tokens import (
    FreshBiases,
    GlobalAttention,
    GlobalBlock,
    attend_globally,
)
from tutelage.nets.weights import load_weights

import timm  # isort: skip
from timm.models.tiny_vit import TinyVit  # isort: skip


def net_of(encoder: str, decoder: str = "dual_frequency") -> Segmentor:
    return build(NetSettings(encoder=encoder, decoder=decoder, width=32), 3, seed=0)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def hybrid() -> Segmentor:
    return net_of("tiny_vit_5m_224")


@pytest.fixture(scope="module")
def vit() -> Segmentor:
    return net_of("deit_tiny_distilled_patch16_224")


def images(height: int = 50, width: int = 97, batch: int = 1) -> Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(0))


def small_tiny_vit() -> TinyVit:
    torch.manual_seed(0)
    shape = {"depths": (1, 1, 1, 2), "embed_dims": (4, 6, 8, 12), "num_heads": (1, 2, 2, 3)}
    return TinyVit(num_classes=0, window_sizes=(7, 3, 3, 2), **shape)


# Reading


def test_prefix_tokens_of_a_view_change_nothing(vit: Segmentor) -> None:
    twin = copy.deepcopy(vit).eval()
    with torch.no_grad():
        before = twin(images()).features
        twin.encoder.cls_token.add_(1.0)
        twin.encoder.dist_token.add_(1.0)
        twin.encoder.pos_embed[:, :2].add_(1.0)
        assert all(torch.equal(a, b) for a, b in zip(before, twin(images()).features, strict=True))
        twin.encoder.pos_embed[:, 2:].add_(torch.randn(192))
        assert not torch.equal(before[0], twin(images()).features[0])


def test_levels_are_blocks_without_the_final_norm(vit: Segmentor) -> None:
    assert vit.spec.indices == (2, 5, 8, 11)
    seen: dict[str, Tensor] = {}
    handle = vit.encoder.blocks[11].register_forward_hook(lambda _, __, out: seen.update(last=out))
    with torch.no_grad():
        levels = vit.eval().encode(images(64, 96)).levels
    handle.remove()
    assert seen["last"].shape == (1, 4 * 6, 192)
    torch.testing.assert_close(levels[3].flatten(2).transpose(1, 2), seen["last"])
    assert [level.shape for level in levels] == [(1, 192, 4, 6)] * 4


# TinyViT


def test_the_last_block_attends_to_every_token_at_any_size() -> None:
    net = small_tiny_vit().eval()
    attend_globally(net)
    block = net.stages[3].blocks[1]
    assert isinstance(block, GlobalBlock)
    assert sum(isinstance(module, GlobalBlock) for module in net.modules()) == 1
    x = torch.randn(1, 3, 5, 12, requires_grad=True)
    block(x)[0, 0, 0].sum().backward()
    assert (x.grad.abs().sum(-1) > 0).all()
    assert not any("stages.3.blocks.1.attn.attention_biases" in name for name, _ in net.named_parameters())


def test_within_one_window_without_biases_nothing_changes() -> None:
    net = small_tiny_vit().eval()
    twin = copy.deepcopy(net)
    attend_globally(twin)
    x = torch.randn(2, 2, 2, 12)  # the window is 2 x 2 and biases start at zero
    with torch.no_grad():
        torch.testing.assert_close(twin.stages[3].blocks[1](x), net.stages[3].blocks[1](x))


def test_other_nets_are_left_alone() -> None:
    net = timm.create_model("test_convnext", num_classes=0)
    names = [type(module) for module in net.modules()]
    attend_globally(net)
    assert [type(module) for module in net.modules()] == names


def test_other_decoders_keep_windows_and_notice_new_biases() -> None:
    net = net_of("tiny_vit_5m_224", "segformer").eval()
    assert not any(isinstance(module, GlobalAttention) for module in net.modules())
    before = net(images()).logits
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, FreshBiases):
                module.attention_biases.add_(torch.randn(module.attention_biases.shape))
    assert not torch.allclose(net(images()).logits, before)
    twin = copy.deepcopy(net)  # timm's kept biases, made with gradients, could not be copied
    torch.testing.assert_close(twin(images()).logits, net(images()).logits)


def test_weights_for_windows_fill_a_view_but_for_the_table_it_lacks(hybrid: Segmentor, tmp_path: Path) -> None:
    path = tmp_path / "tiny_vit.pth"
    torch.save(timm.create_model("tiny_vit_5m_224").state_dict(), path)
    report = load_weights(copy.deepcopy(hybrid), str(path))
    assert (report.fraction, report.missing, report.mismatched) == (1.0, [], [])
    unused = [name for name in report.unexpected if not name.startswith("head.")]
    assert unused == ["stages.3.blocks.1.attn.attention_biases"]
