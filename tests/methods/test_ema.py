"""Moving averages: numbers by hand, what is copied and what is left alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.methods.cases import tiny
from tutelage.methods.ema import average, decay_at, twin


def net(value: float) -> nn.Module:
    """Weights, a running mean and a counter of one value."""
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    with torch.no_grad():
        for tensor in module.parameters():
            tensor.fill_(value)
    module[1].running_mean.fill_(value)
    module[1].running_var.fill_(value)
    module[1].num_batches_tracked.fill_(int(value))
    return module


def values(module: nn.Module) -> tuple[float, float, int]:
    """A weight, a running mean, the counter."""
    assert len({*module[0].weight.flatten().tolist(), *module[1].bias.tolist()}) == 1, "all parameters alike"
    return module[0].weight[0, 0].item(), module[1].running_mean[0].item(), int(module[1].num_batches_tracked)


@pytest.mark.parametrize(
    ("buffers", "expected"), [("own", (5.0, 8.0, 8)), ("copy", (5.0, 4.0, 4)), ("average", (5.0, 5.0, 4))]
)
def test_averages_by_hand(buffers, expected: tuple) -> None:  # type: ignore[no-untyped-def]
    teacher, student = net(8.0), net(4.0)
    average(teacher, student, 0.25, buffers)
    assert values(teacher) == expected
    assert values(student) == (4.0, 4.0, 4)


def test_extremes() -> None:
    teacher = net(8.0)
    average(teacher, net(4.0), 1.0)
    assert values(teacher)[0] == 8.0
    average(teacher, net(4.0), 0.0)
    assert values(teacher)[0] == 4.0


def test_a_net_of_another_shape_is_refused() -> None:
    with pytest.raises(RuntimeError):
        average(net(1.0), nn.Linear(2, 2), 0.5)


def test_decays() -> None:
    assert [decay_at(step, 0.9, False) for step in (0, 1, 100)] == [0.9] * 3
    assert [decay_at(step, 0.9, True) for step in (0, 1, 3, 8, 9, 10**6)] == pytest.approx(
        [0, 0.5, 0.75, 1 - 1 / 9, 0.9, 0.9]
    )


def test_a_twin_is_equal_apart_and_never_trained() -> None:
    first = tiny(auxiliary=True)
    second = twin(first)
    assert first.state_dict().keys() == second.state_dict().keys()
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())
    assert not any(p.requires_grad for p in second.parameters())
    assert all(p.requires_grad for p in first.parameters())
    own = {p.data_ptr() for p in first.parameters()}
    assert not own & {p.data_ptr() for p in second.parameters()}


def test_an_average_of_a_net_in_another_memory_layout() -> None:
    teacher, student = tiny(seed=0), tiny(seed=1)
    expected = {
        n: p.detach().lerp(dict(student.named_parameters())[n].detach(), 0.25) for n, p in teacher.named_parameters()
    }
    average(teacher.to(memory_format=torch.channels_last), student, 0.75)
    for name, parameter in teacher.named_parameters():
        torch.testing.assert_close(parameter, expected[name], check_stride=False)
