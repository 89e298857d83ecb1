"""A teacher that knows nothing is refused before a student spends its training on it."""

from __future__ import annotations

import numpy as np
from PIL import Image

from tests.projects import Project

STUDENT = """\
  kd:
    method: pixel_kd
    nets: {student: small}
    inputs: {teacher: student}
    streams:
      labeled: {data: city/train, batch: 2}
    steps: 1
"""
SCORE = "  score: {kind: evaluate, nets: [student], data: city/val}\n"


def with_student(project: Project, steps: int, rate: float = 1e-6) -> None:
    project.edit((SCORE, STUDENT), ("    steps: 2\n", f"    steps: {steps}\n    optimizer: {{lr: {rate:f}}}\n"))


def test_an_untrained_teacher_is_refused(project: Project) -> None:
    with_student(project, 1)
    ran = project.tutelage("run", "recipe.yaml")
    assert ran.status == 1
    assert "teacher 'student': mIoU" in ran.err
    assert "everywhere gives" in ran.err
    assert "run.weak_teacher: warn" in ran.err
    assert not any(name.startswith("kd") for name in project.finished())


def test_it_may_be_used_all_the_same(project: Project) -> None:
    with_student(project, 1)
    ran = project.tutelage("run", "recipe.yaml", "run.weak_teacher=warn")
    assert ran.status == 0
    assert "warning: teacher 'student'" in ran.out + ran.err


def test_a_trained_teacher_is_taken(project: Project) -> None:
    with_student(project, 40, 1e-2)
    ran = project.tutelage("run", "recipe.yaml")
    assert ran.status == 0
    assert "teacher 'student': mIoU" in ran.out + ran.err
    assert "too weak to teach" not in ran.out + ran.err


def test_a_slice_without_labels_says_nothing(project: Project) -> None:
    with_student(project, 1)
    for number in range(4):
        with Image.open(project.mask(number)) as mask:
            size = mask.size
        Image.fromarray(np.full(size[::-1], 255, dtype=np.uint8)).save(project.mask(number))
    ran = project.tutelage("run", "recipe.yaml")
    assert ran.status == 0
