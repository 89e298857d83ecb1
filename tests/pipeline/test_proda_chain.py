"""ProDA's recipe from the warm-up to stage 3, on tiny pictures."""

from __future__ import annotations

import json

import pytest

from tests.projects import DATA, SPLITS, Project

CHAIN = (
    """\
tutelage: 1
name: proda
out: runs
run: {device: cpu, threads: 1, weak_teacher: warn}
"""
    + DATA
    + """\
nets:
  small: &small {encoder: test_efficientnet, decoder: lraspp, width: 16}
  frozen: {<<: *small, frozen_norm: all}
stages:
  warm_up:
    method: {name: adaptsegnet, critic: proda, critic_weight: 1.0, loss: least_squares, adversarial: 0.01}
    nets: {student: frozen}
    streams:
      source: &source {data: city/train, batch: 2, augment: &crop {crop: [32, 48], scale: [0.5, 1.5], flip: 0.5}}
      target: &target {data: city/val, batch: 2, augment: *crop}
    steps: 2
    log_every: 1
  prototypes: {kind: fit, what: {kind: means, min_pixels: 1}, net: warm_up, data: city/val}
  stage1:
    method: {name: proda, min_pixels: 1, labels_from: full}
    nets: {student: small}
    init: {student: warm_up}
    inputs: {labeller: warm_up, prototypes: prototypes}
    streams:
      source: *source
      target: {<<: *target, views: {full: {augment: {resize: [48, 64]}}}}
    steps: 2
    log_every: 1
  labels: {kind: annotate, net: stage1, data: city/val, policy: {kind: threshold, threshold: 0.2},
           protocol: {flip: true}}
  stage2:
    method: {name: self_distill}
    nets: {student: small}
    inputs: {teacher: stage1.ema}
    streams:
      source: *source
      target: {<<: *target, data: labels, views: {strong: {randaugment: {flip: 0.5}, cutout: {}}}}
    steps: 2
    log_every: 1
  score: {kind: evaluate, nets: [warm_up, stage1, stage1.ema, stage2], data: city/val}
"""
)


def test_the_whole_recipe(project: Project) -> None:
    project.recipe.write_text(CHAIN, encoding="utf-8")
    ran = project.tutelage("run", "recipe.yaml")
    assert ran.status == 0, ran.err
    terms = {}
    for stage in ("warm_up", "stage1", "stage2"):
        (log,) = (project.root / "runs").glob(f"{stage}-*/log.jsonl")
        terms[stage] = set(json.loads(log.read_text(encoding="utf-8").splitlines()[-1])["terms"])
    assert terms == {
        "warm_up": {"cross_entropy", "adversarial_main", "critic_main_source", "critic_main_target"},
        "stage1": {"cross_entropy", "symmetric", "regularizer", "structure"},
        "stage2": {"cross_entropy", "pseudo_labels", "kd"},
    }
    assert len(list((project.root / "runs").glob("score-*/scores/*.json"))) == 4


def test_soft_labels_are_kept_once_and_looked_up(project: Project) -> None:
    """The artefact is that of teachers: shared by seeds, made again where it is damaged."""
    project.recipe.write_text(CHAIN, encoding="utf-8")
    project.edit(
        ("labels_from: full", "cache: {top: 2}"), ("views: {full: {augment: {resize: [48, 64]}}}", "views: {}")
    )
    chosen = [f"--only={name}" for name in ("warm_up", "prototypes", "stage1")]
    ran = project.tutelage("run", "recipe.yaml", *chosen)
    assert ran.status == 0, ran.err
    (folder,) = (project.root / "runs").glob("teacher_cache-*")
    files = {path: path.read_bytes() for path in sorted((folder / "answers").iterdir())}
    assert len(files) == len(SPLITS["val"])
    damaged = next(iter(files))
    damaged.write_bytes(b"")
    again = project.tutelage("run", "recipe.yaml", "--only=stage1", "stages.stage1.seed=7")
    assert again.status == 0, again.err
    assert "damaged files are made again" in again.out
    assert {path: path.read_bytes() for path in sorted((folder / "answers").iterdir())} == files
    assert len(list((project.root / "runs").glob("teacher_cache-*"))) == 1
    planned = project.tutelage("plan", "recipe.yaml", "stages.stage1.seed=8")
    assert "s a step with the teacher" in planned.out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ((", prototypes: prototypes}", "}"), "prototypes"),
        (("views: {full: {augment: {resize: [48, 64]}}}", "views: {whole: {}}"), "no view 'whole'"),
        (("randaugment: {flip: 0.5}", "randaugment: {magnitudes: [4, 2]}"), "[4, 2]"),
    ],
)
def test_what_is_refused_before_anything_runs(project: Project, change: tuple[str, str], message: str) -> None:
    project.recipe.write_text(CHAIN, encoding="utf-8")
    project.edit(change)
    ran = project.tutelage("run", "recipe.yaml")
    assert ran.status != 0
    assert message in ran.out + ran.err
    assert not project.finished()
