"""The pseudo-label audit against naive counting, and its judgements on cases made for them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from tutelage.audit import metrics as audit
from tutelage.audit.metrics import (
    Collapse,
    Labelled,
    LabelledCounts,
    MapCounts,
    agreement_of,
    calibration_change,
    changed,
    collapses,
    count_maps,
    halves,
    precision_of,
    settled,
    thinned,
)
from tutelage.evaluation.confusion import confusion_of
from tutelage.evaluation.levels import level_of

K = 3


def maps(seed: int, size: tuple[int, int] = (5, 7)) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    label = draw.integers(0, K, size).astype(np.uint8)
    return label, draw.integers(0, 256, size).astype(np.uint8)


@pytest.mark.parametrize(("threshold", "level"), [(0.95, 243), (1.0, 255), (0.2, 51), (0.0, 0)])
def test_levels(threshold: float, level: int) -> None:
    assert level_of(threshold) == level


def test_counts_of_maps_are_those_of_every_pixel() -> None:
    levels = [100, 200, 0]
    pairs = [maps(seed) for seed in range(4)]
    pairs[1][0][:2] = 255  # not labelled
    counts = MapCounts(np.stack([count_maps(*pair, levels) for pair in pairs]))
    pixels = [(int(k), int(c)) for label, sure in pairs for k, c in zip(label.flat, sure.flat, strict=True)]
    named = [k for k, _ in pixels if k < K]
    covered = [k for k, c in pixels if k < K and c >= levels[k]]
    assert counts.pixels == len(pixels)
    assert counts.named.tolist() == [named.count(k) for k in range(K)]
    assert counts.sure.tolist() == [covered.count(k) for k in range(K)]
    assert counts.coverage == pytest.approx(len(covered) / len(pixels))
    assert counts.labelled == pytest.approx(len(named) / len(pixels))
    assert counts.shares == pytest.approx([named.count(k) / len(named) for k in range(K)])
    assert counts.sure_shares == pytest.approx([covered.count(k) / len(covered) for k in range(K)])
    assert counts.confidence == pytest.approx(np.mean([c / 255 for _, c in pixels]))
    assert counts.confidences == pytest.approx([sure.mean() / 255 for _, sure in pairs])


def test_where_nothing_is_labelled_there_are_no_shares() -> None:
    nothing = np.full((2, 2), 255, dtype=np.uint8)
    counts = MapCounts(count_maps(nothing, nothing, [0] * K)[None])
    assert counts.coverage == 0
    assert np.isnan(counts.shares).all()
    assert np.isnan(counts.sure_shares).all()
    assert collapses(counts, np.full(K, 1 / K)) == []
    empty = MapCounts(np.zeros((0, 2 * K + 2), dtype=np.int64))
    assert math.isnan(empty.coverage)
    assert math.isnan(empty.confidence)


def test_change_is_counted_where_both_maps_have_a_label() -> None:
    before, now = maps(0)[0], maps(1)[0]
    before[0], now[:, 0] = 255, 255
    both = [(a, b) for a, b in zip(before.flat, now.flat, strict=True) if 255 not in (a, b)]
    assert changed(before, now) == (sum(a != b for a, b in both), len(both))
    assert changed(now, now)[0] == 0


def test_large_maps_are_thinned(monkeypatch: pytest.MonkeyPatch) -> None:
    label = maps(0, (20, 30))[0]
    assert np.array_equal(thinned(label), label)
    monkeypatch.setattr(audit, "_STORED_PIXELS", 100)
    assert np.array_equal(thinned(label), label[::3, ::3])


def test_agreement() -> None:
    one, other = (torch.from_numpy(maps(seed)[0]) for seed in (0, 1))
    agreed = agreement_of(confusion_of(one, other, K))
    assert agreed.share == pytest.approx(float((one == other).float().mean()))
    ious = [float(((one == k) & (other == k)).sum() / ((one == k) | (other == k)).sum()) for k in range(K)]
    assert agreed.iou == pytest.approx(np.mean(ious))
    assert agreement_of(confusion_of(one, one, K)) == audit.Agreement(1.0, 1.0)
    assert math.isnan(agreement_of(torch.zeros((K, K), dtype=torch.int64)).share)


# Against labels


def judged(
    batches: Sequence[tuple[torch.Tensor, torch.Tensor]], levels: Sequence[int], images: int
) -> tuple[Labelled, LabelledCounts]:
    counter = LabelledCounts(levels, images)
    for logits, label in batches:
        counter(logits, label)
    counts, logits, label, image = counter.rows()
    return Labelled(counts.numpy(), logits, label, image), counter


def batches(seed: int = 0, ignored: bool = True) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    found = []
    for size in ((2, 6, 5), (1, 4, 9), (3, 6, 5)):
        label = torch.randint(0, K, size, generator=generator)
        logits = 2 * torch.randn((size[0], K, *size[1:]), generator=generator)
        logits += 2 * torch.nn.functional.one_hot(label, K).movedim(-1, 1)
        if ignored:
            label[:, 0] = 255
        found.append((logits, label.to(torch.uint8)))
    return found


def test_precision_is_that_of_every_pixel() -> None:
    levels = [level_of(0.8), level_of(0.6), 0]
    labelled, _ = judged(batches(), levels, 6)
    precision = precision_of(labelled.counts_NK4, None)
    pixels, by_image = [], []
    for logits, label in batches():
        confidence, named = logits.softmax(1).max(1)
        for one in range(len(label)):
            rows = [
                (int(k), bool(k == y), round(float(c) * 255) >= levels[int(k)])
                for k, y, c in zip(named[one].flatten(), label[one].flatten(), confidence[one].flatten(), strict=True)
                if y != 255
            ]
            pixels += rows
            by_image.append(np.mean([right for _, right, sure in rows if sure]))
    sure = [right for _, right, sure in pixels if sure]
    assert precision.coverage == pytest.approx(len(sure) / len(pixels))
    assert precision.sure.estimate == pytest.approx(np.mean(sure))
    assert precision.every.estimate == pytest.approx(np.mean([right for _, right, _ in pixels]))
    for k in range(K):
        of_class = [(right, sure) for named, right, sure in pixels if named == k]
        assert precision.sure_K[k].estimate == pytest.approx(np.mean([right for right, sure in of_class if sure]))
        assert precision.every_K[k].estimate == pytest.approx(np.mean([right for right, _ in of_class]))
        assert precision.sure_K[k].low <= precision.sure_K[k].estimate <= precision.sure_K[k].high
    assert precision.sure_N == pytest.approx(by_image)
    assert precision.sure == precision_of(labelled.counts_NK4, None).sure


def test_a_class_that_is_never_named_has_no_precision() -> None:
    counts = np.zeros((6, K, 4), dtype=np.int64)
    counts[:, 0] = [1, 2, 3, 4]
    precision = precision_of(counts, None)
    assert precision.sure_K[0].estimate == pytest.approx(4 / 7)
    assert precision.every_K[0].estimate == pytest.approx(6 / 10)
    assert math.isnan(precision.sure_K[1].estimate)
    assert math.isnan(precision.sure_K[1].low)
    assert precision.sure_K[1].groups == 0
    assert not precision.sure_K[1].reliable
    blocked = precision_of(counts, list("aabbcc"))
    assert blocked.sure.groups == 3
    assert not blocked.sure.reliable


def test_an_image_with_hardly_a_sure_pixel_is_no_worst_one() -> None:
    counts = np.zeros((2, K, 4), dtype=np.int64)
    counts[0, 0] = [500, 500, 1, 0]
    counts[1, 0] = [50, 50, 5, 5]
    own = precision_of(counts, None).sure_N
    assert math.isnan(own[0])
    assert own[1] == 0.5


def test_an_image_without_a_label_does_no_harm() -> None:
    logits = torch.randn((2, K, 4, 4), generator=torch.Generator().manual_seed(0))
    label = torch.full((2, 4, 4), 255, dtype=torch.uint8)
    labelled, _ = judged([(logits, label)], [0] * K, 2)
    assert labelled.counts_NK4.sum() == 0
    assert math.isnan(precision_of(labelled.counts_NK4, None).sure.estimate)
    assert calibration_change(labelled, None) is None


def test_temperature_is_fitted_on_one_half_and_judged_on_the_other() -> None:
    """Logits that are four times too large: dividing them by about four mends the calibration."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn((8, K, 24, 24), generator=generator)
    drawn = torch.multinomial(logits.softmax(1).movedim(1, -1).reshape(-1, K), 1, generator=generator)
    label = drawn.view(8, 24, 24).to(torch.uint8)
    labelled, _ = judged([(4 * logits, label)], [0] * K, 8)
    change = calibration_change(labelled, None)
    assert change is not None
    assert change.temperature == pytest.approx(4, rel=0.1)
    assert change.images == (4, 4)
    assert change.before.error > 0.15
    assert change.after.error < 0.03
    assert change.after.count.sum() == 4 * 24 * 24
    # What the other half says does not change the temperature.
    spoilt = torch.where(torch.arange(8)[:, None, None] % 2 == 1, 0, label).to(torch.uint8)
    other = calibration_change(judged([(4 * logits, spoilt)], [0] * K, 8)[0], None)
    assert other is not None
    assert other.temperature == change.temperature
    assert other.after.error != change.after.error


def test_calibration_keeps_a_bounded_number_of_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "_CALIBRATION_PIXELS", 60)
    labelled, _ = judged(batches(), [0] * K, 6)
    sizes = labelled.image_P.bincount(minlength=6)
    assert sizes.min() >= 5
    assert sizes.max() <= 10
    assert (labelled.label_P < K).all()
    assert labelled.logits_PK.shape == (len(labelled.label_P), K)


def test_halves_do_not_cut_groups() -> None:
    assert halves(5, None) == [True, False, True, False, True]
    assert halves(5, list("bbabc")) == [True, True, False, True, True]
    assert halves(0, None) == []


# Judgements


def counted(named: Sequence[int], sure: Sequence[int]) -> MapCounts:
    return MapCounts(np.array([[*named, *sure, 0, sum(named)]], dtype=np.int64))


def test_collapses() -> None:
    labels = np.array([0.5, 0.3, 0.2])
    assert collapses(counted([500, 300, 200], [100, 100, 100]), labels) == []
    assert collapses(counted([500, 490, 10], [100, 100, 0]), labels) == [Collapse("fallen", (2,))]
    assert collapses(counted([500, 300, 200], [100, 100, 0]), labels) == [Collapse("never sure", (2,))]
    assert collapses(counted([500, 300, 200], [9, 0, 0]), labels) == [], "too few sure pixels to say"
    assert collapses(counted([960, 40, 0], [0, 0, 0]), None) == [Collapse("one class", (0,))]
    assert collapses(counted([1000, 0, 0], [0, 0, 0]), np.array([1.0, 0.0005, 0.0])) == [Collapse("one class", (0,))]
    single = MapCounts(np.array([[10, 10, 0, 10]], dtype=np.int64))
    assert collapses(single, np.array([1.0])) == []


def test_a_class_that_never_came_up_is_missing_and_not_fallen() -> None:
    labels, now = np.array([0.5, 0.3, 0.2]), counted([900, 100, 0], [0, 0, 0])
    assert collapses(now, labels, []) == [Collapse("missing", (2,))]
    assert collapses(now, labels, [np.array([0.9, 0.1, 0.01])]) == [Collapse("missing", (2,))]
    assert collapses(now, labels, [np.array([0.9, 0.0, 0.1]), now.shares]) == [Collapse("fallen", (2,))]


@pytest.mark.parametrize(
    ("changes", "precisions", "expected"),
    [
        ([None, 0.1, 0.01, 0.01], [0.5, 0.6, 0.6, 0.6], False),
        ([None, 0.1, 0.01, 0.01, 0.01], [0.5, 0.6, 0.6, 0.6, 0.6], True),
        ([None, 0.1, 0.01, 0.01, 0.01], [0.5, 0.6, 0.6, 0.65, 0.6], False),
        ([None, 0.1, 0.01, 0.01, 0.01], [], True),
        ([None, 0.1, 0.01, 0.05, 0.01], [], False),
        ([None, 0.1, 0.01, None, 0.01], [], False),
        ([None, 0.01, 0.01, 0.01], [None, None, None, 0.4], True),
        ([0.01, 0.01, 0.01], [], False),
        ([None], [], False),
    ],
)
def test_the_stop_rule(changes: list[float | None], precisions: list[float | None], expected: bool) -> None:
    judged_nets = {"a": precisions} if precisions else {}
    assert settled({"a": changes}, judged_nets, 0.02, 3) == expected
    moving = [None, *[0.5] * (len(changes) - 1)]
    assert not settled({"a": changes, "b": moving}, judged_nets, 0.02, 3), "every net must have settled"
    assert not settled({}, {}, 0.02, 3)
