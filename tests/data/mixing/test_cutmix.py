"""CutMix: boxes by their published rule, drawn by position; pasting moves pixels and loses none."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.data.draws import generator
from tutelage.data.mixing import partners, paste
from tutelage.data.mixing.cutmix import AREA, NOWHERE, Box, box_masks, box_size, draw_box, draw_boxes

SIDES = st.integers(1, 70)


@given(st.tuples(SIDES, SIDES) | st.just((3, 400)) | st.just((400, 3)), st.integers(0, 10_000))
@settings(max_examples=200, deadline=None)
def test_a_box_lies_inside_and_is_not_too_big(size: tuple[int, int], seed: int) -> None:
    box = draw_box(np.random.default_rng(seed), size)
    assert 0 <= box.top <= box.top + box.height <= size[0]
    assert 0 <= box.left <= box.left + box.width <= size[1]
    assert box.height * box.width <= AREA[1] * size[0] * size[1] + 1e-9


def naive_box(draw: np.random.Generator, size: tuple[int, int]) -> Box:
    """The rule as it is told: an aspect is drawn until the box lies inside."""
    area = draw.uniform(0.02, 0.4) * size[0] * size[1]
    while True:
        aspect = draw.uniform(0.3, 1 / 0.3)
        height, width = int((area * aspect) ** 0.5), int((area / aspect) ** 0.5)
        left, top = draw.integers(0, size[1]), draw.integers(0, size[0])
        if left + width <= size[1] and top + height <= size[0]:
            return Box(int(top), int(left), height, width)


@pytest.mark.parametrize("size", [(64, 64), (48, 96)])
def test_boxes_are_distributed_as_by_the_plain_rule(size: tuple[int, int]) -> None:
    count = 4000
    ours = np.array([draw_box(np.random.default_rng(n), size) for n in range(count)])
    plain = np.array([naive_box(np.random.default_rng(count + n), size) for n in range(count)])
    deviation = np.sqrt((ours.var(0) + plain.var(0)) / count)
    assert (np.abs(ours.mean(0) - plain.mean(0)) < 4 * deviation).all()
    np.testing.assert_allclose(ours.std(0), plain.std(0), rtol=0.07)


def test_a_box_has_the_area_and_the_aspect() -> None:
    assert box_size(0.25, 1.0, (40, 40)) == (20, 20)
    assert box_size(0.25, 4.0, (40, 40)) == (40, 10)
    assert box_size(0.1, 1.0, (20, 80)) == (12, 12)  # a share of H W, also where the image is no square


@given(st.integers(0, 5), st.tuples(st.integers(1, 20), st.integers(1, 20)), st.integers(0, 999))
@settings(max_examples=80, deadline=None)
def test_masks_are_true_in_their_boxes_alone(count: int, size: tuple[int, int], seed: int) -> None:
    boxes = [draw_box(generator(seed, "t", "box", n), size) for n in range(count)]
    expected = np.zeros((count, *size), dtype=bool)
    for mask, (top, left, height, width) in zip(expected, boxes, strict=True):
        mask[top : top + height, left : left + width] = True
    found = box_masks(boxes, size)
    assert found.dtype == torch.bool
    np.testing.assert_array_equal(found.numpy(), expected)
    assert not box_masks([NOWHERE], size).any()


def test_draws_belong_to_seed_view_and_position() -> None:
    many = range(200)
    boxes = draw_boxes(3, "strong", many, (32, 48))
    assert boxes == draw_boxes(3, "strong", many, (32, 48))
    assert boxes[50:60] == draw_boxes(3, "strong", range(50, 60), (32, 48)), "whatever batch a position is in"
    assert boxes != draw_boxes(3, "strong2", many, (32, 48))
    assert boxes != draw_boxes(4, "strong", many, (32, 48))
    assert len({box for box in boxes if box != NOWHERE}) > 50


def test_the_probability() -> None:
    def share(probability: float) -> float:
        return sum(box != NOWHERE for box in draw_boxes(0, "v", range(1000), (32, 32), probability)) / 1000

    assert share(0.0) == 0
    assert share(1.0) == 1
    assert share(0.5) == pytest.approx(0.5, abs=0.06)
    pasted, always = draw_boxes(0, "v", range(99), (32, 32), 0.5), draw_boxes(0, "v", range(99), (32, 32), 1.0)
    assert all(box in (NOWHERE, other) for box, other in zip(pasted, always, strict=True))


@given(st.integers(1, 6), st.sampled_from(["next", "reversed"]), st.integers(0, 999))
@settings(max_examples=60, deadline=None)
def test_pasting_moves_pixels_and_loses_none(count: int, rule: str, seed: int) -> None:
    """What an image loses and what it gets are the pixels of the same places: with its complement all are there."""
    values = torch.randperm(count * 3 * 5 * 7, generator=torch.Generator().manual_seed(seed)).view(count, 3, 5, 7)
    mask = box_masks(draw_boxes(seed, "v", range(count), (5, 7), 0.7), (5, 7))
    other = partners(values, rule)  # type: ignore[arg-type]
    mixed, rest = paste(values, other, mask), paste(other, values, mask)
    assert torch.equal(torch.cat((mixed, rest)).flatten().sort().values, torch.cat((values, other)).flatten().sort()[0])
    assert torch.equal(mixed + rest, values + other)
    for n in range(count):
        partner = (n + 1) % count if rule == "next" else count - 1 - n
        for channel in range(3):
            assert torch.equal(mixed[n, channel][mask[n]], values[partner, channel][mask[n]])
            assert torch.equal(mixed[n, channel][~mask[n]], values[n, channel][~mask[n]])
    assert torch.equal(paste(values[:, 0], other[:, 0], mask.float()), mixed[:, 0]), "maps, and masks of 0 and 1"
