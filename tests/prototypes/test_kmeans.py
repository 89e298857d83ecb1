"""k-means: what it converges to, empty clusters, and rows that leave it no choice."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.errors import raises_code
from tutelage.prototypes import blocks
from tutelage.prototypes.blocks import summary
from tutelage.prototypes.kmeans import draw_costs, draw_rows, kmeans, lloyd, nearest_distance


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def clusters_of(places: Tensor, each: int, seed: int = 0) -> Tensor:
    """Rows around places, one after the other."""
    rows = places.repeat_interleave(each, 0)
    return rows + 0.01 * torch.randn(rows.shape, generator=generator(seed))


PLACES = torch.tensor([[0.0, 0.0], [5.0, 0.0], [0.0, 5.0], [5.0, 5.0]])


@pytest.mark.parametrize("start", ["plus_plus", "draws"])
@pytest.mark.parametrize("seed", range(5))
def test_well_separated_clusters_are_found(start: str, seed: int) -> None:
    found = kmeans(clusters_of(PLACES, 30), 4, seed=seed, start=start)  # type: ignore[arg-type]
    distance = torch.cdist(PLACES.double(), found.centres_MC)
    assert distance.min(1).values.max() < 0.02
    assert found.count_M.tolist() == [30] * 4


def test_the_same_seed_gives_the_same_centres_and_leaves_the_global_generator_alone() -> None:
    rows = torch.randn(300, 5, generator=generator(1))
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first, second, other = (kmeans(rows, 12, seed=seed).centres_MC for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_centres_are_the_means_of_the_rows_nearest_to_them() -> None:
    rows = torch.randn(500, 3, generator=generator(2), dtype=torch.float64)
    found = lloyd(rows, rows[:6], movement=0.0)
    label = torch.cdist(rows, found.centres_MC).argmin(1)
    for number, centre in enumerate(found.centres_MC):
        torch.testing.assert_close(rows[label == number].mean(0), centre)
    assert found.repaired == 0


def test_an_empty_cluster_gets_the_farthest_row() -> None:
    rows = clusters_of(PLACES, 10)
    start = torch.tensor([[0.0, 0.0], [5.0, 0.0], [0.0, 5.0], [100.0, 100.0]])  # the last has no row
    rows = torch.cat([rows, torch.tensor([[9.0, 9.0]])])
    found = lloyd(rows, start, movement=1e-3)
    assert found.repaired == 1
    assert (found.count_M > 0).all()
    assert (found.centres_MC - torch.tensor([9.0, 9.0])).norm(dim=1).min() < 1e-6


@pytest.mark.parametrize("start", ["plus_plus", "draws"])
@pytest.mark.parametrize("value", [0.0, 3.0e4, 1.1])
def test_rows_that_are_all_alike(start: str, value: float) -> None:
    found = kmeans(torch.full((20, 4), value), 5, seed=0, start=start)  # type: ignore[arg-type]
    torch.testing.assert_close(found.centres_MC, torch.full((5, 4), value, dtype=torch.float64), rtol=1e-6, atol=0)
    assert found.rounds < 10


@pytest.mark.parametrize("start", ["plus_plus", "draws"])
def test_fewer_rows_than_centres(start: str) -> None:
    rows = torch.randn(3, 4, generator=generator(0))
    found = kmeans(rows, 8, seed=0, start=start)  # type: ignore[arg-type]
    torch.testing.assert_close(found.centres_MC.sort(0).values.float(), rows.sort(0).values)


def test_plus_plus_draws_distinct_rows_while_there_are_any() -> None:
    rows = torch.arange(6.0).repeat(50)[:, None]
    found = kmeans(rows, 6, seed=0)
    torch.testing.assert_close(found.centres_MC[:, 0].sort().values, torch.arange(6.0, dtype=torch.float64))


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 40),
    channels=st.integers(1, 5),
    centres=st.integers(1, 9),
    distinct=st.integers(1, 40),
    scale=st.sampled_from([1e-6, 1.0, 1e5]),
    offset=st.sampled_from([0.0, 1e3]),
    seed=st.integers(0, 999),
)
def test_never_nan(
    rows: int, channels: int, centres: int, distinct: int, scale: float, offset: float, seed: int
) -> None:
    values = torch.randn(distinct, channels, generator=generator(seed)) * scale + offset
    values = values[torch.arange(rows) % distinct]
    for start in ("plus_plus", "draws"):
        found = kmeans(values, centres, seed=seed, start=start)  # type: ignore[arg-type]
        assert found.centres_MC.isfinite().all()
        assert int(found.count_M.sum()) == rows
        assert nearest_distance(values, found.centres_MC).isfinite().all()


def test_blocks_change_nothing_but_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.randn(1000, 7, generator=generator(5), dtype=torch.float64)
    whole = kmeans(rows, 5, seed=0)
    monkeypatch.setattr(blocks, "block_length", lambda channels, device: 33)
    cut = kmeans(rows, 5, seed=0)
    torch.testing.assert_close(cut.centres_MC, whole.centres_MC)
    assert torch.equal(cut.count_M, whole.count_M)


def test_costs_of_draws_are_summed_distances() -> None:
    rows = torch.randn(50, 6, generator=generator(6))
    drawn = draw_rows(50, 4, 3, seed=0, owner="x")
    assert all(len(set(draw.tolist())) == 4 for draw in drawn)
    costs = draw_costs(rows, drawn, summary(rows, "x"))
    for draw, cost in zip(drawn, costs, strict=True):
        torch.testing.assert_close(torch.cdist(rows, rows[draw]).amin(1).sum().double(), cost, rtol=1e-5, atol=1e-2)


@pytest.mark.parametrize("bad", [torch.tensor([[0.0, float("nan")]]), torch.tensor([[float("inf"), 0.0]])])
def test_rows_that_are_not_finite_are_refused_by_name(bad: Tensor) -> None:
    with raises_code("features-not-finite", "the fence"):
        kmeans(bad, 2, seed=0, owner="the fence")


def test_no_rows_are_refused_by_name() -> None:
    with raises_code("no-features", "the fence"):
        kmeans(torch.empty(0, 3), 2, seed=0, owner="the fence")
