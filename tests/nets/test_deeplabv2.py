"""DeepLabV2: a classifier of dilated convolutions on the encoder's last level."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional as F

from tutelage.engine.contract import TaskInfo
from tutelage.errors import TutelageError
from tutelage.methods.pbal import PBALBidirectional, PBALSelfTraining
from tutelage.nets.build import build
from tutelage.nets.cost import parameters
from tutelage.nets.segmentor import Segmentor
from tutelage.nets.settings import NetSettings

DILATIONS = {"deeplabv2": (6, 12, 18, 24), "deeplabv2_reduced": (6, 12)}


def net(decoder: str = "deeplabv2", encoder: str = "resnet18", **changes: object) -> Segmentor:
    given = {"encoder": encoder, "decoder": decoder, **changes}
    return build(NetSettings.model_validate(given), 5, seed=0)


@pytest.mark.parametrize("decoder", DILATIONS)
def test_scores_are_the_sum_of_dilated_convolutions(decoder: str) -> None:
    model = net(decoder, auxiliary=True).eval()
    assert model.stride == 8
    with torch.no_grad():
        said = model(torch.rand(1, 3, 65, 97))
    torch.testing.assert_close(said.embedding, said.features[-1])
    for head, level, found in (
        (model.classifier, said.features[-1], said.logits),
        (model.auxiliary, said.features[-2], said.auxiliary),
    ):
        assert head is not None
        tensors = dict(head.named_parameters())
        expected = torch.zeros(1)
        for number, rate in enumerate(DILATIONS[decoder]):
            weight, bias = tensors.pop(f"branches.{number}.weight"), tensors.pop(f"branches.{number}.bias")
            expected = expected + F.conv2d(level, weight, bias, padding=rate, dilation=rate)
        assert not tensors
        torch.testing.assert_close(found, expected)


def test_the_published_net_has_the_published_size() -> None:
    """ResNet-101 without its classifier, and four convolutions of 3x3 from 2048 channels to 19 classes."""
    model = build(NetSettings(encoder="resnet101", decoder="deeplabv2"), 19, seed=0)
    assert parameters(model) == 42_500_160 + 4 * (2048 * 9 * 19 + 19)


@pytest.mark.parametrize("decoder", ["deeplabv2", "proda"])
@pytest.mark.parametrize("encoder", ["resnet50", "simclrv2_r50_1x_sk0"])
def test_all_blocks_of_a_dilated_stage_are_dilated(decoder: str, encoder: str) -> None:
    with torch.device("meta"):
        spec = build(NetSettings.model_validate({"encoder": encoder, "decoder": decoder}), 5, seed=0).encoder
    for stage, dilation in (("layer1", 1), ("layer2", 1), ("layer3", 2), ("layer4", 4)):
        found = {(block.conv2.dilation, block.conv2.padding) for block in spec.get_submodule(stage)}
        assert found == {((dilation, dilation), (dilation, dilation))}, stage
    other = build(NetSettings.model_validate({"encoder": encoder, "decoder": "lraspp", "output_stride": 8}), 5, seed=0)
    assert other.encoder.get_submodule("layer4")[0].conv2.dilation == (2, 2), "as timm has it, whose weights it takes"


def test_classifiers_start_small_and_each_branch_learns() -> None:
    model = net().train()
    model(torch.rand(2, 3, 64, 64)).logits.square().sum().backward()
    for name, tensor in model.classifier.named_parameters():
        assert tensor.grad is not None
        assert tensor.grad.abs().sum() > 0
        if name.endswith("bias"):
            assert not tensor.any()
        else:
            assert float(tensor.detach().std()) == pytest.approx(0.01, rel=0.05)


def test_channel_dropout_is_before_the_classifier() -> None:
    model = net(dropout=0.5).train()
    embedding = model(torch.rand(2, 3, 64, 64)).embedding
    dead = (embedding == 0).flatten(2).all(2).float().mean()
    assert 0.3 < float(dead) < 0.8


def test_it_has_no_width() -> None:
    with pytest.raises(ValidationError, match="deeplabv2 has no width"):
        net(width=64)


@pytest.mark.parametrize("method", [PBALBidirectional, PBALSelfTraining])
def test_pbal_wants_a_classifier_whose_rows_are_prototypes(method: type) -> None:
    with pytest.raises(TutelageError, match="deeplabv3plus_pbal"):
        method({"student": net()}, method.Settings(), TaskInfo(classes=5))  # type: ignore[attr-defined]
