"""A renamed class keeps its id: nothing is made again, and files say once that they have other names."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.projects import RECIPE, Project, write_project

CLASSES = "classes: [road, car, sky, tree, sign]"
RENAMED = "classes: [road, vehicle, sky, tree, sign]"
PERMUTED = "classes: [car, road, sky, tree, sign]"
MORE = "  labels: {kind: annotate, net: student, data: city/val}\n"
AGAIN = """\
  again:
    method: supervised
    nets: {student: small}
    init: {student: student}
    streams: {labeled: {data: [city/train, labels], batch: 2}}
    steps: 1
  more: {kind: evaluate, nets: [student, again], data: city/train, subsets: {moving: [SOME]}}
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Project:
    write_project(tmp_path, RECIPE + MORE)
    monkeypatch.chdir(tmp_path)
    made = Project(tmp_path, capsys)
    assert made.tutelage("run", "recipe.yaml").status == 0
    return made


def test_nothing_is_made_again(project: Project) -> None:
    project.edit((CLASSES, RENAMED))
    planned = project.tutelage("plan", "recipe.yaml", "--no-smoke").out.splitlines()
    assert ["skip" in line for line in planned[:3]] == [True, True, True]


def test_a_finished_run_names_the_change_and_refuses_another_order(project: Project) -> None:
    project.edit((CLASSES, RENAMED))
    again = project.tutelage("run", "recipe.yaml")
    assert again.status == 0
    assert again.out.count("car → vehicle") == 1
    project.edit((RENAMED, PERMUTED))
    assert project.tutelage("run", "recipe.yaml").status == 1


def test_later_stages_use_nets_and_labels_of_before(project: Project) -> None:
    project.recipe.write_text(
        (RECIPE + MORE + AGAIN).replace(CLASSES, RENAMED).replace("SOME", "vehicle"), encoding="utf-8"
    )
    ran = project.tutelage("run", "recipe.yaml")
    assert ran.status == 0
    assert ran.out.count("car → vehicle") == 1
    assert "starts anew" not in ran.out, "the classifier of a stage is kept"
    assert "moving" in ran.out


def test_a_report_of_scores_of_before_has_the_new_names(project: Project) -> None:
    text = RECIPE.replace("data: city/val}", "data: city/val, subsets: {moving: [CAR]}}") + MORE
    page = "  page: {kind: report, scores: score}\n"
    project.recipe.write_text(text.replace("CAR", "car"), encoding="utf-8")
    assert project.tutelage("run", "recipe.yaml").status == 0
    renamed = (text + page).replace(CLASSES, RENAMED).replace("[CAR]", "[vehicle]")
    project.recipe.write_text(renamed, encoding="utf-8")
    ran = project.tutelage("run", "recipe.yaml")
    assert ran.status == 0
    assert "score: done" in ran.out
    (report,) = (project.root / "runs").glob("page-*/report.html")
    assert "vehicle" in report.read_text(encoding="utf-8")


def test_names_in_another_order_are_other_classes(project: Project) -> None:
    project.recipe.write_text(
        (RECIPE + MORE + AGAIN).replace(CLASSES, PERMUTED).replace("SOME", "car"), encoding="utf-8"
    )
    ran = project.tutelage("run", "recipe.yaml")
    assert ran.status == 1
    assert "another order" in ran.err or "other classes" in ran.err
