"""What processes say to one another: two of them over gloo, and alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from tests.processes import start
from tutelage.engine import collectives

WORLD = 2


def nets(rank: int) -> nn.ModuleList:
    torch.manual_seed(rank)
    return nn.ModuleList([nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2), nn.Linear(2, 2), nn.Linear(2, 2, dtype=torch.float64)])


def facts(rank: int) -> dict[str, Any]:
    """Everything that a rank sees of every collective."""
    result: dict[str, Any] = {"rank": [collectives.rank(), collectives.world(), collectives.active()]}
    value = torch.tensor([1.0 + rank, 5.0])
    result["sum"] = collectives.sum_over_ranks(value).tolist()
    result["its argument"] = value.tolist()
    rows = torch.arange(2.0 * (rank + 1)).view(rank + 1, 2) + 10 * rank
    result["rows"] = collectives.gather_rows(rows.requires_grad_()).tolist()
    result["no rows on one"] = collectives.gather_rows(torch.full((rank * 2, 3), rank, dtype=torch.int64)).tolist()
    result["no rows at all"] = list(collectives.gather_rows(torch.zeros(0, 3)).shape)
    result["booleans"] = collectives.gather_rows(torch.tensor([rank == 0])).tolist()
    turned = torch.arange(6.0).view(2, 3).t()[: rank + 1] + rank
    result["rows that lie otherwise"] = collectives.gather_rows(turned).tolist()
    turned = torch.arange(6.0).view(2, 3).t() + 10 * rank
    result["equal rows that lie otherwise"] = collectives.gather_equal(turned).tolist()
    result["text"] = collectives.from_first(f"said by {rank}: ü")

    held = nets(rank)
    conv, norm, linear, double = held
    conv.to(memory_format=torch.channels_last)
    conv.weight.grad = torch.full_like(conv.weight, 1.0 + rank)
    conv.weight.grad[0, 1, 2, 0] = 8.0 * rank
    if rank == 1:
        linear.weight.grad = torch.full((2, 2), 3.0)
        double.weight.grad = torch.full((2, 2), 5.0, dtype=torch.float64)
    collectives.average_gradients(p for p in held.parameters())
    result["gradients"] = {
        name: None if p.grad is None else [p.grad.unique().tolist(), str(p.grad.dtype), p.grad.is_contiguous()]
        for name, p in held.named_parameters()
    }
    result["one entry"] = conv.weight.grad[0, 1, 2, 0].item()
    collectives.average_gradients([])

    norm.running_mean.fill_(float(rank))
    norm.running_var.fill_(3.0 + rank)
    norm.num_batches_tracked.fill_(7)
    collectives.average_norm_statistics([held, nn.Linear(1, 1)])
    result["statistics"] = [norm.running_mean.tolist(), norm.running_var.tolist(), int(norm.num_batches_tracked)]
    collectives.average_norm_statistics([nn.Linear(1, 1)])
    norm.running_mean.fill_(2.0 + rank)
    norm.num_batches_tracked.fill_(5 + rank)
    collectives.share_first(held)
    result["shared"] = [held[0].weight.sum().item(), held[1].running_mean.tolist(), held[3].weight.sum().item()]
    result["shared"].append(int(norm.num_batches_tracked))
    collectives.barrier()
    return result


def _rank(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=WORLD)
    (folder / f"{rank}.json").write_text(json.dumps(facts(rank)))
    collectives.leave()
    assert not collectives.active()


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two ranks saw."""
    folder = tmp_path_factory.mktemp("ranks")
    processes = [start(_rank, rank, folder) for rank in range(WORLD)]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(WORLD)]


def test_ranks_know_themselves(seen: list[dict[str, Any]]) -> None:
    assert [facts["rank"] for facts in seen] == [[0, 2, True], [1, 2, True]]


def test_sums(seen: list[dict[str, Any]]) -> None:
    assert [facts["sum"] for facts in seen] == [[3.0, 10.0]] * 2
    assert [facts["its argument"] for facts in seen] == [[1.0, 5.0], [2.0, 5.0]], "left as it was"


def test_rows_come_in_the_order_of_ranks_however_many_each_has(seen: list[dict[str, Any]]) -> None:
    for facts in seen:
        assert facts["rows"] == [[0.0, 1.0], [10.0, 11.0], [12.0, 13.0]]
        assert facts["no rows on one"] == [[1, 1, 1], [1, 1, 1]]
        assert facts["no rows at all"] == [0, 3]
        assert facts["booleans"] == [True, False]
        first = [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]
        assert facts["equal rows that lie otherwise"] == [*first, *([a + 10, b + 10] for a, b in first)]
        assert facts["rows that lie otherwise"] == [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]


def test_the_first_ranks_text(seen: list[dict[str, Any]]) -> None:
    assert [facts["text"] for facts in seen] == ["said by 0: ü"] * 2


def test_gradients_are_averaged_and_none_stays_none(seen: list[dict[str, Any]]) -> None:
    for facts in seen:
        found = facts["gradients"]
        assert found["0.weight"] == [[1.5, 4.0], "torch.float32", False], "in the parameter's memory layout"
        assert facts["one entry"] == 4.0, "and in its place"
        assert found["2.weight"] == [[1.5], "torch.float32", True], "none on one rank counts as zero"
        assert found["3.weight"] == [[2.5], "torch.float64", True]
        assert {name for name, gradient in found.items() if gradient is None} == {
            "0.bias", "1.weight", "1.bias", "2.bias", "3.bias",
        }, "none on every rank stays none"  # fmt: skip


def test_norm_statistics_are_averaged(seen: list[dict[str, Any]]) -> None:
    assert [facts["statistics"] for facts in seen] == [[[0.5, 0.5], [3.5, 3.5], 7]] * 2


def test_everyone_gets_what_the_first_has(seen: list[dict[str, Any]]) -> None:
    first = nets(0)
    assert seen[0]["shared"] == seen[1]["shared"]
    assert seen[1]["shared"][1] == [2.0, 2.0], "buffers too"
    assert seen[1]["shared"][3] == 5
    assert seen[1]["shared"][0] == pytest.approx(first[0].weight.sum().item(), rel=1e-5)


def test_alone_everything_is_the_identity() -> None:
    assert (collectives.rank(), collectives.world(), collectives.active()) == (0, 1, False)
    rows = torch.rand(3, 2)
    assert collectives.gather_rows(rows) is rows
    assert collectives.sum_over_ranks(rows) is rows
    assert collectives.from_first("x") == "x"
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    net[0].weight.grad = torch.ones(2, 2)
    collectives.average_gradients(net.parameters())
    collectives.average_norm_statistics([net])
    collectives.share_first(net)
    collectives.barrier()
    collectives.leave()
    assert torch.equal(net[0].weight.grad, torch.ones(2, 2))
    assert net[0].bias.grad is None


def test_without_torchrun_nothing_is_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert not collectives.join(torch.device("cpu"))
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert not collectives.join(torch.device("cpu"))


def _fail_on_one(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=WORLD)
    if rank == 1:
        collectives.leave(wait=False)
        raise SystemExit(3)
    try:
        collectives.sum_over_ranks(torch.ones(1))  # in the middle of a step
    except RuntimeError:
        raise SystemExit(4) from None


def test_a_rank_that_failed_does_not_wait_for_the_others(tmp_path: Path) -> None:
    processes = [start(_fail_on_one, rank, tmp_path) for rank in range(WORLD)]
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [4, 3], "and they hear of it"
