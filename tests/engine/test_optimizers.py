"""Rates by hand, and which parameter gets which."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from tutelage.engine.optimizers import build_optimizer, parameter_groups, set_rate
from tutelage.engine.settings import OptimizerSettings, ScheduleSettings


def factors(total: int = 4, **settings: object) -> list[float]:
    schedule = ScheduleSettings(**settings)
    return [schedule.factor(step, total) for step in range(total)]


def test_schedules_by_hand() -> None:
    assert factors(kind="constant") == [1, 1, 1, 1]
    assert factors(kind="poly", power=1) == [1, 0.75, 0.5, 0.25]
    assert factors(kind="poly", power=2) == pytest.approx([1, 0.5625, 0.25, 0.0625])
    half = math.sqrt(0.5)
    assert factors(kind="cosine") == pytest.approx([1, (1 + half) / 2, 0.5, (1 - half) / 2])


def test_the_floor_is_reached_at_the_end() -> None:
    assert factors(kind="poly", power=1, floor=0.2) == pytest.approx([1, 0.8, 0.6, 0.4])
    assert ScheduleSettings(kind="poly", floor=0.2).factor(4, 4) == 0.2
    assert ScheduleSettings(kind="cosine", floor=0.2).factor(4, 4) == pytest.approx(0.2)
    assert ScheduleSettings(kind="poly").factor(99, 4) == 0


def test_a_course_that_is_longer_than_the_stage() -> None:
    assert factors(kind="poly", power=1, horizon=8) == [1, 0.875, 0.75, 0.625]
    assert factors(2, kind="poly", power=1, horizon=8, lag=1) == [1, 1]


def test_a_least_rate_is_the_same_for_all_parameters() -> None:
    schedule = ScheduleSettings(kind="poly", power=1, warmup=2, warmup_ratio=0.0, least_lr=0.1)
    for full in (0.5, 5.0):
        found = [schedule.rate(full, step, 6) for step in (0, 1, 2, 4, 6, 9)]
        assert found == pytest.approx([0.0, full / 2, full, (full + 0.1) / 2, 0.1, 0.1])
    assert schedule.rate(0.05, 6, 6) == pytest.approx(0.05), "never above the full one"
    assert ScheduleSettings(power=1).rate(0.3, 1, 2) == 0.15
    optimizer = build_optimizer([Net()], OptimizerSettings(lr=1.0, encoder_lr_ratio=0.5))
    set_rate(optimizer, schedule, 6, 6)
    assert {group["lr"] for group in optimizer.param_groups} == {0.1}
    with pytest.raises(ValidationError, match="least_lr"):
        ScheduleSettings(floor=0.1, least_lr=0.1)


@pytest.mark.parametrize("kind", ["poly", "cosine", "constant"])
def test_warm_up_rises_linearly_and_then_the_schedule_begins(kind: str) -> None:
    found = factors(6, kind=kind, power=1, warmup=2, warmup_ratio=0.1)
    assert found[:3] == pytest.approx([0.1, 0.55, 1.0])
    assert found[2:] == pytest.approx(factors(4, kind=kind, power=1))


def test_warm_up_beyond_the_end() -> None:
    assert factors(2, warmup=10, warmup_ratio=0) == pytest.approx([0, 0.1])
    assert factors(2, warmup=2, warmup_ratio=0.5) == pytest.approx([0.5, 0.75])


class OwnNorm2d(nn.Module):
    """A normalisation that torch does not know, with a weight of two dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, 3))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.encoder_like = nn.Linear(2, 2, bias=False)
        self.decoder = nn.Sequential(nn.Conv2d(4, 4, 1), nn.GroupNorm(2, 4), OwnNorm2d())
        self.scale = nn.Parameter(torch.ones(()))
        self.frozen = nn.Linear(2, 2).requires_grad_(False)


def names_of(groups: list[dict], net: nn.Module) -> list[set[str]]:
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    return [{names[id(parameter)] for parameter in group["params"]} for group in groups]


def test_groups_by_encoder_and_decay() -> None:
    net = Net()
    groups = parameter_groups([net], OptimizerSettings(lr=0.1, encoder_lr_ratio=0.5, weight_decay=0.3))
    found = {(g["lr"], g["weight_decay"]): n for g, n in zip(groups, names_of(groups, net), strict=True)}
    assert found == {
        (0.1, 0.3): {"encoder_like.weight", "decoder.0.weight"},
        (0.1, 0.0): {"decoder.0.bias", "decoder.1.weight", "decoder.1.bias", "decoder.2.weight", "scale"},
        (0.05, 0.3): {"encoder.0.weight"},
        (0.05, 0.0): {"encoder.0.bias", "encoder.1.weight", "encoder.1.bias"},
    }
    assert all(group["base_lr"] == group["lr"] for group in groups)


def test_decay_on_everything_where_asked() -> None:
    groups = parameter_groups([Net()], OptimizerSettings(decay_norm_and_bias=True, weight_decay=0.3))
    assert [group["weight_decay"] for group in groups] == [0.3, 0.3]


def test_a_parameter_of_two_nets_is_held_once() -> None:
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    second.weight = first.weight
    groups = parameter_groups([first, second, first], OptimizerSettings())
    assert sum(len(group["params"]) for group in groups) == 3
    tied = nn.Sequential(first, nn.ReLU(), first)
    assert sum(len(group["params"]) for group in parameter_groups([tied], OptimizerSettings())) == 2


def test_the_order_is_always_the_same() -> None:
    def order() -> list[list[tuple[int, ...]]]:
        return [[tuple(p.shape) for p in g["params"]] for g in parameter_groups([Net()], OptimizerSettings())]

    assert order() == order()


@pytest.mark.parametrize(
    ("kind", "of"), [("sgd", torch.optim.SGD), ("adamw", torch.optim.AdamW), ("adam", torch.optim.Adam)]
)
def test_kinds_and_a_step_of_each_against_torch(kind: str, of: type) -> None:
    nets = [nn.Linear(3, 2, bias=False) for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    settings = OptimizerSettings(kind=kind, lr=0.1, momentum=0.8, betas=(0.7, 0.9), weight_decay=0.2)
    ours = build_optimizer([nets[0]], settings)
    assert type(ours) is of
    own = {"momentum": 0.8} if kind == "sgd" else {"betas": (0.7, 0.9)}
    theirs = of(nets[1].parameters(), lr=0.05, weight_decay=0.2, **own)
    set_rate(ours, ScheduleSettings(kind="poly", power=1.0), 1, 2)
    for step in range(3):
        for net, optimizer in zip(nets, (ours, theirs), strict=True):
            net(torch.arange(3.0) + step).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    torch.testing.assert_close(nets[0].weight, nets[1].weight)


def test_a_rate_is_set_from_the_full_one_each_time() -> None:
    optimizer = build_optimizer([Net()], OptimizerSettings(lr=0.1, encoder_lr_ratio=0.1))
    schedule = ScheduleSettings(kind="poly", power=1.0)
    for step, factor in ((1, 0.5), (2, 0.0), (0, 1.0)):
        set_rate(optimizer, schedule, step, 2)
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx(
            [0.1 * factor] * 2 + [0.01 * factor] * 2
        )


@pytest.mark.parametrize("kind", ["sgd", "adamw", "adam"])
def test_a_net_whose_first_gradient_comes_later(kind: str) -> None:
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    optimizer = build_optimizer([first, second], OptimizerSettings(kind=kind, lr=0.1))
    before = second.weight.clone()
    for step in range(3):
        first(torch.ones(2)).sum().backward()
        if step == 2:
            second(torch.ones(2)).sum().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        assert torch.equal(second.weight, before) == (step < 2)


@pytest.mark.parametrize(
    "wrong",
    [
        {"lr": 0},
        {"lr": -1},
        {"momentum": 1},
        {"betas": (0.9, 1.0)},
        {"betas": (-0.1, 0.9)},
        {"weight_decay": -1},
        {"kind": "lion"},
    ],
)
def test_settings_that_make_no_optimizer(wrong: dict) -> None:
    with pytest.raises(ValidationError):
        OptimizerSettings(**wrong)


@pytest.mark.parametrize("wrong", [{"power": 0}, {"warmup": -1}, {"warmup_ratio": 1.5}, {"floor": 2}, {"kind": "step"}])
def test_settings_that_make_no_schedule(wrong: dict) -> None:
    with pytest.raises(ValidationError):
        ScheduleSettings(**wrong)
