"""Tokens of transformers: what TriKD's views keep, global attention, and logits read from a tap."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tutelage.errors import TutelageError
from tutelage.nets.build import build
from tutelage.nets.segmentor import Segmentor
from tutelage.nets.settings import NetSettings
from tutelage.nets.tokens import (
    FreshBiases,
    GlobalAttention,
    GlobalBlock,
    attend_globally,
    attention_logits,
    attention_tap,
    require_attention,
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


# Attention logits


@pytest.mark.parametrize("which", ["hybrid", "vit"])
def test_logits_are_those_the_net_attends_with(which: str, request: pytest.FixtureRequest) -> None:
    net: Segmentor = copy.deepcopy(request.getfixturevalue(which)).eval()
    tap = attention_tap(net)
    assert tap is not None
    attention = net.get_submodule(tap.name.removesuffix(".qkv"))
    net.tap((tap.name, f"{tap.name.removesuffix('.qkv')}.proj"))
    with torch.no_grad():
        prediction = net(images())
        logits = tap.logits(prediction.taps)
        qkv = prediction.taps[tap.name]
        size = qkv.shape[1]
        if which == "vit":
            value = qkv.unflatten(2, (3, tap.heads, -1))[:, :, 2]
        else:
            value = qkv.unflatten(2, (tap.heads, -1))[..., 2 * tap.key_dim :]
        attended = (logits.softmax(-1) @ value.transpose(1, 2)).transpose(1, 2).flatten(2)
        torch.testing.assert_close(
            F.linear(attended, attention.proj.weight, attention.proj.bias),
            prediction.taps[f"{tap.name.removesuffix('.qkv')}.proj"],
            rtol=1e-4,
            atol=1e-5,
        )
    stride = 32 if which == "hybrid" else 16
    height, width = tap.grid(prediction)
    assert (height, width) == (64 // stride, 128 // stride)
    assert logits.shape == (1, tap.heads, size, size)
    assert size == height * width


def test_gradients_flow_through_logits_into_queries_and_keys(hybrid: Segmentor) -> None:
    net = copy.deepcopy(hybrid)
    tap = require_attention(net, "student")
    net.tap((tap.name,))
    tap.logits(net(images(batch=2)).taps).square().mean().backward()
    grad = net.get_submodule(tap.name).weight.grad.unflatten(0, (tap.heads, -1))
    assert grad[:, : 2 * tap.key_dim].abs().sum() > 0
    assert not grad[:, 2 * tap.key_dim :].any()


def test_a_tap_serves_copies_and_exported_nets(hybrid: Segmentor) -> None:
    net = copy.deepcopy(hybrid).eval()
    tap = require_attention(net, "student")
    net.tap((tap.name,))
    twin = copy.deepcopy(net)
    with torch.no_grad():
        prediction = net(images())
        expected = tap.logits(prediction.taps)
        assert torch.equal(tap.logits(twin(images()).taps), expected)
        exported = torch.export.export(net, (images(),), strict=False).module()(images())
    torch.testing.assert_close(tap.logits(exported.taps), expected)
    torch.testing.assert_close(exported.logits, prediction.logits)


def test_logits_are_float32_in_every_precision(hybrid: Segmentor) -> None:
    net = copy.deepcopy(hybrid).eval()
    tap = require_attention(net, "student")
    net.tap((tap.name,))
    net.precision = "bf16"
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        prediction = net(images())
        assert prediction.taps[tap.name].dtype == torch.bfloat16
        assert tap.logits(prediction.taps).dtype == torch.float32


def test_prefix_tokens_are_left_out_where_a_net_keeps_them() -> None:
    net = net_of("vit_tiny_patch16_224", "dpt").eval()
    tap = require_attention(net, "teacher")
    net.tap((tap.name,))
    with torch.no_grad():
        prediction = net(images())
    assert prediction.taps[tap.name].shape[1] == 1 + 4 * 8
    assert tap.logits(prediction.taps).shape == (1, 3, 32, 32)
    assert tap.grid(prediction) == (4, 8)


def test_layouts_differ_in_order_alone() -> None:
    qkv = torch.randn(2, 5, 3 * 2 * 4)
    shape = {"heads": 2, "key_dim": 4, "scale": 0.5}
    by_head = qkv.unflatten(2, (3, 2, 4)).transpose(2, 3).flatten(2)
    ours = attention_logits(qkv, **shape, layout="by_part")
    torch.testing.assert_close(attention_logits(by_head, **shape, layout="by_head"), ours)
    query, key, _ = qkv.unflatten(2, (3, 2, 4)).unbind(2)
    torch.testing.assert_close(ours, torch.einsum("bqnd,bknd->bnqk", query, key) / 2)


@pytest.mark.parametrize(
    ("encoder", "decoder"), [("mobilenetv3_small_050", "dual_frequency"), ("mit_b0", "segformer"), ("resnet18", "fpn")]
)
def test_nets_without_such_attention_have_no_tap(encoder: str, decoder: str) -> None:
    net = build(NetSettings(encoder=encoder, decoder=decoder, width=64), 3, seed=0)  # type: ignore[arg-type]
    assert attention_tap(net) is None
    with pytest.raises(TutelageError, match=f"net student .{encoder}.*has no attention") as caught:
        require_attention(net, "student")
    assert "tiny_vit_11m_224" in caught.value.remedy


def test_attention_that_cannot_be_read_is_named(vit: Segmentor, hybrid: Segmentor) -> None:
    net = copy.deepcopy(vit)
    net.encoder.blocks[11].attn.q_norm = torch.nn.LayerNorm(64)
    with pytest.raises(TutelageError, match="cannot be read"):
        attention_tap(net)
    tap = require_attention(hybrid, "student")
    with pytest.raises(TutelageError, match="was not recorded"):
        tap.logits({})
