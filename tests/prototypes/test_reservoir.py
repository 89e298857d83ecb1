"""Samples of rows: the same whatever the batches, the order and the processes; bounded; fair; in a file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.errors import raises_code
from tests.processes import start
from tutelage.engine import collectives
from tutelage.prototypes import reservoir as module
from tutelage.prototypes.reservoir import Reservoir, keys

WORLD = 2


def stream(rows: int, classes: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Rows whose first channel is their number, and labels, some of which are 255."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.cat([torch.arange(rows)[:, None].float(), torch.randn(rows, 2, generator=generator)], 1)
    label = torch.randint(0, classes + 1, (rows,), generator=generator)
    return values, label.masked_fill(label == classes, 255)


def filled(capacity: int, rows: Tensor, label: Tensor, cuts: list[int], seed: int = 0) -> Reservoir:
    """A reservoir that was offered rows in batches."""
    result = Reservoir(3, rows.shape[1], capacity, seed=seed)
    for start_, stop in zip([0, *cuts], [*cuts, rows.shape[0]], strict=True):
        result.add(rows[start_:stop], label[start_:stop])
    return result


def same(one: Reservoir, other: Reservoir) -> bool:
    return one.counts() == other.counts() and all(
        torch.equal(one.rows(number), other.rows(number)) for number in range(one.classes)
    )


@settings(max_examples=30, deadline=None)
@given(capacity=st.integers(1, 60), rows=st.integers(0, 200), data=st.data())
def test_the_sample_does_not_depend_on_batches(capacity: int, rows: int, data: st.DataObject) -> None:
    early = module._EARLY
    module._EARLY = 5  # shrink often
    try:
        values, label = stream(rows)
        cuts = sorted(data.draw(st.lists(st.integers(0, rows), max_size=6)))
        whole, cut = filled(capacity, values, label, []), filled(capacity, values, label, cuts)
        assert same(whole, cut)
        for number in range(3):
            member = values[label == number]
            kept = whole.rows(number)
            assert kept.shape[0] == min(capacity, member.shape[0])
            chosen = kept[:, 0].long()
            assert chosen.unique().numel() == kept.shape[0]
            assert torch.equal(values[chosen], kept)
            assert (label[chosen] == number).all()
    finally:
        module._EARLY = early


def test_with_numbers_it_does_not_depend_on_the_order() -> None:
    values, label = stream(500)
    order = torch.randperm(500, generator=torch.Generator().manual_seed(1))
    whole, turned = filled(20, values, label, []), Reservoir(3, 3, 20, seed=0)
    for part in order.split(64):
        turned.add(values[part], label[part], part)
    assert same(whole, turned)


def test_seed_and_class_decide() -> None:
    values, _ = stream(400)
    label = torch.zeros(400, dtype=torch.int64)
    first, again, other = (filled(30, values, label, [], seed=seed) for seed in (0, 0, 1))
    assert same(first, again)
    assert not same(first, other)
    moved = filled(30, values, label + 1, [])
    assert not torch.equal(first.rows(0), moved.rows(1))


def test_every_row_is_as_likely_to_be_kept() -> None:
    kept = torch.zeros(50)
    values, label = torch.arange(50.0)[:, None], torch.zeros(50, dtype=torch.int64)
    for seed in range(400):
        sample = Reservoir(1, 1, 10, seed=seed)
        sample.add(values, label)
        kept[sample.rows(0)[:, 0].long()] += 1
    # Each count is binomial (400, 1/5): mean 80, standard deviation 8.
    assert (kept - 80).abs().max() < 4 * 8
    assert (kept - 80).square().mean().sqrt() < 12


def test_keys_are_distinct_and_spread() -> None:
    found = keys(torch.tensor(7), torch.arange(100_000))
    assert found.unique().numel() == 100_000
    for bit in range(64):
        assert abs(float((found >> bit & 1).float().mean()) - 0.5) < 0.01


def test_memory_is_bounded() -> None:
    sample = Reservoir(2, 4, 1000, seed=0)
    for _ in range(30):
        sample.add(torch.randn(3000, 4), torch.zeros(3000, dtype=torch.int64))
        assert sample._kept[0].rows.shape[0] <= 1000 + 4096
    assert sample._kept[1].rows.shape[0] == 0
    assert sample.counts() == [90_000, 0]


def test_a_file_can_be_gone_on_with(tmp_path: Path) -> None:
    values, label = stream(300)
    whole = filled(25, values, label, [])
    part = filled(25, values[:180], label[:180], [])
    part.save(tmp_path / "sample.safetensors", {"net": "abc"})
    read, facts = Reservoir.load(tmp_path / "sample.safetensors")
    assert facts == {"net": "abc"}
    assert same(read, part)
    read.add(values[180:], label[180:])
    assert same(read, whole)
    with raises_code("missing-file", "samples of features"):
        Reservoir.load(tmp_path / "other.safetensors")


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="for 3 labels and 2 channels"):
        Reservoir(2, 2, 5, seed=0).add(torch.zeros(3, 4), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match="capacity must be above 0, got 0"):
        Reservoir(2, 2, 0, seed=0)


def _rank(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=WORLD)
    values, label = stream(300)
    number = torch.arange(300)
    mine = number % 3 == 0 if rank else number % 3 != 0  # shares of different size
    mine &= (label != 2) | (rank == 0)  # and a class that one of them never sees
    mine |= (label == 2) & (rank == 0)
    sample = Reservoir(3, 3, 25, seed=0)
    sample.add(values[mine], label[mine], number[mine])
    sample.over_ranks()
    sample.save(folder / f"{rank}.safetensors")
    collectives.leave()


def test_over_ranks_it_is_what_one_process_would_hold(tmp_path: Path) -> None:
    processes = [start(_rank, rank, tmp_path) for rank in range(WORLD)]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    values, label = stream(300)
    whole = filled(25, values, label, [])
    for rank in range(WORLD):
        sample, _ = Reservoir.load(tmp_path / f"{rank}.safetensors")
        assert same(sample, whole)


def test_alone_it_stays_as_it_is() -> None:
    values, label = stream(100)
    sample = filled(10, values, label, [])
    sample.over_ranks()
    assert same(sample, filled(10, values, label, []))
