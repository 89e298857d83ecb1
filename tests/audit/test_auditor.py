"""Audits of pseudo labels: what they record, that they change nothing, and that a kill changes nothing of them."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.pipeline.chain import assert_same, course
from tests.pipeline.victims import run
from tests.processes import in_child, start
from tests.projects import Project, write_list, write_project
from tutelage import api
from tutelage.audit import auditor
from tutelage.audit.settings import StopRule
from tutelage.cli import main
from tutelage.data.pseudo_labels import PseudoLabelFolder
from tutelage.engine.log import read_log
from tutelage.evaluation.inference import predict_labels
from tutelage.evaluation.protocol import Protocol
from tutelage.nets.storage import load_segmentor
from tutelage.pipeline.audited_data import held_out_images
from tutelage.pipeline.builder import Builder
from tutelage.recipe.loading import load_recipe
from tutelage.runs.store import Store

RECIPE = """\
tutelage: 1
name: audited
out: runs
run: {device: cpu, threads: 1}
data:
  city:
    root: data
    classes: [road, car, sky, tree, sign]
    splits: {train: train.txt, more: more.txt, val: val.txt}
nets:
  small: {encoder: test_efficientnet, decoder: lraspp, width: 16}
stages:
  semi:
    method: mean_teacher
    nets: {student: small}
    streams:
      labeled: {data: city/train, batch: 2, augment: {crop: [32, 32]}}
      unlabeled: {data: city/more, batch: 2, augment: {crop: [32, 32]}}
    steps: 5
    checkpoint_every: 2
    log_every: 1
    evaluate: {data: city/val, every: 1}
    audit: {threshold: 0.22}
"""
AUDIT = "    audit: {threshold: 0.22}\n"
ROUNDS = """\
  maps: {kind: annotate, net: semi.ema, data: city/more, policy: {kind: threshold, threshold: 0.22},
         audit: {val: city/val}}
  again:
    method: supervised
    nets: {student: small}
    streams: {labeled: {data: maps, batch: 2, augment: {crop: [32, 32]}}}
    steps: 2
  later: {kind: annotate, net: again, data: city/more, audit: {threshold: 0.22}}
  last:
    method: supervised
    nets: {student: small}
    streams: {labeled: {data: [city/train, later], batch: 2, augment: {crop: [32, 32]}}}
    steps: 2
    audit: {images: 1}
  score: {kind: evaluate, nets: [semi, last], data: city/val}
  page: {kind: report, scores: score, images: 2}
"""


def write_audited(root: Path, *changes: tuple[str, str], more: str = "") -> Path:
    """The project, with (old, new) replaced in its recipe; its run folder."""
    text = RECIPE + more
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    write_project(root, text)
    write_list(root / "data" / "train.txt", range(2))
    write_list(root / "data" / "more.txt", range(2, 4))
    return root / "runs"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_audited(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a training that was left alone."""
    root = tmp_path_factory.mktemp("whole")
    runs = write_audited(root)
    assert in_child(run, root) == 0
    return runs


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with two rounds of labelling and a report."""
    root = tmp_path_factory.mktemp("rounds")
    write_audited(root, more=ROUNDS)
    assert in_child(run, root) == 0
    return root


def artefact(runs: Path, stage: str = "semi") -> Path:
    (found,) = runs.glob(f"{stage}-*")
    return found


def records(runs: Path, stage: str = "semi") -> list[dict[str, Any]]:
    return read_log(artefact(runs, stage) / "audit.jsonl")


def remade(project: Project, *changes: tuple[str, str]) -> list[dict[str, Any]]:
    """The records of the project's recipe after some changes."""
    project.edit(*changes)
    assert project.tutelage("run", "recipe.yaml").status == 0
    return records(project.root / "runs")


@pytest.fixture
def fresh(root: Path, capsys: pytest.CaptureFixture[str]) -> Project:
    return Project(root, capsys)


# What is recorded


def test_every_evaluation_has_an_audit_of_every_net(whole: Path) -> None:
    found = records(whole)
    assert [record["step"] for record in found] == [1, 2, 3, 4, 5]
    for record in found:
        assert list(record["nets"]) == ["student", "ema"]
        assert (record["data"], record["images"], record["val"], record["val_images"]) == (
            "city/more",
            2,
            "city/val",
            2,
        )
        assert list(record["agreement"]) == ["student/ema"]
        for figures in record["nets"].values():
            assert sum(figures["shares"]) == pytest.approx(1, abs=1e-5)
            assert 0 <= figures["coverage"] <= 1
            assert (figures["change"] is None) == (record["step"] == 1)
            assert figures["val"]["calibration"]["fitted_on"] == 1
    assert "NaN" not in (artefact(whole) / "audit.jsonl").read_text(encoding="utf-8")


def assert_recorded_what_the_nets_say(runs: Path) -> None:
    """Compute the figures of the nets that were handed on from scratch."""
    facts = json.loads((artefact(runs) / "artefact.json").read_text(encoding="utf-8"))["facts"]
    record = records(runs)[facts["best_step"] - 1]
    images, said = runs.parent / "data" / "images", {}
    for name, figures in record["nets"].items():
        net, _ = load_segmentor(artefact(runs) / "nets" / f"{name}.safetensors")
        with net.inferring() as ready:
            pairs = [
                predict_labels(ready, np.asarray(Image.open(images / f"i{number}.png")), Protocol(), confidence=True)
                for number in (2, 3)
            ]
        label = said[name] = np.stack([label for label, _ in pairs])
        confidence = np.stack([sure for _, sure in pairs if sure is not None])
        assert figures["coverage"] == pytest.approx((confidence >= 57).mean(), abs=1e-6)
        assert figures["confidence"] == pytest.approx(confidence.mean() / 255, abs=1e-6)
        assert figures["shares"] == pytest.approx([(label == k).mean() for k in range(5)], abs=1e-6)
        assert sorted(figures["worst"]) == [
            [place, f"images/i{place + 2}", pytest.approx(confidence[place].mean() / 255, abs=1e-6)] for place in (0, 1)
        ]
        assert figures["worst"] == sorted(figures["worst"], key=lambda one: float(one[2]))
    agreed = record["agreement"]["student/ema"]
    assert agreed["share"] == pytest.approx((said["student"] == said["ema"]).mean(), abs=1e-6)


def test_what_is_recorded_is_what_the_nets_say(whole: Path) -> None:
    assert_recorded_what_the_nets_say(whole)


def test_precision_is_that_of_the_evaluation(whole: Path) -> None:
    evaluated = {one["step"]: one["evaluation"] for one in course(whole)[artefact(whole).name] if "evaluation" in one}
    for record in records(whole):
        for name, figures in record["nets"].items():
            accuracy = evaluated[record["step"]][name]["pixel_accuracy"]
            assert figures["val"]["every"]["share"] == pytest.approx(accuracy, abs=1e-6)


def test_the_evaluation_is_shared_where_it_is_the_same(fresh: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr("tutelage.audit.records.evaluate", lambda *given, **named: calls.append(1))
    assert fresh.tutelage("run", "recipe.yaml", "stages.semi.steps=1").status == 0
    assert calls == []


def test_an_own_pass_over_the_same_images_records_the_same(fresh: Project, whole: Path) -> None:
    """Without an evaluation, or with another rhythm, the audit looks for itself."""
    own = (
        ("    evaluate: {data: city/val, every: 1}\n", ""),
        (AUDIT, "    audit: {threshold: 0.22, val: city/val, every: 1}\n"),
    )
    assert remade(fresh, *own) == records(whole)


# It changes nothing


def test_training_with_audits_makes_the_nets_of_one_without(fresh: Project, whole: Path) -> None:
    fresh.edit((AUDIT, ""))
    assert fresh.tutelage("run", "recipe.yaml").status == 0
    plain = artefact(fresh.root / "runs")
    assert not (plain / "audit.jsonl").exists()
    assert plain.name != artefact(whole).name
    for net in ("student", "ema"):
        path = f"nets/{net}.safetensors"
        assert (plain / path).read_bytes() == (artefact(whole) / path).read_bytes()
    assert list(course(fresh.root / "runs").values()) == list(course(whole).values())


def test_without_an_audit_keys_are_as_before(fresh: Project) -> None:
    fresh.edit((AUDIT, "    audit: null\n"))
    given = load_recipe(fresh.recipe)
    builder = Builder(given)
    builder.assign(Store(Path("runs")))


# Killed


@pytest.mark.parametrize(
    ("place", "number"),
    [
        ("tutelage.engine.checkpoint:write", 1),  # audits of the steps 1 and 2, no checkpoint
        ("tutelage.audit.auditor:Auditor._store", 4),  # in step 4, with a checkpoint of step 2
        ("tutelage.audit.auditor:Auditor._forget", 4),  # its record is written
        ("tutelage.engine.checkpoint:write", 2),  # step 4 again, the maps before step 3 are gone
        ("tutelage.runs.store:Artefact.finish", 1),
    ],
)
def test_killed_and_resumed_the_records_are_the_same(root: Path, whole: Path, place: str, number: int) -> None:
    assert in_child(run, root, place, number) == -signal.SIGKILL
    assert main(["run", "recipe.yaml"]) == 0
    assert "the labels of step" not in (root / "said.txt").read_text(encoding="utf-8")
    assert_same(root / "runs", whole)
    assert (artefact(root / "runs") / "audit.jsonl").read_bytes() == (artefact(whole) / "audit.jsonl").read_bytes()


def test_killed_at_disk_calls(root: Path, whole: Path) -> None:
    for number in (17, 29):
        assert in_child(run, root, "disk", number) == -signal.SIGKILL
    assert main(["run", "recipe.yaml"]) == 0
    assert_same(root / "runs", whole)


def test_maps_of_old_audits_go(root: Path) -> None:
    assert in_child(run, root, "tutelage.runs.store:Artefact.finish", 1) == -signal.SIGKILL
    maps = sorted(path.name for path in (artefact(root / "runs") / "checkpoints").glob("audit-*"))
    assert maps == [f"audit-{step:09d}-0.npz" for step in (2, 3, 4, 5)], "the checkpoints are of the steps 4 and 5"


def test_with_damaged_maps_the_change_is_unknown(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert in_child(run, root, "tutelage.audit.auditor:Auditor._store", 4) == -signal.SIGKILL
    path = artefact(root / "runs") / "checkpoints" / f"audit-{2:09d}-0.npz"
    path.write_bytes(path.read_bytes()[:100])
    assert main(["run", "recipe.yaml"]) == 0
    assert "the labels of step 2 are damaged" in capsys.readouterr().out
    changes = [record["nets"]["student"]["change"] for record in records(root / "runs")]
    assert [change is None for change in changes] == [True, False, True, False, False]


# Which images


@pytest.mark.parametrize(
    ("change", "note"),
    [
        ("val: null", "audit.val is null"),
        ("val: city/more", "2 of 2 images of city/more are left out: training uses them"),
        ("val: city/train", "2 of 2 images of city/train are left out: training uses them"),
    ],
)
def test_precision_is_off_where_there_is_no_image_for_it(fresh: Project, change: str, note: str) -> None:
    found = remade(
        fresh, ("audit: {threshold: 0.22}", f"audit: {{threshold: 0.22, {change}}}"), ("steps: 5", "steps: 1")
    )
    assert found[0]["val"] is None
    assert found[0]["val_note"] == note
    assert "val" not in found[0]["nets"]["student"]


def test_it_is_said_when_it_is_off(fresh: Project) -> None:
    fresh.edit(("    evaluate: {data: city/val, every: 1}\n", ""), ("steps: 5", "steps: 1"))
    told = fresh.tutelage("run", "recipe.yaml")
    assert "audit: precision and calibration are off: the stage has no `evaluate`" in told.out


def test_images_that_training_uses_are_left_out_of_val(fresh: Project) -> None:
    write_list(fresh.root / "data" / "val.txt", range(3, 6))
    found = remade(fresh, ("steps: 5", "steps: 1"))
    assert found[0]["val_images"] == 2
    assert found[0]["val_note"] == "1 of 3 images of city/val are left out: training uses them"
    assert {title for _, title, _ in found[0]["nets"]["student"]["val"]["worst"]} <= {"images/i4", "images/i5"}


def test_images_that_trained_the_net_before_are_left_out_too(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`later` is written by a net that learnt from maps; what made the maps has seen `train` and `more`."""
    monkeypatch.chdir(finished)
    builder = Builder(load_recipe(finished / "recipe.yaml"))
    builder.assign(Store(Path("runs")))
    later = builder.recipe.stages["later"]
    assert held_out_images(builder, "city/train", later).dataset is None
    assert len(held_out_images(builder, "city/val", later).indices) == 2


def test_data_and_images_can_be_chosen(fresh: Project) -> None:
    chosen = "audit: {threshold: 0.22, data: [city/train, city/more], images: 3, every: 2}"
    found = remade(fresh, ("audit: {threshold: 0.22}", chosen))
    assert [record["step"] for record in found] == [2, 4, 5]
    assert (found[0]["data"], found[0]["images"]) == ("city/train, city/more", 3)


# Warnings and the stop rule


def test_a_lost_class_is_warned_of(fresh: Project) -> None:
    told = fresh.tutelage("run", "recipe.yaml", "stages.semi.steps=1")
    (record,) = records(fresh.root / "runs")
    shares = record["nets"]["student"]["shares"]
    lost = [index for index, share in enumerate(shares) if share < 0.1 * record["label_shares"][index]]
    assert lost
    assert {"net": "student", "kind": "missing", "classes": lost} in record["warnings"]
    assert "warning: student: hardly named so far: " in told.out


def test_asked_for_it_ends_the_training(fresh: Project) -> None:
    rule = "audit: {threshold: 0.22, val: null, stop: {change: 1.0, rounds: 2}}"
    fresh.edit(("audit: {threshold: 0.22}", rule))
    ran = fresh.tutelage("run", "recipe.yaml")
    assert ran.status == 0
    assert "the pseudo labels have settled: training ends after step 3" in ran.out
    runs = fresh.root / "runs"
    assert [record["settled"] for record in records(runs)] == [False, False, True]
    facts = json.loads((artefact(runs) / "artefact.json").read_text(encoding="utf-8"))["facts"]
    assert facts["steps"] == 3


def test_report_only_it_says_where_training_could_stop(fresh: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auditor, "StopRule", lambda: StopRule(change=1.0, rounds=2))
    ran = fresh.tutelage("run", "recipe.yaml", "stages.semi.audit.val=null")
    assert ran.out.count("training could stop at step 3") == 1
    assert len(records(fresh.root / "runs")) == 5


def test_ended_by_the_rule_a_killed_run_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rule = ("audit: {threshold: 0.22}", "audit: {threshold: 0.22, val: null, stop: {change: 1.0, rounds: 2}}")
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    left = write_audited(tmp_path / "one", rule, ("checkpoint_every: 2", "checkpoint_every: 1"))
    killed = write_audited(tmp_path / "two", rule, ("checkpoint_every: 2", "checkpoint_every: 1"))
    assert in_child(run, tmp_path / "one") == 0
    assert in_child(run, tmp_path / "two", "tutelage.runs.store:Artefact.finish", 1) == -signal.SIGKILL
    monkeypatch.chdir(tmp_path / "two")
    assert main(["run", "recipe.yaml"]) == 0
    assert_same(killed, left)
    assert len(records(killed)) == 3


# Labels that were written


def label_audit(runs: Path, stage: str) -> dict[str, Any]:
    path = artefact(runs, stage) / "audit.json"
    manifest = json.loads((artefact(runs, stage) / "artefact.json").read_text(encoding="utf-8"))
    assert "audit.json" in manifest["files"]
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def written(runs: Path, stage: str) -> tuple[np.ndarray, np.ndarray]:
    folder = PseudoLabelFolder(artefact(runs, stage) / "labels")
    names = ("images/i2", "images/i3")
    label, confidence = (
        [np.asarray(Image.open(path(name))) for name in names] for path in (folder.label, folder.confidence)
    )
    return np.stack(label), np.stack(confidence)


def test_written_labels_are_audited(finished: Path) -> None:
    found = label_audit(finished / "runs", "maps")
    label, confidence = written(finished / "runs", "maps")
    assert found["labelled"] == found["coverage"] == pytest.approx((label != 255).mean(), abs=1e-6)
    assert found["confidence"] == pytest.approx(confidence.mean() / 255, abs=1e-6)
    named = label[label != 255]
    assert found["shares"] == pytest.approx([(named == k).mean() for k in range(5)], abs=1e-6)
    assert found["covered"] == "labelled by the policy"
    assert found["val_images"] == 2
    assert 0 <= found["val"]["sure"]["share"] <= 1


def test_without_val_the_audit_of_labels_is_free(finished: Path) -> None:
    found = label_audit(finished / "runs", "later")
    label, confidence = written(finished / "runs", "later")
    assert found["val"] is None
    assert found["labelled"] == 1
    assert found["coverage"] == pytest.approx((confidence >= 57).mean(), abs=1e-6)
    assert found["shares"] == pytest.approx([(label == k).mean() for k in range(5)], abs=1e-6)


def test_the_precision_of_written_labels_is_that_of_the_policy(finished: Path) -> None:
    """The net labels the validation images by the same policy, and these maps are compared with the masks."""
    runs = finished / "runs"
    found = label_audit(runs, "maps")["val"]
    net, _ = load_segmentor(artefact(runs) / "nets" / "ema.safetensors")
    right = labelled = 0
    with net.inferring() as ready:
        for number in (4, 5):
            image = np.asarray(Image.open(finished / "data" / "images" / f"i{number}.png"))
            truth = np.asarray(Image.open(finished / "data" / "masks" / f"i{number}.png"))
            label, confidence = predict_labels(ready, image, Protocol(), confidence=True)
            assert confidence is not None
            kept = confidence >= 57
            right, labelled = right + int((kept & (label == truth)).sum()), labelled + int(kept.sum())
    assert found["sure"]["share"] == pytest.approx(right / labelled, abs=1e-6)


# The report


def test_the_report_shows_audits_and_rounds(finished: Path) -> None:
    text = (finished / "runs" / "report.html").read_text(encoding="utf-8")
    plain = " ".join(re.sub(r"<[^>]+>", " ", text).split())
    for said in (
        "Pseudo labels",
        "Audited: 2 images of city/more, without masks. Covered: confidence of at least 0.22.",
        "Precision: 2 labelled images of city/val.",
        "Stop rule: the labels have not settled.",
        "Precision and calibration are off: the stage has no `evaluate`",
        "Agreement student/ema",
        "Labels that were written",
        "later: precision and calibration are off (audit.val is null).",
        "since the round before",
        "Least sure: student",
        "Least right where sure: student",
        "Least sure: later",
    ):
        assert said in plain, said
    before, now = (written(finished / "runs", stage)[0] for stage in ("maps", "later"))
    both = before != 255
    assert f"{100 * (before != now)[both].mean():.2f}" in plain


def test_labels_without_an_audit_are_left_out_of_the_report(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Artefacts that were made before there were audits stay valid."""
    root = tmp_path / "project"
    shutil.copytree(finished, root)
    monkeypatch.chdir(root)
    for stage in ("maps", "later"):
        folder = artefact(root / "runs", stage)
        manifest = json.loads((folder / "artefact.json").read_text(encoding="utf-8"))
        del manifest["files"]["audit.json"]
        (folder / "artefact.json").write_text(json.dumps(manifest), encoding="utf-8")
        (folder / "audit.json").unlink()
    shutil.rmtree(artefact(root / "runs", "page"))
    api.run("recipe.yaml")
    text = (root / "runs" / "report.html").read_text(encoding="utf-8")
    assert "Labels that were written" not in text
    assert "Audited: 2 images" in text


# Recipes


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("audit: {data: city/nowhere}", "no split 'nowhere'"),
        ("audit: {data: town}", "no data set 'town'"),
        ("audit: {val: town/val}", "no data set 'town'"),
        ("audit: {threshold: 0}", "threshold"),
        ("audit: {stop: {rounds: 0}}", "rounds"),
        ("audit: {treshold: 0.5}", "treshold"),
    ],
)
def test_faults_are_found_before_anything_is_made(fresh: Project, change: str, said: str) -> None:
    fresh.edit(("audit: {threshold: 0.22}", change))
    ran = fresh.tutelage("run", "recipe.yaml")
    assert ran.status != 0
    assert said in ran.err
    assert not fresh.finished()


def test_pseudo_labels_are_no_truth(fresh: Project) -> None:
    fresh.recipe.write_text(RECIPE + ROUNDS.replace("audit: {images: 1}", "audit: {val: maps}"), encoding="utf-8")
    ran = fresh.tutelage("run", "recipe.yaml")
    assert "error[pseudo-labels-as-truth]" in ran.err


# Several processes


def run_together(root: Path, rank: int, port: int) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), TUTELAGE_CACHE=str(root / "cache"))
    os.chdir(root)
    raise SystemExit(main(["run", "recipe.yaml", "--quiet"]))


def test_several_processes_record_what_their_nets_say(tmp_path: Path) -> None:
    runs = write_audited(tmp_path, ("steps: 5", "steps: 2"))
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    processes = [start(run_together, tmp_path, rank, port) for rank in range(2)]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert_recorded_what_the_nets_say(runs)
    evaluated = {one["step"]: one["evaluation"] for one in course(runs)[artefact(runs).name] if "evaluation" in one}
    for record in records(runs):
        for name, figures in record["nets"].items():
            assert figures["val"]["every"]["share"] == pytest.approx(
                evaluated[record["step"]][name]["pixel_accuracy"], abs=1e-6
            )
    assert records(runs)[1]["nets"]["student"]["change"] is not None
