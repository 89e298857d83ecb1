"""Transferability maps: cells at the mean distance, bonuses, bytes, images one by one."""

from __future__ import annotations

import pytest
import torch

from tutelage.prototypes.transferability import (
    ENTROPY_GTA5,
    ENTROPY_SYNTHIA,
    as_bytes,
    cell_distances,
    cell_weights,
    class_bonus,
    entropy_sums,
    running_mean,
    weight_map,
)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_distances_are_to_the_nearest_centre() -> None:
    features, centres = (torch.randn(shape, generator=generator(0)) for shape in ((3, 5, 2, 4), (6, 5)))
    expected = torch.cdist(features.movedim(1, -1).flatten(0, 2), centres).amin(1).view(3, 2, 4)
    torch.testing.assert_close(cell_distances(features, centres), expected)


def test_a_cell_at_the_mean_distance_weighs_a_half() -> None:
    distance = torch.tensor([[[2.0, 0.0]], [[0.0, 0.0]]])
    weight = cell_weights(distance, torch.tensor([2.0, 0.0]))
    assert weight.tolist() == [[[0.5, 1.0]], [[1.0, 1.0]]]


def test_the_running_mean_can_be_gone_on_with() -> None:
    distance = torch.rand(7, 2, 3, generator=generator(0))
    whole = running_mean(distance)
    first = running_mean(distance[:4])
    second = running_mean(distance[4:], before=float(first[-1]))
    torch.testing.assert_close(torch.cat([first, second]), whole)
    assert float(whole[0]) == pytest.approx(float(distance[0].mean()))


def test_bonuses_reach_from_0_to_1() -> None:
    for entropies in (ENTROPY_GTA5, ENTROPY_SYNTHIA):
        bonus = class_bonus(torch.tensor(entropies))
        assert bonus.shape == (19,)
        assert (float(bonus.min()), float(bonus.max())) == (0.0, 1.0)
    assert int(class_bonus(torch.tensor(ENTROPY_GTA5)).argmin()) == 10, "the sky never gets one"
    assert not class_bonus(torch.ones(4)).any()


def test_weights_of_pixels() -> None:
    weight = torch.tensor([[[0.25, 0.5]]])
    label = torch.tensor([[[0, 1, 255, 1], [1, 0, 250, 0]]], dtype=torch.uint8)
    whole = weight_map(weight, label, torch.tensor([0.0, 0.625]))
    assert whole.tolist() == [[[0.25, 0.875, 0.5, 1.0], [0.875, 0.25, 0.5, 0.5]]]
    assert as_bytes(whole)[0, 0].tolist() == [63, 223, 127, 255]


def test_entropies_of_predicted_classes() -> None:
    logits = torch.zeros(1, 2, 1, 3)
    logits[0, 1, 0, 2] = 1000.0
    total, number = entropy_sums(logits)
    assert number.tolist() == [2, 1]
    torch.testing.assert_close(total, torch.tensor([2 * 0.6931472, 0.0]).double())
