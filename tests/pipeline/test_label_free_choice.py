"""Weights that are chosen while training: without masks, with target labels, or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.pipeline.chain import content, course
from tests.projects import Project, write_list, write_project
from tutelage.engine.log import read_log

RECIPE = """\
tutelage: 1
name: tiny
out: runs
run: {device: cpu, threads: 1}
data:
  day: {root: data, classes: [road, car, sky, tree, sign], splits: {train: train.txt}}
  dusk: {root: data, classes: [road, car, sky, tree, sign], splits: {train: bare.txt, val: val.txt}}
nets:
  small: {encoder: test_efficientnet, decoder: lraspp, width: 16}
stages:
  adapted:
    method: mean_teacher
    nets: {student: small}
    streams:
      labeled: {data: day/train, batch: 2, augment: {crop: [32, 32]}}
      unlabeled: {data: dusk/train, batch: 2, augment: {crop: [32, 32]}}
    steps: 3
    checkpoint_every: 1
    log_every: 1
    optimizer: {lr: 1.0e-2}
    keep: last
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Project:
    """A domain with masks, and one whose training images have none."""
    write_project(tmp_path / "project", RECIPE)
    monkeypatch.chdir(tmp_path / "project")
    project = Project(tmp_path / "project", capsys)
    write_list(project.data / "train.txt", range(2))
    (project.data / "bare.txt").write_text("images/i2.png\nimages/i3.png\n", encoding="utf-8")
    return project


def facts(project: Project, stage: str = "adapted") -> dict[str, Any]:
    manifest = next((project.root / "runs").glob(f"{stage}-*/artefact.json"))
    return dict(json.loads(manifest.read_text(encoding="utf-8"))["facts"])


def choices(project: Project) -> list[dict[str, Any]]:
    log = next((project.root / "runs").glob("adapted-*/log.jsonl"))
    return [record for record in read_log(log) if "choice" in record]


@pytest.mark.parametrize("keep", ["agreement", "balance", "entropy"])
def test_weights_are_chosen_by_images_without_masks(project: Project, keep: str) -> None:
    project.edit(("keep: last", f"keep: {keep}\n    choose: {{every: 1}}"))
    assert project.tutelage("run", "recipe.yaml").status == 0
    figures = [record["choice"][keep] for record in choices(project)]
    assert len(figures) == 3
    best = min(figures) if keep == "entropy" else max(figures)
    found = facts(project)
    assert (found["kept"], found["best_step"]) == (keep, figures.index(best) + 1)
    assert found["score"] == pytest.approx(-best if keep == "entropy" else best, abs=1e-6)
    assert "leak" not in found


def test_scores_on_target_are_shown_beside_it_and_choose_nothing(project: Project) -> None:
    scored = "keep: entropy\n    choose: {every: 2}\n    evaluate: {data: dusk/val, every: 1}"
    project.edit(("keep: last", scored))
    ran = project.tutelage("run", "recipe.yaml")
    assert ran.status == 0
    assert "scores on dusk/val while training use masks treated as missing" in ran.out
    assert [record["step"] for record in choices(project)] == [2, 3]
    log = read_log(next((project.root / "runs").glob("adapted-*/log.jsonl")))
    assert [record["step"] for record in log if "evaluation" in record] == [1, 2, 3]
    assert facts(project)["best_step"] in (2, 3)


def test_where_nothing_is_said_scores_on_target_choose_nothing(project: Project) -> None:
    project.edit(("keep: last", "evaluate: {data: dusk/val, every: 1}"))
    assert project.tutelage("run", "recipe.yaml").status == 0
    found = facts(project)
    assert (found["kept"], found["score"], "leak" in found) == ("last", None, False)


def test_what_was_chosen_with_target_labels_says_so(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    project.edit(("keep: last", "keep: best_on_target\n    evaluate: {data: dusk/val, every: 1}"))
    after = """\
  marks: {kind: annotate, net: adapted, data: dusk/train}
  student:
    method: supervised
    nets: {student: small}
    streams: {labeled: {data: marks, batch: 2, augment: {crop: [32, 32]}}}
    steps: 1
    keep: last
  score: {kind: evaluate, nets: [student], data: dusk/val, boundary: false, calibration: false}
  page: {kind: report, scores: score, images: 0}
"""
    project.recipe.write_text(project.recipe.read_text(encoding="utf-8") + after, encoding="utf-8")
    ran = project.tutelage("run", "recipe.yaml")
    assert ran.status == 0
    assert "chosen with target labels (dusk/val); every result is marked" in ran.out
    assert facts(project)["kept"] == "best_on_target"
    assert facts(project)["leak"] is True
    assert facts(project, "student")["leak"] is True
    page = (project.root / "runs" / "report.html").read_text(encoding="utf-8")
    assert "Chosen with target labels: student." in page
    subtitles: list[str] = []
    with monkeypatch.context() as patch:

        def draw(title: str, subtitle: str, *arguments: Any) -> Any:
            subtitles.append(subtitle)
            return drawn(title, subtitle, *arguments)

        from tutelage.pipeline import stream_sheets

        drawn = stream_sheets.draw_sheet
        patch.setattr(stream_sheets, "draw_sheet", draw)
        assert project.tutelage("show", "recipe.yaml", "--count", "1").status == 0
    assert len(subtitles) == 3
    assert all("weights are chosen with target labels" in subtitle for subtitle in subtitles)
    assert "it depends on weights chosen with target labels" in page


def test_a_choice_goes_on_where_it_was_stopped(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    project.edit(("keep: last", "keep: agreement\n    choose: {every: 1}"))
    with monkeypatch.context() as patch:
        calls: list[int] = []

        def stop(*arguments: Any) -> float:
            calls.append(1)
            if len(calls) == 3:
                raise KeyboardInterrupt
            return asked(*arguments)

        from tutelage.pipeline.label_free_choice import LabelFreeChoice

        asked = LabelFreeChoice.__call__
        patch.setattr(LabelFreeChoice, "__call__", stop)
        assert project.tutelage("run", "recipe.yaml").status == 130
    assert project.tutelage("run", "recipe.yaml").status == 0
    (project.root / "runs").rename(project.root / "stopped")
    assert project.tutelage("run", "recipe.yaml").status == 0
    assert content(project.root / "stopped") == content(project.root / "runs")
    assert course(project.root / "stopped") == course(project.root / "runs")


def test_what_a_choice_looks_at_is_a_part_of_the_key(project: Project) -> None:
    def folders(*overrides: str) -> set[str]:
        from tutelage import api

        return {str(row.artefact.folder.name) for row in api.plan("recipe.yaml", overrides)}

    last = folders()
    chosen = folders("stages.adapted.keep=entropy")
    assert chosen != last
    assert folders("stages.adapted.keep=entropy", "stages.adapted.choose.images=7") != chosen
