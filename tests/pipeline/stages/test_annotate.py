"""The annotate stage in a recipe: every policy, what it is refused, and who else may work in its folder."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from tests.projects import DATA, Project, write_project
from tutelage.cli import main
from tutelage.pipeline.builder import Builder
from tutelage.recipe.loading import load_recipe, resolved
from tutelage.recipe.stages.annotate import AnnotateStage
from tutelage.runs.store import Store

RECIPE = (
    """\
tutelage: 1
name: labels
out: runs
run: {device: cpu, threads: 1}
"""
    + DATA
    + """\
nets:
  small: {encoder: test_efficientnet, decoder: lraspp, width: 16}
stages:
  teacher:
    method: supervised
    nets: {student: small}
    streams: {labeled: {data: city/train, batch: 2, augment: {crop: [32, 32]}}}
    steps: 1
  fit: {kind: fit, what: {kind: mixtures, components: 2, samples: 200}, net: teacher, data: city/train}
  quantile: {kind: annotate, net: teacher, data: city/val, policy: class_quantile, audit: {val: city/val}}
  ratio: {kind: annotate, net: teacher, data: city/val, policy: {kind: class_ratio, portion: 0.4},
          audit: {val: city/val}}
  likely: {kind: annotate, net: teacher, data: city/val, policy: {kind: mixtures, mixtures: fit, quantile: 0.3}}
  nats: {kind: annotate, net: teacher, data: city/val, policy: {kind: mixtures, mixtures: fit, threshold: -1.0e+4}}
"""
)
LABELS = ("quantile", "ratio", "likely", "nats")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of the recipe, run once."""
    root = tmp_path_factory.mktemp("whole")
    write_project(root, RECIPE)
    before = Path.cwd()
    os.chdir(root)
    try:
        assert main(["run", "recipe.yaml", "--quiet"]) == 0
    finally:
        os.chdir(before)
    return root / "runs"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Project:
    write_project(tmp_path, RECIPE)
    monkeypatch.chdir(tmp_path)
    return Project(tmp_path, capsys)


def folder(runs: Path, stage: str) -> Path:
    (found,) = runs.glob(f"{stage}-????????????")
    return found


def read_json(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8")))


def test_every_policy_labels_with_a_net_of_the_recipe(whole: Path) -> None:
    for stage in LABELS:
        manifest = read_json(folder(whole, stage) / "labels" / "pseudo_labels.json")
        assert manifest["samples"] == ["images/i4", "images/i5"]
        retained = manifest["retained"]
        assert list(retained) == ["car", "road", "sign", "sky", "tree"], "keys are sorted"
        assert sum(one["said"] for one in retained.values()) == 2 * 48 * 64
        assert 0 < sum(one["kept"] for one in retained.values()) <= 2 * 48 * 64
        assert len(manifest["thresholds"]) == 5
        listed = read_json(folder(whole, stage) / "artefact.json")["files"]
        assert "labels/images.jsonl" in listed
        assert ("labels/thresholds.json" in listed) == (stage != "nats")
        audit = read_json(folder(whole, stage) / "audit.json")
        kept = sum(one["kept"] for one in retained.values())
        assert audit["coverage"] == pytest.approx(kept / (2 * 48 * 64), abs=1e-4)
    assert retained_share(whole, "likely") == pytest.approx(0.7, abs=0.05)


def retained_share(runs: Path, stage: str) -> float:
    found = read_json(folder(runs, stage) / "labels" / "pseudo_labels.json")["retained"].values()
    return float(sum(one["kept"] for one in found) / sum(one["said"] for one in found))


def test_precision_is_that_of_the_labels_that_were_written(whole: Path) -> None:
    """The labelled images of the audit are those that were labelled here, so that both can be compared."""
    for stage in ("quantile", "ratio"):
        audit = read_json(folder(whole, stage) / "audit.json")
        assert audit["val_images"] == 2
        assert audit["val"]["coverage"] == pytest.approx(audit["coverage"], abs=1e-3)


def test_two_processes_cannot_label_into_one_folder(project: Project) -> None:
    read = load_recipe(project.recipe)
    builder, store = Builder(read), Store(Path("runs"))
    builder.assign(store)
    assert project.tutelage("run", "recipe.yaml", "--only=teacher").status == 0
    with builder.artefacts["quantile"].lock(lambda text: None):
        ran = project.tutelage("run", "recipe.yaml", "--only=quantile")
    assert ran.status != 0
    assert "error[locked-run]" in ran.err
    assert f"pid {os.getpid()}" in ran.err
    assert not list(Path("runs").glob("quantile-*/labels"))
    assert project.tutelage("run", "recipe.yaml", "--only=quantile").status == 0


def test_a_full_disk_is_told_and_the_stage_goes_on(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    assert project.tutelage("run", "recipe.yaml", "--only=teacher").status == 0

    def full(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    with monkeypatch.context() as patched:
        patched.setattr("tutelage.data.pseudo_labels.write_bytes", full)
        ran = project.tutelage("run", "recipe.yaml", "--only=ratio")
    assert ran.status != 0
    assert "stage 'ratio': the disk is full (No space left on device)" in ran.err
    assert project.partial() == []
    assert not any(name.startswith("ratio-") for name in project.finished())
    assert project.tutelage("run", "recipe.yaml", "--only=ratio").status == 0


def test_an_unreadable_image_is_left_out_on_request(project: Project) -> None:
    assert project.tutelage("run", "recipe.yaml", "--only=teacher").status == 0
    project.image(5).write_bytes(b"no image")
    assert project.tutelage("run", "recipe.yaml", "--only=quantile", "stages.quantile.audit.val=null").status != 0
    ran = project.tutelage(
        "run", "recipe.yaml", "--only=quantile", "stages.quantile.audit.val=null", "run.on_unreadable=skip"
    )
    assert ran.status == 0
    assert "1 images cannot be read and have no labels: images/i5" in ran.out
    (made,) = [path for path in Path("runs").glob("quantile-*") if (path / "artefact.json").is_file()]
    assert read_json(made / "labels" / "pseudo_labels.json")["unreadable"] == ["images/i5"]
    assert read_json(made / "audit.json")["images"] == 1


# Settings


BASE = {"kind": "annotate", "net": "teacher", "data": "city/val"}


MIXTURES = {"kind": "mixtures", "mixtures": "fit"}


@pytest.mark.parametrize(
    ("given", "wrong"),
    [
        ({"threshold": 0.5}, "threshold"),
        ({"policy": {"kind": "argmax", "threshold": 0.5}}, "policy.argmax.threshold"),
        ({"policy": {"kind": "threshold", "portion": 0.5}}, "policy.threshold.portion"),
        ({"policy": {"kind": "class_ratio", "quantile": 0.5}}, "policy.class_ratio.quantile"),
        ({"policy": {"kind": "threshold", "threshold": 1.5}}, "policy.threshold.threshold"),
        ({"policy": {"kind": "threshold", "threshold": -0.1}}, "policy.threshold.threshold"),
        ({"policy": {"kind": "class_quantile", "cap": 0}}, "policy.class_quantile.cap"),
        ({"policy": {"kind": "class_quantile", "quantile": 1.1}}, "policy.class_quantile.quantile"),
        ({"policy": {"kind": "class_ratio", "portion": 0}}, "policy.class_ratio.portion"),
        ({"policy": {"kind": "mixtures", "quantile": 0.3}}, "policy.mixtures.mixtures"),
        ({"policy": MIXTURES}, "policy.mixtures"),
        ({"policy": {**MIXTURES, "threshold": 100, "quantile": 0.3}}, "policy.mixtures"),
        ({"policy": {**MIXTURES, "threshold": 100, "per_class": False}}, "policy.mixtures"),
        ({"policy": {**MIXTURES, "threshold": 1}, "protocol": {"scales": [1, 2]}}, ""),
        ({"policy": {**MIXTURES, "threshold": 1}, "audit": {"val": "city/val"}}, ""),
        ({"policy": "mixture"}, "policy"),
    ],
)
def test_invalid_settings_are_refused_at_their_key(given: dict[str, Any], wrong: str) -> None:
    with pytest.raises(ValidationError) as refused:
        AnnotateStage.model_validate({**BASE, **given})
    assert [".".join(map(str, error["loc"])) for error in refused.value.errors()] == [wrong]


@pytest.mark.parametrize(
    ("given", "settings"),
    [
        ({}, {"kind": "argmax"}),
        ({"policy": "threshold"}, {"kind": "threshold", "threshold": 0.9}),
        ({"policy": "class_balanced"}, {"kind": "class_balanced", "portion": 0.5}),
        (
            {"policy": {"kind": "class_quantile", "quantile": 0.66}},
            {"kind": "class_quantile", "quantile": 0.66, "cap": 0.9},
        ),
        ({"policy": "class_ratio"}, {"kind": "class_ratio", "portion": 0.2}),
        (
            {"policy": {**MIXTURES, "threshold": 100}},
            {**MIXTURES, "threshold": 100, "quantile": None, "per_class": True, "score_at": "image"},
        ),
    ],
)
def test_the_settings_of_a_policy(given: dict[str, Any], settings: dict[str, Any]) -> None:
    assert AnnotateStage.model_validate({**BASE, **given}).policy.model_dump() == settings


def test_the_resolved_recipe_reads_back(project: Project) -> None:
    read = load_recipe(project.recipe)
    again = yaml.safe_load(resolved(read.recipe))
    for stage in LABELS:
        assert AnnotateStage.model_validate(again["stages"][stage]) == read.recipe.stages[stage]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (("mixtures: fit, quantile", "mixtures: fti, quantile"), "unknown-stage"),
        (("mixtures: fit, quantile", "mixtures: teacher, quantile"), "unknown-stage"),
        (("kind: mixtures, components: 2, samples: 200", "kind: entropies"), "fit-kind"),
        (("likely: {kind: annotate, net: teacher", "likely: {kind: annotate, net: teacher.ema"), "fit-of-other-net"),
    ],
)
def test_mixtures_must_be_those_of_the_net_that_labels(project: Project, change: tuple[str, str], code: str) -> None:
    project.edit(change)
    ran = project.tutelage("run", "recipe.yaml", "--only=likely")
    assert ran.status != 0
    assert f"[{code}]" in ran.err


def test_what_decides_the_labels_decides_the_key(project: Project) -> None:
    def content(*changes: tuple[str, str]) -> dict[str, Any]:
        text = project.recipe.read_text(encoding="utf-8")
        project.edit(*changes)
        read = load_recipe(project.recipe)
        builder = Builder(read)
        builder.assign(Store(Path("runs")))
        found = {stage: builder.runner(stage).content() for stage in LABELS}
        project.recipe.write_text(text, encoding="utf-8")
        return found

    before = content()
    assert before["likely"] != before["nats"]
    assert content(("portion: 0.4", "portion: 0.3"))["ratio"] != before["ratio"]
    assert content(("components: 2", "components: 3"))["likely"] != before["likely"]
    assert content(("quantile: 0.3", "quantile: 0.3, per_class: true"))["likely"] == before["likely"], "the default"
