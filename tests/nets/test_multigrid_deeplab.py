"""PBAL's and BiSMAP's variants of DeepLabV3+, and the multi-grid of their encoders."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from torch import nn

from tutelage.nets.build import build
from tutelage.nets.cost import flops, parameters
from tutelage.nets.encoders import find_encoder
from tutelage.nets.multigrid_deeplab import Flavour, set_multigrid
from tutelage.nets.settings import NetSettings
from tutelage.nets.weights import fill

import timm  # isort: skip
from tests.errors import raises_code

FLAVOURS = get_args(Flavour)


def settings(flavour: str, **changes: object) -> NetSettings:
    given = {"encoder": "resnet50_multigrid", "decoder": f"deeplabv3plus_{flavour}", "width": 16, **changes}
    return NetSettings.model_validate(given)


@pytest.mark.parametrize(("stride", "dilations"), [(8, [4, 8, 16]), (16, [2, 4, 8]), (32, [1, 2, 4])])
def test_the_last_stage_is_a_multigrid(stride: int, dilations: list[int]) -> None:
    net = build(NetSettings(encoder="resnet50_multigrid", decoder="segformer", output_stride=stride, width=16), 3)
    blocks = [block.conv2 for block in net.encoder.layer4]
    assert [conv.dilation for conv in blocks] == [conv.padding for conv in blocks] == [(d, d) for d in dilations]
    with torch.no_grad():
        levels = net.eval()(torch.rand(1, 3, 64, 96)).features
    assert levels[-1].shape[-2:] == (64 // stride, 96 // stride)


def test_names_and_shapes_are_timms() -> None:
    """So that its ImageNet weights fit."""
    net = build(settings("pbal"), 3, seed=0)
    plain = timm.create_model("resnet50", num_classes=0).state_dict()
    assert fill(net, plain, "timm's").fraction == 1
    found = net.encoder.state_dict()
    assert found.keys() == plain.keys()
    assert all(torch.equal(value, plain[name]) for name, value in found.items())
    assert find_encoder("resnet101_multigrid.tv_in1k", 16).name == "resnet101.tv_in1k"


def test_other_encoders_have_none() -> None:
    with raises_code("unknown-encoder", "resnet50_multigrid"):
        find_encoder("resnet5_multigrid", 16)
    with raises_code("encoder-unsupported"):
        find_encoder("resnet50_multigrid", 16, plain=True)
    with pytest.raises(ValueError, match="argument"):
        set_multigrid(timm.create_model("resnet26", num_classes=0))


def test_the_published_net_has_the_published_size() -> None:
    net = build(settings("pbal", encoder="resnet101_multigrid", width=256), 19, seed=0)
    sizes = [parameters(net.encoder), parameters(net.decoder.aspp), parameters(net.decoder.fusion)]
    sizes[2] += parameters(net.classifier)
    assert [size / 1e6 for size in sizes] == pytest.approx([42.50, 15.54, 0.72], abs=0.006)
    assert flops(net, (512, 896)) / 1e9 == pytest.approx(138, abs=1)


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_any_encoder_and_any_size(flavour: str) -> None:
    net = build(settings(flavour, encoder="mobilenetv3_small_050"), 3, seed=0).eval()
    for height, width in ((64, 96), (65, 97)):
        with torch.no_grad():
            prediction = net(torch.rand(1, 3, height, width))
        assert prediction.logits.shape == (1, 3, math.ceil(height / 4), math.ceil(width / 4))
        assert prediction.embedding.min() >= 0
        torch.testing.assert_close(net.classifier(prediction.embedding), prediction.logits)


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_gradients_reach_every_parameter(flavour: str) -> None:
    net = build(settings(flavour, encoder="resnet18"), 3, seed=0).train()
    net(torch.rand(2, 3, 65, 97)).logits.square().mean().backward()
    assert [name for name, one in net.named_parameters() if one.grad is None or not one.grad.isfinite().all()] == []


def test_what_is_dropped() -> None:
    images = torch.rand(2, 3, 64, 64)
    for flavour, share, kind in (("pbal", 0.1, nn.Dropout), ("bismap", 0.1, nn.Dropout2d), ("pbal", 0.5, nn.Dropout)):
        changes = {} if share == 0.1 else {"dropout": share}
        net = build(settings(flavour, encoder="resnet18", width=64, **changes), 3, seed=0).mode(norm="running")
        drops = [layer for layer in net.modules() if isinstance(layer, (nn.Dropout, nn.Dropout2d))]
        assert [(type(drop), drop.p) for drop in drops] == [(kind, share)]
        torch.manual_seed(0)
        with torch.no_grad():
            seen = net(images).embedding == 0
            never = net.mode(norm="running", dropout=False)(images).embedding == 0
        lost = seen & ~never
        often = (~never).flatten(2).sum(2) > 20
        assert (often & seen.flatten(2).all(2)).any() == (flavour == "bismap")
        assert lost.sum() / (~never).sum() == pytest.approx(share, abs=0.07)


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_exports_for_any_size(flavour: str) -> None:
    net = build(settings(flavour, encoder="mobilenetv3_small_050"), 3, seed=0).eval()
    sides = torch.export.Dim.AUTO
    with torch.no_grad():
        images = torch.rand(1, 3, 64, 96)
        exported = torch.export.export(net, (images,), strict=False, dynamic_shapes=({2: sides, 3: sides},)).module()
        for size in ((64, 96), (96, 128), (49, 65)):
            images = torch.rand(1, 3, *size)
            torch.testing.assert_close(exported(images).logits, net(images).logits)


def test_new_layers_start_by_kaimings_rule() -> None:
    net = build(settings("bismap", encoder="resnet18", width=256), 19, seed=0)
    for conv in (net.decoder.aspp.atrous[1][0], net.decoder.fusion.fuse[3], net.classifier):
        fan_in = conv.weight[0].numel()
        assert conv.weight.std().item() == pytest.approx(math.sqrt(2 / fan_in), rel=0.05)
    assert not net.classifier.bias.any()
    with pytest.raises(ValueError, match="8 or 16"):
        settings("pbal", output_stride=32)
