"""What the report chooses by itself: roles, pictures, and which passes one image costs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from tutelage.evaluation.protocol import Protocol
from tutelage.nets.build import build
from tutelage.nets.cost import flops, parameters
from tutelage.nets.settings import NetSettings
from tutelage.pipeline.costs import environment, measured, passes
from tutelage.pipeline.report_content import Roles, picked, roles_of
from tutelage.pipeline.report_content import _comparison as comparison
from tutelage.recipe.stages.report import ReportStage
from tutelage.runs.store import Artefact


@pytest.mark.parametrize(
    ("said", "labels", "expected"),
    [
        ({}, ["a", "b", "c"], Roles("c", "a", None)),
        ({}, ["a"], Roles("a", None, None)),
        ({"teacher": "a"}, ["a", "b", "c"], Roles("c", "b", "a")),
        ({"teacher": "a"}, ["a", "b"], Roles("b", None, "a")),
        ({"student": "a"}, ["a", "b"], Roles("a", "b", None)),
        ({"baseline": "a", "teacher": "a"}, ["a", "b"], Roles("b", "a", "a")),
        ({"baseline": "b"}, ["a", "b"], Roles("b", None, None)),
    ],
)
def test_roles(said: dict[str, str], labels: list[str], expected: Roles) -> None:
    assert roles_of(ReportStage(scores="scores", **said), labels) == expected


def test_pictures_are_the_extremes_without_their_neighbours() -> None:
    student = np.linspace(0, 1, 100)
    student[50] = np.nan
    scores = {"student": student, "plain": np.where(np.arange(100) == 70, 0.0, student)}
    changed, worst, best = picked(scores, Roles("student", "plain", None), 5)
    assert worst[2] == (0, 6, 12, 18, 24)
    assert best[2] == (99, 93, 87, 81, 75)
    assert changed[2][0] == 70
    assert "within 5 places" in worst[1]


def test_few_pictures_are_all_shown_once_and_none_where_none_are_wanted() -> None:
    roles = Roles("student", "plain", None)
    scores = {"student": np.array([0.3, np.nan]), "plain": np.array([0.2, 0.4])}
    assert [gallery[2] for gallery in picked(scores, roles, 6)] == [(0, 1)]
    assert picked(scores, roles, 0) == []


def test_without_a_baseline_nothing_has_changed() -> None:
    titles = [gallery[0] for gallery in picked({"student": np.arange(9.0)}, Roles("student", None, None), 2)]
    assert titles == ["Worst", "Best"]


# Student against baseline


def counts(level: float, images: int = 40) -> np.ndarray:
    """(N, 2, 3): a net finds ``level`` of the first class's pixels and all of the second's."""
    truth = np.random.default_rng(7).integers(300, 900, (images, 2))
    hit = np.stack([truth[:, 0] * level, truth[:, 1]], axis=1).astype(np.int64)
    return np.stack([hit, np.zeros_like(hit), truth - hit], axis=-1)


def scored(folder: Path, groups: Sequence[str], **levels: float) -> Artefact:
    """A finished evaluation of nets that find so much of the first class, which is also scored alone as merged."""
    artefact = Artefact(folder, "key")
    (folder / "scores").mkdir(parents=True)
    for label, level in levels.items():
        found = counts(level, len(groups))
        names = np.array([str(number) for number in range(len(groups))])
        np.savez(artefact.counts(label), counts=found, merged=found[:, :1], names=names, groups=np.array(groups))
    return artefact


@pytest.mark.parametrize(("student", "baseline", "sign"), [("good", "poor", 1), ("poor", "good", -1)])
def test_the_gain_is_the_students_score_less_the_baselines(
    tmp_path: Path, student: str, baseline: str, sign: int
) -> None:
    artefact = scored(tmp_path, [""] * 40, poor=0.5, good=0.8, other=0.1)
    found = comparison(artefact, Roles(student, baseline, "other"))
    assert found is not None
    assert found.interval is not None
    assert found.gain == pytest.approx(sign * 0.15, abs=1e-3)
    assert sign * found.interval.low > 0
    assert sign * found.interval.high > 0
    assert found.interval.low < found.gain < found.interval.high
    assert found.interval.over == "images"
    merged = comparison(artefact, Roles(student, baseline, None), lambda stored: stored.merged_NG3)
    assert merged is not None
    assert merged.gain == pytest.approx(sign * 0.3, abs=1e-3)


def test_the_gain_is_drawn_over_blocks_where_images_have_groups(tmp_path: Path) -> None:
    artefact = scored(tmp_path, [f"sequence {number // 10}" for number in range(40)], poor=0.5, good=0.8)
    found = comparison(artefact, Roles("good", "poor", None))
    assert found is not None
    assert found.interval is not None
    assert (found.interval.over, found.interval.groups, found.interval.reliable) == ("blocks", 4, False)


def test_without_a_baseline_there_is_no_gain(tmp_path: Path) -> None:
    assert comparison(scored(tmp_path, [""] * 4, good=0.8), Roles("good", None, None)) is None


@pytest.mark.parametrize(
    ("protocol", "expected"),
    [
        (Protocol(), {(80, 100): 1}),
        (Protocol(size=(32, 64)), {(32, 64): 1}),
        (Protocol(flip=True, scales=(0.5, 1.0)), {(40, 50): 2, (80, 100): 2}),
        (Protocol(kind="sliding", window=(64, 64), stride=(64, 64)), {(64, 64): 4}),
        (Protocol(kind="sliding", window=(64, 64), scales=(0.5,)), {(64, 64): 1}),
        (
            Protocol(kind="sliding", window=(64, 64), stride=(64, 64), border="truncated"),
            {(64, 64): 1, (64, 36): 1, (16, 64): 1, (16, 36): 1},
        ),
    ],
)
def test_the_passes_of_one_image(protocol: Protocol, expected: dict[tuple[int, int], int]) -> None:
    assert passes(protocol, (80, 100)) == Counter(expected)


def test_costs_are_those_of_all_passes() -> None:
    net = build(NetSettings(encoder="lcnet_050", decoder="lraspp", width=32), 3, seed=0).train()
    device = torch.device("cpu")
    costs, setting = measured({"a": net, "b": net}, Protocol(flip=True), (32, 48), device)
    assert costs["a"].parameters == parameters(net)
    assert costs["a"].multiply_adds == 2 * flops(net, (32, 48))
    assert all(cost.milliseconds is not None and cost.milliseconds > 0 for cost in costs.values())
    assert net.training
    assert "2 passes at 32x48" in setting
    assert {"python", "torch", "machine", "threads"} <= dict(environment(device)).keys()
