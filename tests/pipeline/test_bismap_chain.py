"""BiSMAP's recipe from the stylised source to a distillation, on tiny pictures; scores of groups of classes."""

from __future__ import annotations

import json
import random
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

from tests.pipeline.chain import assert_same, content
from tests.pipeline.victims import run
from tests.processes import in_child
from tests.projects import DATA, Project, write_project
from tests.report.test_page import checked
from tutelage.runs.atomic import leftovers

CHAIN = (
    """\
tutelage: 1
name: bismap
out: runs
run: {device: cpu, threads: 1, weak_teacher: warn}
"""
    + DATA
    + """\
  town: {root: data, classes: [road, car, sky, tree, sign], splits: {train: train.txt, val: val.txt}}
nets:
  features: {encoder: test_efficientnet, decoder: lraspp, width: 16, normalisation: none}
  small: {encoder: test_efficientnet, decoder: deeplabv3plus_bismap, width: 16}
stages:
  stylised: {kind: transform, data: city/train, target: town/val, style: {kind: fda, beta: 0.1}}
  weights:
    kind: fit
    what: {kind: transferability, size: [64, 64], pool: [1, 1], centres: 3, bonus: [1, 2, 3, 4, 5]}
    encoder: features
    data: stylised
    target: town/val
  warm_up:
    method: {name: bismap_warm_up, ramp_steps: 2}
    nets: {student: small}
    streams:
      source: &source {data: stylised, weights: weights, batch: 2, augment: &crop {crop: [32, 48]}}
      target: {data: town/val, batch: 2, augment: *crop}
    steps: 2
    log_every: 1
  mixtures: {kind: fit, what: {kind: mixtures, components: 2, samples: 100}, net: warm_up, data: stylised}
  labels: {kind: annotate, net: warm_up, data: town/val, policy: {kind: mixtures, mixtures: mixtures, quantile: 0.5}}
  self_training:
    method: {name: bismap, ramp_steps: 2}
    nets: {student: small}
    streams:
      source: *source
      target: {data: labels, batch: 2, augment: *crop}
    steps: 2
    log_every: 1
  dense: {kind: annotate, net: self_training, data: town/val, protocol: {scales: [0.75, 1.0], flip: true}}
  distilled:
    method: {name: self_distill, target_loss: symmetric, form: code, view: weak, grid: 1}
    nets: {student: small}
    inputs: {teacher: self_training}
    streams:
      source: *source
      target: {data: dense, batch: 2, augment: *crop}
    steps: 1
  score:
    kind: evaluate
    nets: [self_training, self_training.ema, distilled]
    data: town/val
    subsets: {street: [road, car], all: [road, car, sky, tree, sign]}
    merged: {things: [car, sign]}
"""
)
SUBSETS = "    subsets: {street: [road, car], all: [road, car, sky, tree, sign]}\n"
MERGED = "    merged: {things: [car, sign]}\n"


def write(project: Project, *changes: tuple[str, str]) -> None:
    project.recipe.write_text(CHAIN, encoding="utf-8")
    project.edit(*changes)


def test_the_whole_recipe(project: Project) -> None:
    page = "  page: {kind: report, scores: score, baseline: self_training, student: distilled, images: 1}\n"
    write(project, (MERGED, MERGED + page))
    assert project.tutelage("run", "recipe.yaml").status == 0
    runs = project.root / "runs"
    terms = {}
    for stage in ("warm_up", "self_training"):
        (log,) = runs.glob(f"{stage}-*/log.jsonl")
        terms[stage] = set(json.loads(log.read_text(encoding="utf-8").splitlines()[-1])["terms"])
    assert terms == {"warm_up": {"source", "consistency"}, "self_training": {"source", "consistency", "pseudo"}}
    (score,) = runs.glob("score-*/scores/distilled.json")
    content = json.loads(score.read_text(encoding="utf-8"))
    assert content["subsets"]["all"]["miou"] == pytest.approx(content["miou"], nan_ok=True)
    street = [value for value in content["iou"][:2] if value is not None]
    assert content["subsets"]["street"]["miou"] == pytest.approx(sum(street) / len(street))
    assert content["merged"]["classes"] == ["things", "road", "sky", "tree"]
    counts = content["confusion"]
    both = [1, 4]
    hit = sum(counts[row][column] for row in both for column in both)
    truth = sum(sum(counts[row]) for row in both)
    found = sum(row[column] for row in counts for column in both)
    assert content["merged"]["iou"][0] == pytest.approx(hit / (truth + found - hit))
    with np.load(score.with_suffix(".npz")) as stored:
        by_image, whole = stored["merged"], stored["counts"]
    assert by_image[:, 0].sum(0).tolist() == [hit, found - hit, truth - hit]
    np.testing.assert_array_equal(by_image[:, 1:], whole[:, [0, 2, 3]])
    shown = checked((runs / "report.html").read_text(encoding="utf-8")).words
    assert "mIoU, things merged" in shown
    assert "2 of 5 classes" in shown
    bounds = content["merged"]["miou_interval"]
    assert bounds["low"] <= content["merged"]["miou"] <= bounds["high"]
    assert set(content["subsets"]["street"]["miou_interval"]) == set(bounds)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ((SUBSETS, "    subsets: {street: [road, bus]}\n"), "no class 'bus'"),
        ((MERGED, "    merged: {moving: [cars]}\n"), "no class 'cars'"),
        ((MERGED, "    merged: {one: [car], other: [car, sign]}\n"), "car in more than one group"),
        ((SUBSETS, "    subsets: {none: []}\n"), "subsets.none: expected at least one class"),
    ],
)
def test_groups_of_classes_that_are_not_there(project: Project, change: tuple[str, str], message: str) -> None:
    write(project, change)
    ran = project.tutelage("run", "recipe.yaml")
    assert ran.status != 0
    assert message in ran.out + ran.err
    assert not project.finished(), "said before anything ran"


# Killed

TWICE = """\
  denser: {kind: annotate, net: distilled, data: town/val, protocol: {scales: [0.75, 1.0], flip: true}}
  distilled_twice:
    method: {name: self_distill, target_loss: symmetric, form: code, view: weak, grid: 1}
    nets: {student: small}
    inputs: {teacher: distilled}
    streams:
      source: *source
      target: {data: denser, batch: 2, augment: *crop}
    steps: 1
"""


def write_killable(root: Path) -> Path:
    """The recipe with a second distillation and a report, and a checkpoint after every step; its run folder."""
    text = CHAIN.replace("  score:\n", TWICE + "  score:\n")
    text = text.replace("ema, distilled]", "ema, distilled, distilled_twice]")
    text = text.replace("    steps: 2\n", "    steps: 3\n    checkpoint_every: 1\n")
    text = text.replace("    steps: 1\n", "    steps: 3\n    checkpoint_every: 1\n    log_every: 1\n")
    write_project(root, text + "  page: {kind: report, scores: score}\n")
    return root / "runs"


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_killed_at_five_moments_it_ends_with_the_same_bytes(tmp_path: Path, seed: int) -> None:
    """The moments are disk calls, one drawn from each fifth of the run. The page tells of times and is not compared."""
    whole = write_killable(tmp_path / "whole")
    assert in_child(run, tmp_path / "whole", "disk") == 0
    calls = int((tmp_path / "whole" / "calls").read_text(encoding="utf-8"))
    root = tmp_path / "killed"
    runs = write_killable(root)
    chance = random.Random(seed)
    moments = [chance.randint(fifth * calls // 5 + 1, (fifth + 1) * calls // 5) for fifth in range(5)]
    begun: list[int] = []
    for before, moment in zip([0, *moments], moments, strict=False):
        # Counted by each process from its start; what it does again comes on top, so that none gets to the end.
        assert in_child(run, root, "disk", moment - before) == -signal.SIGKILL
        begun.append(len(list(runs.glob("*/stage.yaml"))))
    print(f"killed before disk calls {moments} of {calls}, with {begun} stages begun")
    assert len(set(begun)) > 3, "spread over the run"
    assert in_child(run, root) == 0
    assert leftovers(runs) == []
    assert any(name.endswith("scores/distilled_twice.json") for name in content(runs))
    for page in (*runs.glob("page-*"), *whole.glob("page-*")):
        assert (page / "report.html").read_bytes() == (page.parent / "report.html").read_bytes()
        shutil.rmtree(page)
    assert_same(runs, whole)
