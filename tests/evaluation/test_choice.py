"""Figures by which checkpoints are compared without masks: what they reward, and what fools them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from tutelage.evaluation.choice import agreement, balance, entropy, mirror_counts, sureness
from tutelage.evaluation.protocol import Protocol

CPU = torch.device("cpu")
K = 3


@dataclass
class Says:
    """What a net returns."""

    logits: Tensor


class Colours:
    """Takes red, green and blue as the logits of three classes: as sure as ``scale`` says."""

    stride = 1

    def __init__(self, scale: float, shift: tuple[float, ...] = (0.0, 0.0, 0.0), ramp: float = 0.0) -> None:
        self.scale, self.shift, self.ramp = scale, torch.tensor(shift).view(1, 3, 1, 1), ramp

    def __call__(self, image: Tensor) -> Says:
        across = torch.linspace(-1, 1, image.shape[3])  # what only one side of an image gets
        return Says(image * self.scale + self.shift + self.ramp * across * torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1))


@pytest.fixture
def image() -> np.ndarray:
    """Twelve rows of three colours."""
    pixels = np.zeros((12, 9, 3), dtype=np.uint8)
    pixels[np.arange(12), :, np.arange(12) % 3] = 255
    return pixels


def rows(net: Colours, *images: np.ndarray, protocol: Protocol | None = None) -> np.ndarray:
    return np.stack([sureness(net, one, protocol or Protocol(), CPU) for one in images])


def mirrors(net: Colours, *images: np.ndarray) -> np.ndarray:
    return np.stack([mirror_counts(net, one, Protocol(), CPU, K) for one in images])


def test_entropy_is_1_for_a_net_that_knows_nothing_and_falls_with_sureness(image: np.ndarray) -> None:
    assert entropy(rows(Colours(0.0), image)) == pytest.approx(1.0, abs=1e-6)
    assert entropy(rows(Colours(5.0), image)) < entropy(rows(Colours(2.0), image)) < 1
    share = math.exp(2) / (math.exp(2) + 2)
    rest = (1 - share) / 2
    wanted = -(share * math.log(share) + 2 * rest * math.log(rest)) / math.log(3)
    assert entropy(rows(Colours(2.0), image)) == pytest.approx(wanted, rel=1e-5)


def test_entropy_is_fooled_by_a_net_of_one_class_and_balance_is_not(image: np.ndarray) -> None:
    collapsed, good = rows(Colours(0.0, (50.0, 0, 0)), image), rows(Colours(5.0), image)
    assert entropy(collapsed) < entropy(good)
    assert balance(collapsed) == pytest.approx(0.0, abs=1e-6)
    assert balance(rows(Colours(50.0), image)) == pytest.approx(1.0, abs=1e-6)
    assert balance(rows(Colours(0.0), image)) == pytest.approx(0.0, abs=1e-6)
    assert 0 < balance(good) < 1


def test_agreement_is_that_of_a_net_with_itself_in_the_mirror(image: np.ndarray) -> None:
    assert agreement(mirrors(Colours(5.0), image)) == 1.0
    assert agreement(mirrors(Colours(0.1, ramp=10.0), image)) < 0.5
    # A net of one class agrees with itself, but names a third of the classes only.
    assert agreement(mirrors(Colours(0.0, (50.0, 0, 0)), image)) == pytest.approx(1 / 3)


def test_images_are_gathered_by_pixels_and_in_any_parts(image: np.ndarray) -> None:
    small = np.ascontiguousarray(image[:4, :5])
    every = rows(Colours(2.0), image, small)
    assert entropy(every) == pytest.approx(entropy(rows(Colours(2.0), image)), rel=1e-6)  # the same pixels again
    assert every[:, -1].tolist() == [108, 20]
    assert np.array_equal(every[1], rows(Colours(2.0), small)[0])


def test_a_protocol_that_averages_probabilities_is_one_too(image: np.ndarray) -> None:
    plain, flipped = rows(Colours(2.0), image), rows(Colours(2.0), image, protocol=Protocol(flip=True))
    assert entropy(flipped) == pytest.approx(entropy(plain), rel=1e-5)  # the net is its own mirror


def test_a_net_that_is_sure_beyond_all_numbers_is_no_nan(image: np.ndarray) -> None:
    found = rows(Colours(1e4), image)
    assert entropy(found) == pytest.approx(0.0, abs=1e-9)
    assert balance(found) == pytest.approx(1.0)
