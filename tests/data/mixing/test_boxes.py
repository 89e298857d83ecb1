"""CPS's boxes: toggled one by one, within the image, of the area that was asked for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from tutelage.data.mixing.boxes import box_masks, boxes_of, toggled
from tutelage.data.settings import BoxSettings

CPU = torch.device("cpu")


@pytest.mark.parametrize("size", [(16, 24), (7, 5), (1, 1)])
def test_every_box_toggles_its_pixels(size: tuple[int, int]) -> None:
    draw = np.random.default_rng(0)
    boxes = boxes_of(draw.random((6, 4)), draw.random((6, 4)), draw.random((6, 4, 2)), size, (0.2, 0.9))
    expected = np.ones((6, *size), dtype=bool)
    for mask, of_image in zip(expected, boxes, strict=True):
        for top, left, bottom, right in of_image:
            assert 0 <= top <= bottom <= size[0]
            assert 0 <= left <= right <= size[1]
            mask[top:bottom, left:right] ^= True
    np.testing.assert_array_equal(toggled(torch.from_numpy(boxes), size).numpy(), expected)


def test_areas_are_divided_by_the_number_of_boxes() -> None:
    draw = np.random.default_rng(1)
    boxes = boxes_of(draw.random((200, 3)), draw.random((200, 3)), draw.random((200, 3, 2)), (300, 200), (0.25, 0.5))
    areas = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1]) / 60000
    assert areas.min() == pytest.approx(0.25 / 3, rel=0.05)
    assert areas.max() == pytest.approx(0.5 / 3, rel=0.05)


def test_one_box_of_the_whole_image_leaves_nothing_of_the_partner() -> None:
    settings = BoxSettings(count=1, area=(1.0, 1.0))
    assert not box_masks(np.random.default_rng(0), 3, (8, 6), settings, CPU).any()


def test_masks_are_a_function_of_the_draw() -> None:
    first, again, other = (box_masks(np.random.default_rng(s), 2, (16, 16), BoxSettings(), CPU) for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first[0], first[1])


def test_areas_in_the_wrong_order() -> None:
    with pytest.raises(ValidationError, match=r"area .*\[0\.5, 0\.25\]"):
        BoxSettings(area=(0.5, 0.25))
