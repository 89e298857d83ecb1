"""Costs against counts by hand, and the catalogue's stored costs against the computation."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.errors import raises_code
from tutelage.nets.build import build
from tutelage.nets.catalogue import CATALOGUE, USUAL_CLASSES, USUAL_SIZE, compute, rows, settings_of
from tutelage.nets.cost import counting, flops, latency, parameters
from tutelage.nets.settings import NetSettings


def test_a_convolution_is_counted_as_by_hand() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1))
    assert parameters(net) == (3 * 9 + 1) * 8 + 2 * 8 + (8 + 1) * 4
    assert flops(net, (10, 12)) == 10 * 12 * (3 * 9 * 8 + 8 * 4)


@pytest.mark.parametrize(
    "net",
    [
        nn.Conv2d(8, 8, 3, padding=1),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.Conv2d(8, 16, 3, stride=2, groups=2),
        nn.ConvTranspose2d(8, 4, 2, stride=2),
    ],
)
def test_a_step_takes_thrice_what_a_pass_takes(net: nn.Module) -> None:
    """Also of convolutions in groups, whose backward pass torch's own formula counts once too often for each group."""
    image = torch.rand(2, 8, 10, 12, requires_grad=True)
    with counting() as counted:
        result = net(image)
        forward = counted()
        result.sum().backward()
    assert forward > 0
    assert counted() == 3 * forward
    with counting() as counted:
        net(image.detach()).sum().backward()
    assert counted() == 2 * forward


def test_attention_is_counted_and_the_net_is_left_as_it_was() -> None:
    net = build(NetSettings(encoder="vit_tiny_patch16_224", decoder="dpt", width=32), 3, seed=0).train()
    net.mode(dropout=False)
    modes = [module.training for module in net.modules()]
    ratio = flops(net, (256, 256)) / flops(net, (128, 128))
    assert ratio > 4.05  # convolutions grow by 4, attention by 16
    assert [module.training for module in net.modules()] == modes


def test_latency_is_a_time() -> None:
    net = build(NetSettings(encoder="lcnet_050", decoder="lraspp", width=32), 3, seed=0).train()
    assert 0 < latency(net, (64, 64), repeats=3, warm_up=1) < 10_000
    assert net.training


def test_stored_costs_are_in_step() -> None:
    stored = rows()
    assert [row.name for row in stored] == list(CATALOGUE)
    assert all(CATALOGUE[row.name].use == row.use and CATALOGUE[row.name].size == row.size for row in stored)
    assert all(CATALOGUE[row.name].settings.encoder == row.encoder for row in stored)
    by_name = {row.name: row for row in stored}
    for name in ("micro-mobilenetv4", "small-lite0", "small-segformer", "medium-resnet18"):
        assert by_name[name] == compute(name, USUAL_SIZE, USUAL_CLASSES)


@pytest.mark.slow
@pytest.mark.parametrize("name", CATALOGUE)
def test_every_net_of_the_catalogue_is_as_stored_and_trains(name: str) -> None:
    assert compute(name, USUAL_SIZE, USUAL_CLASSES) in rows()
    net = build(settings_of(name), 3, seed=0).train()
    net(torch.rand(2, 3, 64, 96)).logits.square().mean().backward()
    assert all(
        parameter.grad is not None for key, parameter in net.named_parameters() if not key.startswith("auxiliary")
    )


def test_unknown_names_list_the_known() -> None:
    assert settings_of("small-lite0").encoder == "tf_efficientnet_lite0"
    with raises_code("unknown-net", "small-lite0"):
        settings_of("small-lite9")
