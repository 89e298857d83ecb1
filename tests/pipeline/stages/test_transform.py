"""Stages `transform`: their name stands where data stand, masks are the originals', processes share the work."""

from __future__ import annotations

import socket
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.pipeline import victims
from tests.pipeline.chain import content
from tests.processes import start
from tests.projects import DATA, Project, made, write_list, write_project
from tutelage.pipeline.builder import Builder
from tutelage.recipe.loading import load_recipe
from tutelage.runs.store import Store

RECIPE = (
    """\
tutelage: 1
name: copies
out: runs
run: {device: cpu, threads: 1}
"""
    + DATA
    + """\
nets:
  small: {encoder: test_efficientnet, decoder: lraspp, width: 16}
  plain: {encoder: test_efficientnet, decoder: lraspp, width: 16, normalisation: none}
stages:
  looks: {kind: transform, data: city/train, target: city/val, style: {kind: statistics}, seed: 5}
  teacher:
    method: supervised
    nets: {student: small}
    streams: {labeled: {data: looks, batch: 2}}
    steps: 1
    evaluate: {data: looks}
  marked: {kind: annotate, net: teacher, data: looks}
  student:
    method: supervised
    nets: {student: small}
    streams: {labeled: {data: marked, batch: 2}}
    steps: 1
  score: {kind: evaluate, nets: [student], data: looks}
"""
)

MAPS = (
    RECIPE.partition("  teacher:")[0]
    + """\
  maps:
    kind: fit
    what: {kind: transferability, size: [32, 32], pool: [1, 1], centres: 3}
    encoder: plain
    data: looks
    target: city/val
"""
)


@pytest.fixture
def copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Project:
    write_project(tmp_path, RECIPE)
    monkeypatch.chdir(tmp_path)
    return Project(tmp_path, capsys)


def test_copies_are_trained_on_labelled_and_scored(copies: Project) -> None:
    assert copies.tutelage("run", "recipe.yaml").status == 0
    (looks,) = (copies.root / "runs").glob("looks-*")
    assert len(list((looks / "images").rglob("*.png"))) == 4
    builder = Builder(load_recipe(copies.recipe))
    builder.assign(Store(copies.root / "runs"))
    marked = builder.dataset("marked")
    assert all(looks in sample.image.parents for sample in marked.samples), "labels of copies beside the copies"
    assert all(sample.label is not None and looks not in sample.label.parents for sample in marked.samples)
    checked = copies.tutelage("check", "recipe.yaml")
    assert checked.status == 0, checked.err
    assert made(copies.tutelage("run", "recipe.yaml", "seed=1").out)[:1] != ["looks"], "it has a seed of its own"


def test_a_target_of_other_sizes_and_bit_depths(copies: Project) -> None:
    draw = np.random.default_rng(0)
    Image.fromarray(draw.integers(0, 65536, (30, 20)).astype(np.uint16)).save(copies.image(4))
    Image.fromarray(draw.integers(0, 256, (7, 90), dtype=np.uint8)).save(copies.image(5))
    assert copies.tutelage("run", "recipe.yaml", "--only", "looks").status == 0
    (looks,) = (copies.root / "runs").glob("looks-*")
    for path in (looks / "images").rglob("*.png"):
        with Image.open(path) as image:
            assert (image.mode, image.size) == ("RGB", (64, 48))


def test_masks_of_the_originals_are_looked_at_before_anything_runs(copies: Project) -> None:
    copies.mask(2).unlink()
    for text, user in ((RECIPE, "stage 'score'"), (MAPS, "stage 'maps'")):
        copies.recipe.write_text(text)
        ran = copies.tutelage("run", "recipe.yaml")
        assert ran.status != 0
        assert user in ran.err
    assert "i2.png" in ran.err
    assert not copies.finished()


def test_changed_originals_or_targets_make_new_copies(copies: Project) -> None:
    assert copies.tutelage("run", "recipe.yaml", "--only", "looks").status == 0
    copies.image(5).write_bytes(copies.image(4).read_bytes())
    ran = copies.tutelage("run", "recipe.yaml", "--only", "looks")
    assert made(ran.out) == ["looks"]
    assert len(copies.finished()) == 2


def test_an_empty_target_is_an_error(copies: Project) -> None:
    write_list(copies.data / "val.txt", [])
    ran = copies.tutelage("run", "recipe.yaml", "--only", "looks")
    assert ran.status != 0
    assert "no images" in ran.err or "empty" in ran.err
    assert "Traceback" not in ran.err


def test_two_processes_make_the_same_files(copies: Project, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other")
    write_project(other, MAPS)
    copies.recipe.write_text(MAPS)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = [start(victims.run_in_company, other, rank, 2, port, -1) for rank in range(2)]
    assert copies.tutelage("run", "recipe.yaml").status == 0
    for process in ranks:
        process.join(120)
        assert process.exitcode == 0, (other / "said-0.txt").read_text()
    assert content(other / "runs") == content(copies.root / "runs")
