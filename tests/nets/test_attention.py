"""Attention logits: read from a tap, they are those that the net attends with."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional as F

from tests.errors import raises_code
from tests.nets.test_tokens import hybrid, images, net_of, vit
from tutelage.nets.attention import AttentionTap, attention_logits, attention_tap
from tutelage.nets.build import build
from tutelage.nets.segmentor import Segmentor
from tutelage.nets.settings import NetSettings

__all__ = ["hybrid", "vit"]


def tap_of(net: Segmentor) -> AttentionTap:
    tap = attention_tap(net)
    assert tap is not None
    return tap


@pytest.mark.parametrize("which", ["hybrid", "vit"])
def test_logits_are_those_the_net_attends_with(which: str, request: pytest.FixtureRequest) -> None:
    net: Segmentor = copy.deepcopy(request.getfixturevalue(which)).eval()
    tap = tap_of(net)
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
    tap = tap_of(net)
    net.tap((tap.name,))
    tap.logits(net(images(batch=2)).taps).square().mean().backward()
    grad = net.get_submodule(tap.name).weight.grad.unflatten(0, (tap.heads, -1))
    assert grad[:, : 2 * tap.key_dim].abs().sum() > 0
    assert not grad[:, 2 * tap.key_dim :].any()


def test_a_tap_serves_copies_and_exported_nets(hybrid: Segmentor) -> None:
    net = copy.deepcopy(hybrid).eval()
    tap = tap_of(net)
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
    tap = tap_of(net)
    net.tap((tap.name,))
    net.precision = "bf16"
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        prediction = net(images())
        assert prediction.taps[tap.name].dtype == torch.bfloat16
        assert tap.logits(prediction.taps).dtype == torch.float32


def test_prefix_tokens_are_left_out_where_a_net_keeps_them() -> None:
    net = net_of("vit_tiny_patch16_224", "dpt").eval()
    tap = tap_of(net)
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


def test_attention_that_cannot_be_read_is_named(vit: Segmentor, hybrid: Segmentor) -> None:
    net = copy.deepcopy(vit)
    net.encoder.blocks[11].attn.q_norm = torch.nn.LayerNorm(64)
    with raises_code("encoder-unsupported"):
        attention_tap(net)
    tap = tap_of(hybrid)
    with raises_code("invalid-tap"):
        tap.logits({})
