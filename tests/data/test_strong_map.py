"""ProDA's replay of a strong view: each operation by hand, the fixed order, places that show nothing."""

from __future__ import annotations

import pytest
import torch

from tutelage.data.strong_map import StrongRecord, replay, strong_cells

GRID = (6, 10)


def cells(*records: StrongRecord, scale: int = 4, **options: str) -> torch.Tensor:
    return strong_cells(records, GRID, scale, **options)  # type: ignore[arg-type]


def plain() -> torch.Tensor:
    return torch.arange(60).view(GRID)


def test_nothing_happened() -> None:
    assert torch.equal(cells(StrongRecord())[0], plain())


def test_each_operation() -> None:
    assert torch.equal(cells(StrongRecord(flip=True))[0], plain().flip(1))
    moved = cells(StrongRecord(translate_x=12))[0]
    assert torch.equal(moved[:, :7], plain()[:, 3:])
    assert (moved[:, 7:] == -1).all()
    moved = cells(StrongRecord(translate_y=-8))[0]
    assert torch.equal(moved[2:], plain()[:4])
    assert (moved[:2] == -1).all()
    sheared = cells(StrongRecord(shear_x=0.3))[0]
    for row in range(6):
        shift = round(0.3 * (row + 0.5))
        assert torch.equal(sheared[row, : 10 - shift], plain()[row, shift:])
    sheared = cells(StrongRecord(shear_y=-0.3))[0]
    for column in range(10):
        shift = -round(0.3 * (column + 0.5))
        assert torch.equal(sheared[-shift:, column], plain()[: 6 + shift, column])
    square = strong_cells([StrongRecord(rotate=90)], (5, 5))[0]
    assert torch.equal(square, torch.arange(25).view(5, 5).rot90())


def test_lengths_are_rounded_down_to_cells() -> None:
    assert torch.equal(cells(StrongRecord(translate_x=7)), cells(StrongRecord(translate_x=4)))
    assert torch.equal(cells(StrongRecord(translate_x=-1)), cells(StrongRecord(translate_x=-4)))
    cut = cells(StrongRecord(cutout=(5, 4, 14, 23)))[0]
    expected = plain().clone()
    expected[1:5, 1:3] = -1
    assert torch.equal(cut, expected)


def test_the_published_slip() -> None:
    """Shares of the map's height where they should be of its width: 2 cells become 2 x 10 / 6."""
    assert torch.equal(cells(StrongRecord(translate_x=8), translate_x="code")[0, :, :6], plain()[:, 3:9])
    square = [StrongRecord(translate_x=8)]
    assert torch.equal(strong_cells(square, (8, 8)), strong_cells(square, (8, 8), translate_x="code"))


def test_the_order_is_fixed_and_the_cutout_last() -> None:
    both = cells(StrongRecord(flip=True, translate_x=12, cutout=(0, 0, 8, 24)))[0]
    assert torch.equal(both[:, 2:7], plain().flip(1)[:, 5:10])
    assert (both[:, :2] == -1).all()


def test_maps_of_any_kind_follow() -> None:
    found = cells(StrongRecord(flip=True), StrongRecord(translate_y=4))
    label = plain().expand(2, -1, -1) % 7
    shown = replay(label, found, 255)
    assert torch.equal(shown[0], label[0].flip(1))
    assert (shown[1, 5] == 255).all()
    maps = torch.rand(2, 3, *GRID, requires_grad=True)
    replay(maps, found, 0.0).sum().backward()
    assert maps.grad is not None
    assert (maps.grad[0] == 1).all()
    assert (maps.grad[1, :, 0] == 0).all()
    with pytest.raises(ValueError, match="do not fit"):
        replay(maps[:1], found, 0.0)
