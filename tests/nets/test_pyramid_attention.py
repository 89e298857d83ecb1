"""ProDA's head: its size, its grid, and how a recipe's net comes to it."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from tutelage.nets.build import build
from tutelage.nets.pyramid_attention import PyramidAttention
from tutelage.nets.settings import NetSettings


def test_the_published_size() -> None:
    with torch.device("meta"):
        head = PyramidAttention(2048, 256, stride=8)
    parameters = sum(parameter.numel() for parameter in head.parameters()) + 19 * 256
    assert round(parameters / 1e6, 2) == 22.56


@pytest.mark.parametrize("size", [(64, 96), (50, 71)])
def test_a_net_with_it(size: tuple[int, int]) -> None:
    settings = NetSettings(encoder="mobilenetv3_small_050", decoder="proda", width=32)
    net = build(settings, 4, seed=0)
    assert isinstance(net.decoder, PyramidAttention)
    prediction = net.train()(torch.rand(1, 3, *size))  # group norms need no second image
    rows, columns = -(-size[0] // 8), -(-size[1] // 8)
    assert prediction.logits.shape == (1, 4, rows, columns)
    assert prediction.embedding.shape == (1, 32, rows, columns)
    assert (prediction.embedding < 0).any(), "signed"
    dropped = (prediction.embedding == 0).flatten(2)
    assert torch.equal(dropped.all(2), dropped.any(2)), "whole channels"
    assert float(net.classifier.weight.detach().std()) == pytest.approx(0.01, rel=0.2)
    prediction.logits.square().mean().backward()
    assert all(torch.isfinite(p.grad).all() for p in net.decoder.parameters() if p.grad is not None)


def test_a_norm_before_it_for_simclr() -> None:
    with torch.device("meta"):
        assert isinstance(PyramidAttention(64, 32, 8, extra_norm=True).norm, nn.BatchNorm2d)
        assert isinstance(PyramidAttention(64, 32, 8).norm, nn.Identity)
    net = build(NetSettings(encoder="simclrv2_r50_1x_sk0", decoder="proda", width=32), 2, seed=0)
    assert isinstance(net.decoder.norm, nn.BatchNorm2d)


def test_widths_are_groups_of_32() -> None:
    with pytest.raises(ValidationError, match="multiple of 32"):
        NetSettings(encoder="resnet18", decoder="proda", width=48)
