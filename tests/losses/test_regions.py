"""Classes on a grid: counts, means, and which positions are chosen."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.losses.regions import class_counts, class_means, positions_of_ranks, random_ranks, shrink_labels


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@settings(max_examples=60, deadline=None)
@given(images=st.integers(1, 3), positions=st.integers(1, 40), limit=st.integers(1, 18), seed=st.integers(0, 9999))
def test_positions_of_a_class_are_distinct_and_show_it(images: int, positions: int, limit: int, seed: int) -> None:
    label = torch.randint(0, 5, (images, positions), generator=generator(seed))
    label[label == 4] = 255
    counts = class_counts(label, 4)
    ranks = random_ranks(counts, limit, generator(seed))
    found = positions_of_ranks(label, ranks, counts)
    for image in range(images):
        for number in range(4):
            chosen = [int(place) for place in found[image, number] if place >= 0]
            assert len(chosen) == min(int(counts[image, number]), limit) == len(set(chosen))
            assert all(label[image, place] == number for place in chosen)


def test_all_sets_of_ranks_are_as_likely() -> None:
    ranks = random_ranks(torch.full((1, 6000), 4), 2, generator(0))[0]
    pairs = ranks.sort(dim=1).values
    _, counts = (pairs[:, 0] * 4 + pairs[:, 1]).unique(return_counts=True)
    assert len(counts) == 6
    assert (counts - 1000).abs().max() < 120  # four standard deviations


def test_means_are_of_the_class_alone() -> None:
    rows = torch.randn(2, 9, 3, generator=generator(1))
    label = torch.tensor([[0, 0, 1, 255, 1, 1, 0, 0, 255], [1] * 9])
    counts = class_counts(label, 3)
    means = class_means(rows, label, counts)
    torch.testing.assert_close(means[0, 1], rows[0, [2, 4, 5]].mean(0))
    assert not means[1, 0].any()
    assert not means[:, 2].any()
    assert counts.tolist() == [[4, 3, 0], [0, 9, 0]]


def test_labels_shrink_by_the_published_index() -> None:
    label = torch.arange(35).view(1, 5, 7)
    small = shrink_labels(label, (2, 3))
    assert small.tolist() == [[[0, 2, 4], [14, 16, 18]]]
    assert shrink_labels(label == 16, (2, 3)).tolist() == [[[False] * 3, [False, True, False]]]


@pytest.mark.parametrize("size", [(22, 14), (33, 29), (52, 92), (1, 1)])
def test_labels_shrink_as_torch_resizes_where_rounding_decides(size: tuple[int, int]) -> None:
    """From 26 rows to 22, row 11 lies at 13 exactly; in float32 it is row 12."""
    label = torch.arange(26 * 46).view(1, 26, 46)
    expected = F.interpolate(label[:, None].float(), size, mode="nearest")[:, 0].long()
    assert torch.equal(shrink_labels(label, size), expected)
