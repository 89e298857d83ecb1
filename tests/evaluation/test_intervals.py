"""Bootstrap intervals: what must hold for any draw, and what the draws are for."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from tests.errors import raises_code
from tutelage.evaluation.intervals import (
    bootstrap_miou,
    bootstrap_shares,
    gap_share,
    miou_of_counts,
    paired_bootstrap,
)


def counts_of_images(seed: int, images: int = 40, quality: float = 0.7, classes: int = 4) -> np.ndarray:
    generator = np.random.default_rng(seed)
    truth = generator.integers(50, 500, (images, classes))
    hit = generator.binomial(truth, np.clip(generator.normal(quality, 0.1, (images, 1)), 0.05, 0.95))
    wrong = generator.binomial(truth, 0.2)
    return np.stack([hit, wrong, truth - hit], axis=-1)


def test_miou_of_counts() -> None:
    counts = np.array([[[6, 1, 2], [3, 2, 1], [0, 0, 0]], [[0, 0, 0], [0, 0, 0], [0, 0, 0]]])
    scores = miou_of_counts(counts)
    assert scores[0] == pytest.approx((6 / 9 + 3 / 6) / 2)
    assert math.isnan(scores[1])


def test_interval_is_the_plain_bootstrap() -> None:
    counts = counts_of_images(0)
    interval = bootstrap_miou(counts, seed=3)
    assert interval == bootstrap_miou(counts, seed=3)
    assert interval != bootstrap_miou(counts, seed=4)
    assert interval.low < interval.estimate < interval.high
    assert interval.estimate == pytest.approx(miou_of_counts(counts.sum(0)).item())
    generator = np.random.default_rng(9)
    drawn = [miou_of_counts(counts[generator.integers(0, 40, 40)].sum(0)).item() for _ in range(2000)]
    low, high = np.percentile(drawn, [2.5, 97.5])
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=0.15 * (high - low))
    assert interval.reliable
    assert interval.groups == 40


def test_the_interval_holds_95_percent_of_the_draws() -> None:
    """One image in two has its only class right: the score of a draw is binomial, whose quantiles are known."""
    images = 400
    counts = np.zeros((images, 1, 3), dtype=np.int64)
    counts[::2, 0, 0] = counts[1::2, 0, 2] = 1
    interval = bootstrap_miou(counts, resamples=20_000)
    half = 1.959964 * math.sqrt(0.25 / images)
    # A 90 % interval reaches 1.645 standard errors: 16 % less.
    assert (interval.low, interval.high) == pytest.approx((0.5 - half, 0.5 + half), abs=0.08 * half)
    both = paired_bootstrap(np.zeros_like(counts) + [0, 0, 1], counts, resamples=20_000)
    assert (both.low, both.high) == pytest.approx((0.5 - half, 0.5 + half), abs=0.08 * half)


def test_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = counts_of_images(0)
    expected = bootstrap_miou(counts, resamples=500)
    monkeypatch.setattr("tutelage.evaluation.intervals._CHUNK", 97 * 40)
    assert bootstrap_miou(counts, resamples=500) == expected


def test_blocks_widen_the_interval_of_alike_images() -> None:
    counts = np.repeat(counts_of_images(1, images=10), 20, axis=0)
    blocks = np.repeat([f"sequence {number}" for number in range(10)], 20)
    alone, blocked = bootstrap_miou(counts), bootstrap_miou(counts, blocks)
    assert blocked.groups == 10
    assert blocked.estimate == pytest.approx(alone.estimate)
    assert blocked.high - blocked.low > 3 * (alone.high - alone.low)
    shuffled = np.random.default_rng(0).permutation(len(counts))
    assert bootstrap_miou(counts[shuffled], blocks[shuffled]) == blocked


def test_a_block_counts_all_of_its_images() -> None:
    counts = counts_of_images(1)
    blocks = np.arange(40) // 5
    of_blocks = counts.reshape(8, 5, 4, 3).sum(1)
    assert bootstrap_miou(counts, blocks) == replace(bootstrap_miou(of_blocks), groups=8, over="blocks")


def test_few_blocks_are_flagged() -> None:
    counts = counts_of_images(0)
    interval = bootstrap_miou(counts, np.arange(40) % 4)
    assert not interval.reliable
    assert "only 4 blocks" in interval.reason
    assert "only 1 image:" in bootstrap_miou(counts[:1]).reason
    assert bootstrap_miou(counts, np.arange(40) % 5).reliable
    assert not paired_bootstrap(counts, counts, np.arange(40) % 2).reliable


def test_nothing_labelled() -> None:
    interval = bootstrap_miou(np.zeros((6, 3, 3), dtype=np.int64), resamples=50)
    assert math.isnan(interval.estimate)
    assert math.isnan(interval.low)


def test_gain_of_the_better_net() -> None:
    hard = counts_of_images(0)
    better = hard.copy()
    found = better[..., 2] // 5
    better[..., 0] += found
    better[..., 2] -= found
    gain = paired_bootstrap(hard, better)
    assert gain == paired_bootstrap(hard, better)
    assert 0 < gain.low < gain.gain < gain.high
    assert gain.p_value == pytest.approx(2 / 2001)
    back = paired_bootstrap(better, hard)
    assert back.gain == pytest.approx(-gain.gain)
    assert back.p_value == gain.p_value
    # Paired draws cancel what is hard for both.
    alone = bootstrap_miou(hard)
    assert gain.high - gain.low < 0.5 * (alone.high - alone.low)


def test_no_gain() -> None:
    gain = paired_bootstrap(counts_of_images(0), counts_of_images(0))
    assert (gain.gain, gain.low, gain.high, gain.p_value) == (0, 0, 0, 1)
    unlike = paired_bootstrap(counts_of_images(0), counts_of_images(1))
    assert unlike.low < 0 < unlike.high
    assert unlike.p_value > 0.05


def test_p_values_of_equals_are_uniform() -> None:
    values = [
        paired_bootstrap(counts_of_images(2 * number), counts_of_images(2 * number + 1), resamples=200).p_value
        for number in range(100)
    ]
    assert 0 <= np.mean(np.array(values) < 0.1) <= 0.2
    assert 0.3 < np.mean(values) < 0.7


def test_seeds_are_drawn_too() -> None:
    runs_a = [counts_of_images(0, quality=quality) for quality in (0.60, 0.65, 0.70)]
    runs_b = [counts_of_images(0, quality=quality) for quality in (0.62, 0.72)]
    gain = paired_bootstrap(runs_a, runs_b)
    assert gain.seeds == (3, 2)
    means = [np.mean([miou_of_counts(run.sum(0)) for run in runs]) for runs in (runs_a, runs_b)]
    assert gain.gain == pytest.approx(means[1] - means[0])
    one_each = paired_bootstrap(runs_a[1], runs_b[0])
    assert gain.high - gain.low > one_each.high - one_each.low
    assert paired_bootstrap(np.stack(runs_a), np.stack(runs_b)) == gain
    assert paired_bootstrap([runs_a[1]], [runs_b[0]]) == one_each


def test_what_does_not_fit() -> None:
    counts = counts_of_images(0)
    with raises_code("shape-mismatch"):
        bootstrap_miou(counts, np.arange(3))
    with raises_code("not-comparable"):
        paired_bootstrap(counts, counts[:-1])
    for wrong in (counts[0], counts[:0], counts.astype(float)):
        with raises_code("shape-mismatch"):
            bootstrap_miou(wrong)
    with raises_code("input-missing"):
        paired_bootstrap([], [counts])


def test_shares_are_the_plain_bootstrap() -> None:
    generator = np.random.default_rng(0)
    whole = generator.integers(50, 500, (30, 2))
    part = generator.binomial(whole, 0.6)
    one, two = bootstrap_shares(part, whole, seed=3)
    assert (one, two) == tuple(bootstrap_shares(part, whole, seed=3))
    assert one.estimate == pytest.approx(part[:, 0].sum() / whole[:, 0].sum())
    rows = [generator.integers(0, 30, 30) for _ in range(2000)]
    drawn = [part[row, 1].sum() / whole[row, 1].sum() for row in rows]
    assert (two.low, two.high) == pytest.approx(np.percentile(drawn, [2.5, 97.5]), abs=0.005)
    assert two.groups == 30
    assert two.reliable


def test_a_share_counts_the_blocks_in_which_its_whole_occurs() -> None:
    whole = np.array([[4, 0, 0], [4, 2, 0], [4, 0, 0], [4, 0, 0], [4, 0, 0]])
    shares = bootstrap_shares(whole // 2, whole)
    assert [one.groups for one in shares] == [5, 1, 0]
    assert [one.reliable for one in shares] == [True, False, False]
    assert (shares[1].estimate, shares[1].low, shares[1].high) == (0.5, 0.5, 0.5)
    assert math.isnan(shares[2].estimate)
    assert math.isnan(shares[2].low)
    assert bootstrap_shares(whole // 2, whole, list("aabbb"))[0].groups == 2
    nothing_right = bootstrap_shares(whole * 0, whole)[0]
    assert (nothing_right.estimate, nothing_right.groups, nothing_right.reliable) == (0, 5, True)


@pytest.mark.parametrize("shape", [(0, 2), (3,), (3, 1)])
def test_shares_of_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with raises_code("shape-mismatch"):
        bootstrap_shares(np.zeros(shape, dtype=np.int64), np.zeros((3, 2) if shape != (0, 2) else shape))


def quality_of(level: float, seed: int = 0, images: int = 60) -> np.ndarray:
    """Counts of a net that finds ``level`` of every class; the images are the same for all."""
    truth = np.random.default_rng(99).integers(300, 900, (images, 4))
    hit = np.random.default_rng(seed).binomial(truth, level)
    return np.stack([hit, np.zeros_like(hit), truth - hit], axis=-1)


def test_the_share_of_a_gap_is_that_of_the_scores_with_an_interval_around_it() -> None:
    plain, rung, oracle = ([quality_of(level, seed) for seed in (1, 2, 3)] for level in (0.5, 0.6, 0.7))
    found = gap_share(plain, rung, oracle)
    assert found == gap_share(plain, rung, oracle)
    a, b, c = (np.mean([miou_of_counts(one.sum(0)) for one in side]) for side in (plain, rung, oracle))
    assert found.share == pytest.approx((b - a) / (c - a))
    assert found.low < found.share < found.high
    assert found.reason == ""
    assert found.gap == paired_bootstrap(plain, oracle)


def test_ends_of_a_gap_are_0_and_1() -> None:
    plain, oracle = quality_of(0.5, 1), quality_of(0.7, 2)
    nothing, all_of_it = gap_share(plain, plain, oracle), gap_share(plain, oracle, oracle)
    assert (nothing.share, nothing.low, nothing.high) == (0, 0, 0)
    assert (all_of_it.share, all_of_it.low, all_of_it.high) == pytest.approx((1, 1, 1))
    assert gap_share(plain, quality_of(0.4), oracle).share < 0
    assert gap_share(plain, quality_of(0.8), oracle).share > 1


def test_a_gap_that_may_be_0_has_no_shares() -> None:
    alike = gap_share(quality_of(0.5, 1), quality_of(0.6), quality_of(0.5, 2))
    assert alike.reason == "the gap itself may be 0"
    worse = gap_share(quality_of(0.6, 1), quality_of(0.6, 2), quality_of(0.5))
    assert worse.reason == "the gap itself may be 0"
    same = quality_of(0.5)
    assert math.isnan(gap_share(same, quality_of(0.6), same).share)
    few = gap_share(quality_of(0.5, 1)[:3], quality_of(0.6)[:3], quality_of(0.7)[:3])
    assert "only 3 images" in few.reason


def test_blocks_and_images_that_do_not_belong_together_are_known_to_shares() -> None:
    blocks = np.arange(60) // 20
    assert "only 3 blocks" in gap_share(quality_of(0.5, 1), quality_of(0.6), quality_of(0.7), blocks).reason
    with raises_code("not-comparable"):
        gap_share(quality_of(0.5), quality_of(0.6)[:5], quality_of(0.7))
