"""Killed or stopped at any moment and run again, a whole recipe ends with the same bytes as one left alone."""

from __future__ import annotations

import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.pipeline.chain import STAGES, assert_same, content, course, write_chain
from tests.pipeline.victims import run, run_with_snapshots
from tests.processes import in_child, kill_until_done
from tutelage.cli import main
from tutelage.runs.checkpoints import Checkpoints

KILLED = -signal.SIGKILL


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a recipe that was left alone."""
    return finished(tmp_path_factory.mktemp("whole"), "disk")


def finished(root: Path, where: str = "") -> Path:
    runs = write_chain(root)
    assert in_child(run, root, where) == 0
    return runs


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh project, in which commands are given."""
    write_chain(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def survives(root: Path, whole: Path, *deaths: tuple[str, int]) -> None:
    """Kill the recipe at each of ``deaths``, one after another; then let it end and compare."""
    for where, number in deaths:
        assert in_child(run, root, where, number) == KILLED, (where, number)
    assert main(["run", "recipe.yaml"]) == 0
    assert_same(root / "runs", whole)


def test_two_runs_left_alone_end_with_the_same_bytes(whole: Path, tmp_path: Path) -> None:
    again = finished(tmp_path)
    assert_same(again, whole)
    names = content(whole)
    made = ("nets/student.safetensors", "labels/labels/", "nets/student.safetensors", "scores/student.json")
    for stage, part in zip(STAGES, made, strict=False):
        assert any(name.startswith(f"{stage}-") and part in name for name in names), stage
    assert sorted(len(records) for records in course(whole).values()) == [2, 6]


# Where in the course of the whole recipe; the comment says what lies on the disk then.
MOMENTS = {
    "inside a checkpoint": ("half a checkpoint", 2),
    "between best and last": ("tutelage.engine.checkpoint:write", 3),  # best weights of step 3, checkpoint of step 2
    "in an evaluation while training": ("tutelage.pipeline.stages.train:evaluate", 2),
    "before the net is declared finished": ("tutelage.runs.store:Artefact.finish", 1),
    "before its checkpoints go": ("tutelage.runs.store:Artefact.clear_checkpoints", 1),
    "half of the label maps written": ("tutelage.data.pseudo_labels:write_grey", 6),  # and the third's confidence
    "half of the label maps thinned": ("tutelage.annotate.pseudo_labels:_apply_levels", 3),
    "in the second stage that trains": ("tutelage.engine.checkpoint:write", 5),
    "between two scored nets": ("tutelage.pipeline.stages.evaluate:write_evaluation", 2),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed(whole: Path, root: Path, moment: str) -> None:
    survives(root, whole, MOMENTS[moment])


def test_killed_again_and_again(whole: Path, root: Path) -> None:
    """At drawn disk calls, each counted from where the last one died."""
    chance = random.Random(1)
    survives(root, whole, *(("disk", chance.randint(15, 60)) for _ in range(3)))


@pytest.mark.slow
def test_killed_before_every_disk_call(whole: Path, root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    runs, copies = root / "runs", tmp_path_factory.mktemp("copies")
    assert in_child(run_with_snapshots, root, copies) == 0
    assert_same(runs, whole)
    left = sorted(copies.iterdir())
    assert len(left) > 150
    for copy in left:
        shutil.rmtree(runs)
        shutil.copytree(copy, runs)
        assert main(["run", "recipe.yaml", "--quiet"]) == 0, copy.name
        assert_same(runs, whole)
        shutil.rmtree(copy)


@pytest.mark.slow
def test_killed_at_random_moments(whole: Path, tmp_path: Path) -> None:
    chance = random.Random(0)
    begun = time.monotonic()
    assert_same(finished(tmp_path / "timed"), whole)
    takes = time.monotonic() - begun
    kills = 0
    for number in range(6):
        root = tmp_path / str(number)
        runs = write_chain(root)
        kills += kill_until_done(run, root, lambda: chance.uniform(0.1, 0.9) * takes)
        assert_same(runs, whole)
    assert kills > 3


# Signals


@pytest.mark.parametrize(("name", "status"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_asked_to_stop_it_stops_in_order_and_goes_on(
    whole: Path, root: Path, name: str, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert in_child(run, root, name, 2, "stages.teacher.checkpoint_every=100") == status
    told = (root / "said.txt").read_text(encoding="utf-8")
    assert f"stopped by {name} after step 2" in told
    assert "run the same command again" in told
    assert Checkpoints(checkpoints(root / "runs")).steps() == [2], "though none was due"
    assert main(["run", "recipe.yaml"]) == 0
    told = capsys.readouterr().out
    assert "resuming after step 2" in told
    assert "not byte-exact" not in told
    assert_same(root / "runs", whole)


# Damaged checkpoints


@pytest.fixture(scope="module")
def halfway(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe that was killed before the checkpoint of its third step; it has those of the first and second."""
    root = tmp_path_factory.mktemp("halfway")
    runs = write_chain(root)
    assert in_child(run, root, "tutelage.engine.checkpoint:write", 3) == KILLED
    assert Checkpoints(checkpoints(runs)).steps() == [1, 2]
    return root


@pytest.fixture
def broken(halfway: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The run folder of a copy of it, in which commands are given."""
    shutil.copytree(halfway, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project" / "runs"


def checkpoints(runs: Path) -> Path:
    return next(runs.glob("teacher-*")) / "checkpoints"


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(("spoil", "suffix"), [(flip_a_byte, "safetensors"), (truncate, "json")])
def test_the_checkpoint_before_a_damaged_one_is_used(
    broken: Path, whole: Path, spoil: Callable[[Path], None], suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(checkpoints(broken) / f"checkpoint-{2:09d}.{suffix}")
    assert main(["plan", "recipe.yaml", "--no-smoke"]) == 0
    assert "goes on after step" in capsys.readouterr().out
    assert main(["run", "recipe.yaml"]) == 0
    told = capsys.readouterr().out
    assert "checkpoint of step 2 is damaged" in told
    assert "using the one before" in told
    assert "resuming after step 1" in told
    assert_same(broken, whole)


def test_with_no_sound_checkpoint_a_stage_starts_over(
    broken: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in checkpoints(broken).glob("checkpoint-*.safetensors"):
        truncate(path)
    assert main(["run", "recipe.yaml"]) == 0
    told = capsys.readouterr().out
    assert "checkpoint of step 1 is damaged" in told
    assert "from the start" in told
    assert "resuming" not in told
    assert_same(broken, whole)


def test_with_damaged_best_weights_a_stage_starts_over(
    broken: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flip_a_byte(checkpoints(broken) / "best-student.safetensors")
    assert main(["run", "recipe.yaml"]) == 0
    told = capsys.readouterr().out
    assert "the best weights so far are damaged" in told
    assert "resuming" not in told
    assert_same(broken, whole)


def test_without_the_best_weights_a_stage_is_not_declared_finished(
    whole: Path, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are only missed at the end: a stage that was not evaluated yet has none either."""
    assert in_child(run, root, "tutelage.runs.store:Artefact.finish", 1) == KILLED
    (checkpoints(root / "runs") / "best-student.safetensors").unlink()
    assert main(["run", "recipe.yaml"]) == 1
    told = capsys.readouterr().err
    assert "the best weights so far are gone" in told
    assert "run the same command again" in told
    assert main(["run", "recipe.yaml"]) == 0
    assert_same(root / "runs", whole)
