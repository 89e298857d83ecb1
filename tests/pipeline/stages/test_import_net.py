"""A stage that takes a trained net from a file."""

from __future__ import annotations

import shutil

import pytest

from tests.projects import Project

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
def project(project: Project) -> Project:
    """The tiny project with a trained net in a file; its recipe imports it in place of training one."""
    assert project.tutelage("run", "recipe.yaml", "--only=student").status == 0
    net = next((project.root / "runs").glob("student-*/nets/student.safetensors"))
    shutil.copy(net, project.root / "teacher.safetensors")
    text = project.recipe.read_text(encoding="utf-8")
    project.recipe.write_text(text.partition("stages:")[0] + "stages:\n" + IMPORT, encoding="utf-8")
    return project


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
        (("teacher.safetensors", "techer.safetensors"), "net file not found"),
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
