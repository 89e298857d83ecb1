"""What is declared of BatchNorm and dropout holds through train() and eval()."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from tests.errors import raises_code
from tutelage.nets.build import build
from tutelage.nets.segmentor import Segmentor
from tutelage.nets.settings import NetSettings

SETTINGS = NetSettings(
    encoder="mobilenetv3_small_050", decoder="deeplabv3plus", width=16, drop_path=0.2, auxiliary=True
)


@pytest.fixture
def net() -> Segmentor:
    return build(SETTINGS, 3, seed=0)


def _norms(net: Segmentor) -> list[nn.BatchNorm2d]:
    return [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]


def _dropping(net: Segmentor) -> list[nn.Module]:
    return [module for module in net.modules() if type(module).__name__ in ("Dropout", "DropPath")]


def _images() -> torch.Tensor:
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def test_undeclared_layers_follow_the_net(net: Segmentor) -> None:
    for training in (True, False):
        net.train(training)
        assert {module.training for module in net.modules()} == {training}


def test_norm_and_dropout_are_independent_and_remembered(net: Segmentor) -> None:
    assert {type(module).__name__ for module in _dropping(net)} == {"Dropout", "DropPath"}
    net.mode(norm="batch", dropout=False)
    for training in (True, False, True):
        net.train(training)
        assert net.training is training
        assert all(norm.training for norm in _norms(net))
        assert not any(module.training for module in _dropping(net))
    net.mode(norm="running", dropout=True).eval()
    assert not any(norm.training for norm in _norms(net))
    assert all(module.training for module in _dropping(net))
    net.mode()
    assert not any(module.training for module in net.modules())


def test_a_teacher_in_batch_statistics_mode_predicts_repeatably(net: Segmentor) -> None:
    running = net.eval()(_images()).logits
    net.mode(norm="batch", dropout=False)
    first, second = (net.eval()(_images()).logits for _ in range(2))
    torch.testing.assert_close(first, second)
    assert not torch.allclose(first, running)


def test_frozen_norms_stay_frozen(net: Segmentor) -> None:
    net.freeze_norm(affine=True, statistics=True)
    net.requires_grad_(True)
    net.train()
    before = copy.deepcopy(net.state_dict())
    net(_images()).logits.sum().backward()
    for name, buffer in net.named_buffers():
        assert torch.equal(buffer, before[name]), name
    assert all(norm.weight.grad is None and norm.bias.grad is None for norm in _norms(net))
    assert net.classifier.weight.grad is not None
    net.freeze_norm(affine=False, statistics=False)
    assert all(norm.training and norm.weight.requires_grad for norm in _norms(net))


def test_only_scale_and_shift_frozen_lets_statistics_move(net: Segmentor) -> None:
    net.freeze_norm(affine=True, statistics=False)
    norm = _norms(net)[0]
    before = norm.running_mean.clone()
    net.train()(_images())
    assert not torch.equal(norm.running_mean, before)
    assert not norm.weight.requires_grad


def test_copies_keep_what_was_declared(net: Segmentor) -> None:
    net.mode(norm="batch", dropout=False)
    twin = copy.deepcopy(net).eval()
    assert all(norm.training for norm in _norms(twin))
    twin.mode()
    assert all(norm.training for norm in _norms(net.eval()))


def test_contradictions_are_refused(net: Segmentor) -> None:
    net.freeze_norm(affine=False, statistics=True)
    with raises_code("option-conflict", "frozen"):
        net.mode(norm="batch")
    with raises_code("invalid-value"):
        net.mode(norm="instance")  # type: ignore[arg-type]
    net.freeze_norm(affine=False, statistics=False).mode(norm="batch")
    with raises_code("option-conflict", "frozen"):
        net.freeze_norm()
