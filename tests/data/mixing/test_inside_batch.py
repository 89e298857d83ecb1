"""U2PL's keep masks: half of an image, or half of its classes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tutelage.data.mixing.inside_batch import class_halves, half_holes

CPU = torch.device("cpu")


@pytest.mark.parametrize("size", [(16, 24), (33, 21), (512, 64), (6, 2), (3, 1), (1, 1)])
def test_a_hole_is_a_rectangle_of_half_the_area(size: tuple[int, int]) -> None:
    masks = half_holes(np.random.default_rng(0), 20, size, CPU)
    assert masks.shape == (20, *size)
    for keep in masks:
        rows, columns = (~keep).any(1), (~keep).any(0)
        assert int((~keep).sum()) == int(rows.sum()) * int(columns.sum()), "a rectangle"
        if size[1] > 2:
            assert abs(int((~keep).sum()) - size[0] * size[1] / 2) <= int(columns.sum()) / 2, "its height is rounded"
            assert size[1] / 2 < int(columns.sum()) < size[1]


def test_holes_are_a_function_of_the_draw_and_differ() -> None:
    first, again = (half_holes(np.random.default_rng(3), 2, (16, 24), CPU) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first[0], first[1])


def test_half_of_the_labels_of_each_image_are_kept() -> None:
    label = torch.tensor([[[0, 1, 2, 3, 255]], [[1, 1, 1, 2, 2]], [[2, 2, 2, 2, 2]], [[0, 1, 255, 255, 255]]])
    score = torch.tensor([[0.5, 0.1, 0.9, 0.8, 0.2], [0, 9, 8, 0, 0], [1, 1, 1, 1, 1], [3.0, 2, 0, 0, 1]])
    keep = class_halves(label, score)
    assert keep[0, 0].tolist() == [False, True, False, False, True], "two of five"
    assert keep[1, 0].tolist() == [False, False, False, True, True]
    assert not keep[2].any(), "half of one, rounded down"
    assert keep[3, 0].tolist() == [False, False, True, True, True], "what is ignored is a label like others"
