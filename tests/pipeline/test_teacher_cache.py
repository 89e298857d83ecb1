"""The artefact of a teacher's answers: shared, resumed after a kill, mended when damaged, kept by `clean`."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.pipeline.chain import TRAINING, assert_same
from tests.pipeline.victims import run, run_in_company
from tests.processes import in_child, start
from tests.projects import SPLITS, Project, write_project
from tutelage import api
from tutelage.pipeline import training_cost
from tutelage.pipeline.stages import train
from tutelage.pipeline.teacher_cache import verdict
from tutelage.recipe.loading import load_recipe

RECIPE = f"""\
tutelage: 1
name: chain
out: runs
run: {{device: cpu, threads: 1, weak_teacher: warn}}
{TRAINING}
  student:
    method: {{name: pixel_kd, cache: {{top: 2}}}}
    nets: {{student: small}}
    inputs: {{teacher: teacher}}
    streams:
      labeled: {{data: city/train, batch: 2, augment: {{crop: [32, 32], scale: [0.5, 1.5], flip: 0.5}}}}
    steps: 2
    checkpoint_every: 1
    log_every: 1
"""
IMAGES = len(SPLITS["train"])
OTHER_SEED = ("stages.student.seed=7",)
MADE = "teacher cache →"
REPLAYED = "the teacher's outputs are read from teacher_cache-"


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Project:
    write_project(tmp_path, RECIPE)
    monkeypatch.chdir(tmp_path)
    return Project(tmp_path, capsys)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("finished")
    write_project(root, RECIPE)
    assert in_child(run, root) == 0
    return root


def answers(root: Path) -> dict[str, tuple[int, int, bytes]]:
    """Inode, time and bytes of every file of the one cache."""
    (folder,) = (root / "runs").glob("teacher_cache-*")
    return {
        path.name: (path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted((folder / "answers").iterdir())
    }


def contents(root: Path) -> dict[str, bytes]:
    return {name: content for name, (_, _, content) in answers(root).items()}


def test_it_is_made_once_and_shared(done: Project) -> None:
    said = (done.root / "said.txt").read_text(encoding="utf-8")
    assert said.count(MADE) == said.count(REPLAYED) == 1
    before = answers(done.root)
    assert len(before) == IMAGES
    shared = done.tutelage("run", "recipe.yaml", *OTHER_SEED, "stages.student.streams.labeled.augment.crop=[48, 48]")
    assert shared.status == 0
    assert MADE not in shared.out
    assert REPLAYED in shared.out
    assert answers(done.root) == before


@pytest.mark.parametrize(
    "change",
    [
        "stages.student.method.cache.top=3",
        "stages.student.method.temperature=2",
        "stages.student.streams.labeled.augment.resize=[32, 64]",
        "stages.student.precision=bf16",
        "stages.teacher.steps=2",
    ],
)
def test_what_decides_the_answers_makes_another(done: Project, change: str) -> None:
    assert done.tutelage("run", "recipe.yaml", change).status == 0
    assert len(list((done.root / "runs").glob("teacher_cache-*/artefact.json"))) == 2


@pytest.mark.parametrize("number", range(1, IMAGES + 1))
def test_killed_while_it_is_made(finished: Path, fresh: Project, number: int) -> None:
    assert in_child(run, fresh.root, "tutelage.pipeline.teacher_cache:compress", number) == -signal.SIGKILL
    before = answers(fresh.root) if number > 1 else {}
    assert len(before) == number - 1
    assert fresh.tutelage("run", "recipe.yaml").status == 0
    assert before.items() <= answers(fresh.root).items(), "gone on with"
    assert_same(fresh.root / "runs", finished / "runs")


def test_killed_before_it_is_declared_finished(finished: Path, fresh: Project) -> None:
    assert in_child(run, fresh.root, "tutelage.pipeline.teacher_cache:error_bound", 2) == -signal.SIGKILL
    assert fresh.tutelage("run", "recipe.yaml").status == 0
    assert_same(fresh.root / "runs", finished / "runs")


def test_a_damaged_file_is_made_again_alone(done: Project) -> None:
    before = answers(done.root)
    (damaged,) = (done.root / "runs").glob("teacher_cache-*/answers/000001.npy")
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    ran = done.tutelage("run", "recipe.yaml", *OTHER_SEED)
    assert ran.status == 0
    assert "answers/000001.npy was changed after it was made; damaged files are made again" in ran.out
    after = answers(done.root)
    assert {name: content for name, (*_, content) in before.items()} == contents(done.root)
    assert [name for name in before if before[name] != after[name]] == ["000001.npy"]


def test_half_a_file_of_a_cache_that_was_not_finished(done: Project) -> None:
    before = contents(done.root)
    (folder,) = (done.root / "runs").glob("teacher_cache-*")
    (folder / "artefact.json").unlink()
    torn = folder / "answers" / "000002.npy"
    torn.write_bytes(torn.read_bytes()[:200])
    assert done.tutelage("run", "recipe.yaml", *OTHER_SEED).status == 0
    assert contents(done.root) == before


def test_two_processes_make_the_same(finished: Path, fresh: Project) -> None:
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [start(run_in_company, fresh.root, rank, 2, port, -1) for rank in range(2)]
    for process in processes:
        process.join(60)
        process.kill()
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert len(answers(fresh.root)) == IMAGES


def test_clean_keeps_what_a_recipe_refers_to(done: Project) -> None:
    assert "teacher_cache" not in done.tutelage("clean", "runs").out
    assert done.tutelage("run", "recipe.yaml", "stages.student.method.cache=null").status == 0
    assert "teacher_cache" in done.tutelage("clean", "runs").out


def test_without_a_cache_a_stage_has_the_key_that_it_had(done: Project) -> None:
    """Settings that are off must not make finished work anew."""
    plain = ("stages.student.method={name: pixel_kd}", "stages.student.method={name: pixel_kd, cache: null}")
    keys = {api.plan("recipe.yaml", [change])[-1].artefact.key for change in plain}
    assert len(keys) == 1
    from tutelage.pipeline.builder import Builder
    from tutelage.runs.store import Store

    read = load_recipe(done.recipe, plain[:1])
    builder = Builder(read)
    builder.assign(Store(done.root / "runs"))
    assert builder.shared == {}


def test_an_image_that_cannot_be_read_is_left_out(fresh: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "check_teachers", lambda *given: None)  # which looks at some images, and skips none
    assert fresh.tutelage("run", "recipe.yaml", "--only=teacher").status == 0
    # Only the end is torn: preflight looks at masks, and the size can still be read.
    image = fresh.image(2)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)).save(image)
    image.write_bytes(image.read_bytes()[:3000])
    assert fresh.tutelage("run", "recipe.yaml", "run.on_unreadable=skip").status == 0
    assert set(answers(fresh.root)) == {f"{number:06d}.npy" for number in range(IMAGES)} - {"000002.npy"}


def test_two_images_of_one_name_are_refused(fresh: Project) -> None:
    shutil.copytree(fresh.data, fresh.root / "data2")
    fresh.edit(
        (
            "    splits:",
            "    splits: {train: train.txt, val: val.txt}\n  town:\n    root: data2\n"
            "    classes: [road, car, sky, tree, sign]\n    splits:",
        )
    )
    ran = fresh.tutelage("run", "recipe.yaml", "stages.student.streams.labeled.data=[city/train, town/train]")
    assert ran.status == 1
    assert "two images have the name train:" in ran.err


@pytest.mark.parametrize("change", ["seed=0", "stages.student.method.cache=null"])
def test_a_plan_says_what_either_way_costs(fresh: Project, change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_cost, "estimate_cost", training_cost.measure)
    ran = fresh.tutelage("plan", "recipe.yaml", change)
    assert ran.out.count("s a step with the teacher, ") == 1
    assert f"s once for {IMAGES} images" in ran.out
    assert not list(fresh.root.glob("runs/teacher_cache-*"))
    other = fresh.tutelage("plan", "recipe.yaml", "stages.student.method={name: distill, losses: {ifvd: 1}}")
    assert "with the teacher" not in other.out


def test_the_verdict() -> None:
    assert verdict(0.5, 0.3, 40.0, 367, False) == (
        "0.5 s a step with the teacher, 0.3 s with a cache and 40 s once for 367 images: `cache: {}` pays after 200 "
        "steps of all stages that share it"
    )
    assert verdict(0.3, 0.3, 40.0, 367, False).endswith(": a cache does not pay")
    assert verdict(0.3, 0.4, 40.0, 367, True).endswith(": a cache does not pay; `cache: null` is cheaper")
