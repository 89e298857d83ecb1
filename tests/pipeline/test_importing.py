"""A stage that takes a trained net from a file."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.projects import Project, write_project

IMPORT = """\
  given: {kind: import, file: teacher.safetensors}
  kd:
    method: pixel_kd
    nets: {student: small}
    inputs: {teacher: given}
    streams:
      labeled: {data: city/train, batch: 2}
    steps: 1
  score: {kind: evaluate, nets: [given, kd], data: city/val}
"""
SCORE = "  score: {kind: evaluate, nets: [student], data: city/val}\n"


@pytest.fixture
def project(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project with a trained net in a file; its recipe imports it in place of training one."""
    write_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    made = Project(tmp_path, capsys)
    assert made.tutelage("run", "recipe.yaml", "--only=student").status == 0
    net = next((tmp_path / "runs").glob("student-*/nets/student.safetensors"))
    shutil.copy(net, tmp_path / "teacher.safetensors")
    text = made.recipe.read_text(encoding="utf-8")
    made.recipe.write_text(text.partition("stages:")[0] + "stages:\n" + IMPORT, encoding="utf-8")
    return made


def test_an_imported_net_teaches_and_is_scored(project: Project) -> None:
    assert project.tutelage("plan", "recipe.yaml").status == 0
    assert project.tutelage("run", "recipe.yaml", "run.weak_teacher=warn").status == 0
    kept = next((project.root / "runs").glob("given-*/nets/student.safetensors"))
    assert kept.read_bytes() == (project.root / "teacher.safetensors").read_bytes()
    assert {name.partition("-")[0] for name in project.finished()} == {"student", "given", "kd", "score"}


def test_another_file_is_another_artefact(project: Project) -> None:
    assert project.tutelage("run", "recipe.yaml", "--only=given").status == 0
    assert "skip" in project.tutelage("plan", "recipe.yaml", "--no-smoke").out.splitlines()[0]
    assert project.tutelage("run", "recipe.yaml", "--only=kd", "run.weak_teacher=warn").status == 0
    shutil.copy(
        next((project.root / "runs").glob("kd-*/nets/student.safetensors")), project.root / "teacher.safetensors"
    )
    assert "runs" in project.tutelage("plan", "recipe.yaml", "--no-smoke").out.splitlines()[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("teacher.safetensors", "techer.safetensors"), "there is no net at"),
        (("classes: [road,", "classes: [street,"), "street"),
        (("teacher.safetensors", "teacher.pth"), "file"),
    ],
)
def test_what_cannot_be_taken_is_said_before_any_step(project: Project, change: tuple[str, str], message: str) -> None:
    project.edit(change)
    ran = project.tutelage("run", "recipe.yaml")
    assert ran.status == 1
    assert message in ran.err
    assert project.finished() == {name for name in project.finished() if name.startswith("student")}
