"""Stages `fit`: what they write, who uses it, what is refused before anything runs, and what happens to it by hand."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from tests.pipeline import victims
from tests.pipeline.adaptation import ADAPTATION, FITS, REGISTERED, STAGES, Prototyped, write_adaptation
from tests.pipeline.chain import content
from tests.processes import in_child
from tests.projects import Project, made
from tutelage.annotate.fits import MeansFit
from tutelage.cli import main
from tutelage.data.stream import Stream
from tutelage.errors import RecipeError, TutelageError
from tutelage.pipeline.builder import Builder
from tutelage.pipeline.stages.train import TrainRunner
from tutelage.pipeline.training_cost import measure
from tutelage.prototypes.gaussians import Mixtures
from tutelage.prototypes.means import ClassMeans
from tutelage.prototypes.storage import load_tensors
from tutelage.recipe.loading import json_schema, load_recipe, parse_recipe, resolved
from tutelage.recipe.references import stages_before
from tutelage.recipe.stages.fit import FitStage
from tutelage.recipe.stages.train import TrainStage
from tutelage.runs.store import Store

CLASSES = ("road", "car", "sky", "tree", "sign")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("finished")
    write_adaptation(root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(*REGISTERED)
        patch.chdir(root)
        assert main(["run", "recipe.yaml", "--quiet"]) == 0
    return root


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(*REGISTERED)


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Project:
    write_adaptation(tmp_path)
    monkeypatch.chdir(tmp_path)
    return Project(tmp_path, capsys)


def folder(root: Path, stage: str) -> Path:
    (found,) = (root / "runs").glob(f"{stage}-*")
    return found


def builder_of(root: Path) -> Builder:
    builder = Builder(load_recipe(root / "recipe.yaml"))
    builder.assign(Store(root / "runs"))
    return builder


# What they write


def test_every_fit_is_a_file_of_its_own_with_facts_beside_it(finished: Path) -> None:
    for name in FITS:
        manifest = json.loads((folder(finished, name) / "artefact.json").read_text())
        assert {"fitted.safetensors", "fit.json"} <= manifest["files"].keys()
        assert not (folder(finished, name) / "parts").exists()
    means = ClassMeans(5, 24)
    names, facts = means.load(folder(finished, "means") / "fitted.safetensors")
    assert names == CLASSES
    assert facts == json.loads((folder(finished, "means") / "fit.json").read_text())
    absent = [name for name, known in zip(names, means.present.tolist(), strict=True) if not known]
    assert facts["without_samples"] == absent
    mixtures, facts = Mixtures.load(folder(finished, "mixtures") / "fitted.safetensors")
    assert mixtures.classes == CLASSES
    assert [name for name, known in zip(CLASSES, mixtures.present_K.tolist(), strict=True) if not known] == facts[
        "without_samples"
    ]
    tensors, about = load_tensors(folder(finished, "maps") / "fitted.safetensors", "transferability")
    assert tensors["distance"].shape[0] == 4
    assert max(about["facts"]["bonus"].values()) == 1.0


def test_the_method_gets_tensors_and_names(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(finished)
    builder = builder_of(finished)
    runner = builder.runner("student")
    nets = runner.nets()
    assert set(nets) == {"student"}, "a fit is not a net"
    method = runner.method(nets, runner.streams())
    assert isinstance(method, Prototyped)
    assert method.names == CLASSES
    torch.testing.assert_close(method.prototypes, builder.fitted("means")["prototypes"])


def test_a_fit_of_other_classes_is_refused(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(finished)
    builder = builder_of(finished)
    means = ClassMeans(5, 24)
    means.prototypes.fill_(1.0)
    means.counts.fill_(1.0)
    path = finished / "other.safetensors"
    means.save(path, [*CLASSES[1:], CLASSES[0]])
    artefact = builder.artefacts["means"]
    monkeypatch.setattr(type(artefact), "fitted", path)
    with pytest.raises(TutelageError, match="fitted for other classes: car, sky, tree, sign, road"):
        builder.fitted("means")


# Weights in streams


def weighted(root: Path, **changes: object) -> Stream:
    builder = builder_of(root)
    stage = builder.recipe.stages["student"]
    assert isinstance(stage, TrainStage)
    settings = stage.streams["labeled"].model_copy(update=changes)
    changed = stage.model_copy(update={"streams": {"labeled": settings}})
    return TrainRunner(builder, "student", changed).streams()["labeled"]


def test_weights_go_through_the_geometry_of_their_image(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(finished)
    stream = weighted(finished)
    grown = stream.augment.model_copy(update={"crop": (70, 80), "scale": (0.8, 0.8), "flip": 1.0})
    stream.augment = grown
    (batch,) = stream.batches(0, 1, 1, 0, 1, torch.device("cpu"))
    view = batch["weak"]
    weight = view.maps["weight"]
    assert weight.dtype == torch.float32
    assert weight.shape == view.label.shape
    assert not bool(view.valid.all())
    assert float(weight[~view.valid].abs().max()) == 0.0, "padding weighs nothing"
    assert float(weight.max()) <= 1.0
    for place, name in enumerate(batch.samples):
        number = int(name.rpartition("/i")[2].partition(".")[0].removeprefix("images/i") or 0)
        stored = [path for path in (folder(finished, "maps") / "weights").rglob("*.png") if f"i{number}" in path.name]
        with Image.open(stored[0]) as image:
            values = set(np.unique(np.asarray(image)).tolist())
        shown = set((weight[place][view.valid[place]] * 255).round().int().unique().tolist())
        assert shown <= values


def test_streams_without_weights_have_no_such_map(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(finished)
    (batch,) = weighted(finished, weights=None).batches(0, 1, 1, 0, 1, torch.device("cpu"))
    assert set(batch["weak"].maps) == {"label"}


def test_the_copys_pixels_and_the_originals_masks_are_read(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(finished)
    builder = builder_of(finished)
    original, copy = builder.dataset("city/train"), builder.dataset("looks")
    assert [sample.label for sample in copy.samples] == [sample.label for sample in original.samples]
    for index in range(4):
        assert copy.image(index).shape == original.image(index).shape
        assert not np.array_equal(copy.image(index), original.image(index))


# Keys, plans, displays


def planned(project: Project, *overrides: str) -> dict[str, str]:
    told = project.tutelage("plan", "recipe.yaml", *overrides, "--no-smoke")
    assert told.status == 0
    rows = [line.split(maxsplit=3) for line in told.out.splitlines()]
    assert tuple(row[0] for row in rows) == STAGES
    return {row[0]: row[3] for row in rows if row[2] == "runs"}


def test_what_is_finished_is_skipped(done: Project) -> None:
    assert planned(done) == {}
    ran = done.tutelage("run", "recipe.yaml")
    assert (ran.status, made(ran.out)) == (0, [])


@pytest.mark.parametrize(
    ("change", "first"),
    [
        ("stages.looks.style.beta=0.2", ("looks", "teacher", "means", "anchors", "mixtures", "unsure", "maps")),
        ("stages.means.what.min_pixels=2", ("means",)),
        ("stages.anchors.what.count_cap=5", ("anchors",)),
        ("stages.mixtures.what.components=3", ("mixtures",)),
        ("stages.mixtures.seed=4", ("mixtures",)),
        ("stages.unsure.protocol.flip=true", ("unsure", "maps")),
        ("stages.maps.what.centres=2", ("maps",)),
        ("nets.plain.width=24", ("maps",)),
    ],
)
def test_a_changed_setting_makes_what_depends_on_it(done: Project, change: str, first: tuple[str, ...]) -> None:
    after = {"student", "score"} if {"means", "maps"} & set(first) else set()
    assert set(planned(done, change)) == {*first, *after}


def test_a_plan_measures_a_stage_whose_fits_are_not_made(fresh: Project) -> None:
    cost = measure(load_recipe(fresh.recipe, ["stages.student.streams.labeled.data=city/train"]), "student")
    assert cost.step_seconds > 0
    assert not fresh.finished()


def test_only_a_stage_whose_inputs_are_missing_says_so(fresh: Project) -> None:
    ran = fresh.tutelage("run", "recipe.yaml", "--only", "student")
    assert ran.status != 0
    assert "stage 'student' needs stage" in ran.err


def test_show_draws_copies_and_weights_or_says_what_is_missing(done: Project) -> None:
    shown = done.tutelage("show", "recipe.yaml", "--stage", "student", "--count", "2", "--out", "sheets")
    assert shown.status == 0, shown.err
    assert (done.root / "sheets" / "student-labeled.png").is_file()
    shown = done.tutelage("show", "recipe.yaml", "stages.maps.what.centres=2", "--stage", "student", "--out", "more")
    assert "skipped; it needs the stage 'maps'" in shown.out


# By hand


@pytest.mark.parametrize(
    ("stage", "part", "reason"),
    [
        ("means", "fitted.safetensors", "was changed after it was made"),
        ("mixtures", "fit.json", "is gone"),
        ("maps", "weights/", "was changed after it was made"),
        ("looks", "images/", "is gone"),
    ],
)
def test_what_was_edited_or_deleted_is_made_again_and_said(done: Project, stage: str, part: str, reason: str) -> None:
    before = content(done.root / "runs")
    there = folder(done.root, stage)
    path = next(
        path for path in sorted(there.rglob("*")) if path.is_file() and part in path.relative_to(there).as_posix()
    )
    if reason == "is gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert list(planned(done)) == [stage]
    ran = done.tutelage("run", "recipe.yaml")
    assert ran.status == 0
    assert made(ran.out) == [stage]
    assert f"{path.name} {reason}; it is made again" in ran.out
    assert content(done.root / "runs") == before


# Interrupted


def run_registered(root: Path, where: str = "", number: int = 0) -> None:
    """As :func:`victims.run`, with the method of these tests."""
    REGISTERED[0][REGISTERED[1]] = REGISTERED[2]
    victims.run(root, where, number)


@pytest.mark.parametrize(
    "place",
    [
        "tutelage.prototypes.means:ClassMeans.save",
        "tutelage.annotate.mixtures:fit_mixtures",
        "tutelage.data.weights:WeightFolder.write",
        "tutelage.data.copies:CopyFolder.finish",
    ],
)
def test_killed_it_ends_with_the_same_bytes(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    write_adaptation(tmp_path)
    monkeypatch.chdir(tmp_path)
    number = 2 if place.endswith("write") else 1
    assert in_child(run_registered, tmp_path, place, number) < 0
    assert main(["run", "recipe.yaml", "--quiet"]) == 0
    assert content(tmp_path / "runs") == content(finished / "runs")


@pytest.mark.parametrize("stage", ["looks", *FITS])
def test_a_full_disk_is_told_and_the_stage_goes_on(done: Project, stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk has room for no file of the stage, then for one, and so on, until it is finished."""
    before = content(done.root / "runs")
    place = folder(done.root, stage)
    shutil.rmtree(place)
    replace, refused = os.replace, 0
    for room in range(20):
        left = [room]

        def full(source: Path, target: Path, left: list[int] = left) -> None:
            if place.name in str(target) and target.name != "times.json":  # which is written when all is done
                left[0] -= 1
                if left[0] < 0:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
            replace(source, target)

        with monkeypatch.context() as patched:
            patched.setattr(os, "replace", full)
            ran = done.tutelage("run", "recipe.yaml", "--only", stage)
        assert done.partial() == []
        if ran.status == 0:
            break
        refused += 1
        assert "the disk is full" in ran.err
        assert "No space left on device" in ran.err
        assert "run the same command again" in ran.err or "give the same command again" in ran.err
        assert place.name not in done.finished()
    assert refused > 1
    assert ran.status == 0
    assert content(done.root / "runs") == before


# Images that cannot be read


def test_unreadable_images_end_the_run_or_are_named(fresh: Project) -> None:
    fresh.image(1).write_bytes(b"no image")
    ran = fresh.tutelage("run", "recipe.yaml", "--only", "looks")
    assert ran.status != 0
    assert "i1.png" in ran.err
    ran = fresh.tutelage("run", "recipe.yaml", "--only", "looks", "run.on_unreadable=skip")
    assert ran.status == 0
    assert "1 images cannot be read and are skipped: images/i1" in ran.out
    os.chdir(fresh.root)
    assert len(builder_of(fresh.root).dataset("looks")) == 3


# Faults of recipes


def faults(*changes: tuple[str, str]) -> list[tuple[str, str]]:
    """Code and text of every error."""
    text = ADAPTATION
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new, 1)
    with pytest.raises(RecipeError) as raised:
        parse_recipe(text, Path("."))
    return [(code, message) for _, code, message in raised.value.faults]


FAULTS = {
    "a fit that is not there": (
        "inputs: {prototypes: means}",
        "inputs: {prototypes: meens}",
        "unknown-stage",
        "means",
    ),
    "a trained net where a fit is meant": (
        "inputs: {prototypes: means}",
        "inputs: {prototypes: teacher}",
        "unknown-stage",
        "",
    ),
    "a fit of another kind": (
        "inputs: {prototypes: means}",
        "inputs: {prototypes: mixtures}",
        "fit-kind",
        "",
    ),
    "a fit that is missing": (
        "    inputs: {prototypes: means}\n",
        "",
        "missing-input",
        "",
    ),
    "a role that the method has not": (
        "inputs: {prototypes: means}",
        "inputs: {prototypes: means, prototype: means}",
        "unknown-role",
        "prototypes",
    ),
    "weights of another kind": (
        "weights: maps",
        "weights: means",
        "fit-kind",
        "",
    ),
    "weights of other images": (
        "data: looks, weights: maps",
        "data: city/val, weights: maps",
        "weights-of-other-images",
        "",
    ),
    "weights of some of the images": (
        "data: looks, weights: maps",
        "data: [looks, city/val], weights: maps",
        "weights-of-other-images",
        "",
    ),
    "a copy with a split": (
        "data: looks, weights",
        "data: looks/train, weights",
        "stage-has-no-splits",
        "",
    ),
    "a net that is not there": ("encoder: plain", "encoder: plein", "unknown-net", "plain"),
    "data that are not there": (
        "net: teacher, data: city/val}\n  anchors",
        "net: teacher, data: town}\n  anchors",
        "unknown-data",
        "",
    ),
    "a bonus of the wrong fit": (
        "entropies: unsure",
        "entropies: means",
        "fit-kind",
        "",
    ),
    "no net": ("what: entropies, net: teacher,", "what: entropies,", "invalid-value", ""),
    "no target": ("    target: city/val\n", "", "invalid-value", ""),
    "a target for nothing": (
        "what: entropies, net: teacher,",
        "what: entropies, net: teacher, target: city/val,",
        "invalid-value",
        "",
    ),
    "windows for features": (
        "net: teacher, data: city/train}\n  unsure",
        "net: teacher, data: city/train, protocol: {kind: sliding, window: [32, 32]}}\n  unsure",
        "invalid-value",
        "",
    ),
    "an unknown kind": ("what: entropies", "what: entropy", "unknown-kind", "entropies"),
    "a misspelt setting": ("components: 2", "component: 2", "unknown-key", "components"),
    "two bonuses": ("centres: 3}", "centres: 3, bonus: gta5}", "invalid-value", ""),
}


@pytest.mark.parametrize("what", FAULTS)
def test_faults(what: str) -> None:
    old, new, expected, meant = FAULTS[what]
    ((code, text),) = faults((old, new))
    assert code == expected
    assert not meant or f"did you mean {meant!r}?" in text


def test_weights_of_images_that_a_copy_of_others_has_the_names_of() -> None:
    """A copy stands for its originals, which are other images here."""
    copy = "  other_looks: {kind: transform, data: city/val, target: city/train}\n"
    ((code, text),) = faults(
        ("  student:\n", f"{copy}  student:\n"), ("data: looks, weights: maps", "data: other_looks, weights: maps")
    )
    assert code == "weights-of-other-images"
    assert "other_looks" in text


def test_a_short_form_can_be_overridden() -> None:
    text = ADAPTATION.replace("what: {kind: means, min_pixels: 1}", "what: means")
    read = parse_recipe(text, Path("."), ["stages.means.what.min_pixels=3"])
    fit = read.recipe.stages["means"]
    assert isinstance(fit, FitStage)
    assert isinstance(fit.what, MeansFit)
    assert fit.what.min_pixels == 3
    again = parse_recipe(resolved(read.recipe), Path("."))
    assert resolved(again.recipe) == resolved(read.recipe)


def test_editors_know_the_stages() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads(json.dumps(json_schema()))
    stages = yaml.safe_load(ADAPTATION)["stages"]
    for name in ("looks", *FITS):
        kind = {"$ref": f"#/$defs/{'TransformStage' if name == 'looks' else 'FitStage'}", "$defs": schema["$defs"]}
        jsonschema.validate(stages[name], kind)
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**stages[name], "date": "today"}, kind)


def test_stages_before_are_known(finished: Path) -> None:
    recipe = load_recipe(finished / "recipe.yaml").recipe
    assert stages_before(recipe, "student") == ["looks", "means", "maps"]
    assert stages_before(recipe, "maps") == ["looks", "unsure"]
    assert stages_before(recipe, "means") == ["teacher"]
