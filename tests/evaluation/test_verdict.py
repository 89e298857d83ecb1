"""The verdict follows the interval, and where it is open, what is asked for would close it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tutelage.evaluation.intervals import Gain, Interval
from tutelage.evaluation.verdict import holm, judge

WORTH = 0.005
SPREADS = (0.004, 0.004)


def gain(middle: float, low: float, high: float, seeds: tuple[int, int] = (3, 3), reliable: bool = True) -> Gain:
    return Gain(middle, Interval(low, high, "images", 40, reliable), 0.04, seeds)


@pytest.mark.parametrize(
    ("middle", "low", "high", "expected"),
    [
        (0.010, 0.001, 0.019, "worth it"),
        (0.005, 0.001, 0.009, "worth it"),
        (0.004, 0.001, 0.007, "cannot tell"),
        (0.010, -0.001, 0.021, "cannot tell"),
        (0.001, -0.002, 0.0049, "not worth it"),
        (-0.010, -0.020, -0.001, "not worth it"),
        (0.002, 0.001, 0.003, "not worth it"),
        (0.0, -0.006, 0.006, "cannot tell"),
        (float("nan"), float("nan"), float("nan"), "cannot tell"),
    ],
)
def test_the_interval_decides(middle: float, low: float, high: float, expected: str) -> None:
    assert judge(gain(middle, low, high), SPREADS, WORTH).verdict == expected


def test_one_seed_or_too_few_images_never_decide() -> None:
    clear = gain(0.02, 0.015, 0.025)
    assert judge(clear, SPREADS, WORTH).verdict == "worth it"
    one = judge(replace(clear, seeds=(3, 1)), (0.004, None), WORTH)
    assert (one.verdict, one.seeds) == ("cannot tell", 3)
    assert judge(replace(clear, seeds=(3, 1)), SPREADS, WORTH).verdict == "cannot tell"
    assert judge(replace(clear, seeds=(1, 3)), SPREADS, WORTH).verdict == "cannot tell"
    few = judge(replace(clear, interval=replace(clear.interval, reliable=False)), SPREADS, WORTH)
    assert (few.verdict, few.seeds, few.images) == ("cannot tell", None, None)


def test_the_seeds_that_are_asked_for_would_tell() -> None:
    """All of the interval comes from the seeds: with so many more of them it is short enough."""
    spread = 0.01
    half = 1.96 * (2 * spread**2 * (1 - 1 / 3) / 3) ** 0.5
    wanted = judge(gain(0.008, 0.008 - half, 0.008 + half), (spread, spread), WORTH)
    assert wanted.verdict == "cannot tell"
    assert wanted.seeds is not None
    assert wanted.images is None
    for seeds, clear in ((wanted.seeds, True), (wanted.seeds - 1, False)):
        assert (1.96 * (2 * spread**2 / seeds) ** 0.5 <= 0.008) == clear


def test_seeds_make_the_interval_shorter_by_their_part_alone() -> None:
    """The interval of three seeds holds 2 / 3 of the variance between them, and that of the images."""
    spread, of_images, middle = 0.01, 4e-5, 0.016
    half = 1.96 * (2 * spread**2 * (1 - 1 / 3) / 3 + of_images) ** 0.5
    wanted = judge(gain(middle, middle - half, middle + half), (spread, spread), WORTH)
    assert wanted.seeds == 8
    assert [1.96 * (2 * spread**2 / seeds + of_images) ** 0.5 <= middle for seeds in (7, 8)] == [False, True]


def test_images_are_asked_for_where_seeds_would_not_help() -> None:
    wanted = judge(gain(0.006, -0.014, 0.026), (0.0001, 0.0001), WORTH)
    assert wanted.seeds is None
    assert wanted.images == int(np.ceil((0.020 / 0.006) ** 2))
    hopeless = judge(gain(0.005 - 1e-9, -0.01, 0.02), (0.0001, 0.0001), WORTH)
    assert (hopeless.seeds, hopeless.images) == (None, None)


def test_holm() -> None:
    assert holm([]) == []
    assert holm([0.03]) == [0.03]
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
