"""What `run`, `plan` and `clean` do with what is there already: nothing is made twice, nothing stale is used."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.pipeline.chain import STAGES, content, write_chain
from tests.pipeline.victims import run_and_halt, run_in_company
from tests.processes import start
from tests.projects import Project, made
from tutelage import api
from tutelage.cli import main
from tutelage.nets.storage import load_segmentor, read_metadata

DURING = "    evaluate: {data: city/val, every: 1}\n"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose recipe was run to its end; only `score` looks at the validation masks."""
    root = tmp_path_factory.mktemp("finished")
    write_chain(root, (DURING, ""), report=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        assert main(["run", "recipe.yaml", "--quiet"]) == 0
    return root


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Project:
    """The same project before anything was run, without a report."""
    write_chain(tmp_path, (DURING, ""))
    monkeypatch.chdir(tmp_path)
    return Project(tmp_path, capsys)


def folder(project: Project, stage: str) -> Path:
    """The one folder of a stage."""
    (found,) = (project.root / "runs").glob(f"{stage}-*")
    return found


def state(root: Path) -> dict[str, tuple[int, int, bytes]]:
    """Inode, time and bytes of every file of the artefacts: equal where nothing was written, not even the same."""
    return {
        str(path): (path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted((root / "runs").rglob("*"))
        if path.is_file() and "recipes" not in path.parts
    }


def apart_from(state: dict[str, tuple[int, int, bytes]], part: str) -> dict[str, tuple[int, int, bytes]]:
    """The state of all but the files with ``part`` in their path, and the published report."""
    return {name: value for name, value in state.items() if part not in name and not name.endswith("runs/report.html")}


def planned(project: Project, *overrides: str) -> dict[str, str]:
    """Stages that a run would make, with the reason."""
    told = project.tutelage("plan", "recipe.yaml", *overrides, "--no-smoke")
    assert told.status == 0
    rows = [line.split(maxsplit=3) for line in told.out.splitlines()]
    assert [row[0] for row in rows] == list(STAGES)[: len(rows)]
    assert all(row[3] == "done" for row in rows if row[2] == "skip")
    return {row[0]: row[3] for row in rows if row[2] == "runs"}


# Skipping


def test_a_finished_recipe_is_skipped_as_a_whole(done: Project) -> None:
    before = state(done.root)
    assert planned(done) == {}
    ran = done.tutelage("run", "recipe.yaml")
    assert ran.status == 0
    told = [line.split(" (")[0] for line in ran.out.splitlines()]
    assert told == [*(f"{name}: done" for name in STAGES), "all done: runs"]
    assert state(done.root) == before
    assert (done.root / "runs" / "report.html").read_bytes() == (folder(done, "page") / "report.html").read_bytes()


@pytest.mark.parametrize(
    ("change", "first"),
    [
        ("stages.teacher.optimizer.lr=0.02", "teacher"),
        ("nets.small.width=24", "teacher"),
        ("stages.maps.policy=argmax", "maps"),
        ("stages.student.steps=1", "student"),
        ("stages.score.boundary=false", "score"),
        ("stages.page.images=1", "page"),
    ],
)
def test_a_changed_setting_makes_the_stages_that_depend_on_it_and_no_others(
    done: Project, change: str, first: str
) -> None:
    expected = STAGES[STAGES.index(first) :]
    assert planned(done, change) == dict.fromkeys(expected, "is new")
    if first not in ("student", "page"):  # the plan is enough; two are run
        return
    before = state(done.root)
    ran = done.tutelage("run", "recipe.yaml", change)
    assert ran.status == 0
    assert made(ran.out) == list(expected)
    after = state(done.root)
    published = str(done.root / "runs" / "report.html")
    assert {**before, published: after[published]}.items() <= after.items(), "the unchanged recipe's artefacts stay"
    assert planned(done, change) == {}
    assert planned(done) == {}


def test_changing_only_the_rhythm_makes_nothing_again(done: Project) -> None:
    before = state(done.root)
    ran = done.tutelage(
        "run",
        "recipe.yaml",
        *("stages.teacher.log_every=7", "stages.student.checkpoint_every=2", "stages.student.keep_checkpoints=3"),
        *("run.workers=2", "run.ahead=1", "run.cache=memory", "run.threads=null", "run.on_unreadable=skip"),
    )
    assert ran.status == 0
    assert made(ran.out) == []
    assert state(done.root) == before


def test_changed_masks_make_the_stages_that_read_them(done: Project) -> None:
    masks = [done.mask(number).read_bytes() for number in range(6)]
    os.utime(done.mask(0))
    assert planned(done) == {}, "bytes count, not times"

    done.mask(4).write_bytes(masks[3])  # of the validation data
    assert planned(done) == {"score": "is new", "page": "is new"}
    assert made(done.tutelage("run", "recipe.yaml").out) == ["score", "page"]

    done.mask(4).write_bytes(masks[4])
    assert planned(done) == {}, "as it was"
    done.mask(0).write_bytes(masks[1])  # of the training data
    assert planned(done) == dict.fromkeys(STAGES, "is new")


def test_another_seed_leaves_both_results_side_by_side(done: Project) -> None:
    first = content(done.root / "runs")
    ran = done.tutelage("run", "recipe.yaml", "seed=1")
    assert made(ran.out) == list(STAGES)
    both = content(done.root / "runs")
    assert {name: both[name] for name in first} == first
    nets = sorted(path.read_bytes() for path in (done.root / "runs").glob("*/nets/*"))
    assert len(nets) == len(set(nets)) == 4
    assert planned(done) == planned(done, "seed=1") == {}


# Damage


def flip(path: Path) -> None:
    """Change one bit, where a PNG and a net still open."""
    bytes_ = bytearray(path.read_bytes())
    bytes_[len(bytes_) // 2] ^= 1
    path.write_bytes(bytes_)


@pytest.mark.parametrize(
    ("stage", "file", "spoil", "reason"),
    [
        ("teacher", "nets/student.safetensors", flip, "nets/student.safetensors was changed after it was made"),
        ("maps", "labels/labels/images/i2.png", flip, "labels/labels/images/i2.png was changed after it was made"),
        ("maps", "labels/confidence/images/i0.png", Path.unlink, "labels/confidence/images/i0.png is gone"),
        ("student", "nets/student.safetensors", Path.unlink, "nets/student.safetensors is gone"),
        ("score", "scores/teacher.npz", flip, "scores/teacher.npz was changed after it was made"),
        ("page", "report.html", flip, "report.html was changed after it was made"),
    ],
)
def test_what_was_tampered_with_is_said_and_made_again(
    done: Project, stage: str, file: str, spoil: Callable[[Path], None], reason: str
) -> None:
    sound, before = content(done.root / "runs"), state(done.root)
    spoil(folder(done, stage) / file)
    assert planned(done) == {stage: reason}
    ran = done.tutelage("run", "recipe.yaml")
    assert ran.status == 0
    assert f"{stage}: {reason}; it is made again" in ran.out
    assert made(ran.out) == [stage]
    after = content(done.root / "runs")
    assert after.keys() == sound.keys()
    if stage != "page":  # a report says when and how long
        assert after == sound
    assert apart_from(state(done.root), f"/{stage}-") == apart_from(before, f"/{stage}-")
    assert planned(done) == {}


@pytest.mark.parametrize("spoil", [Path.unlink, lambda path: path.write_text('{"files": ')])
def test_without_its_manifest_a_stage_is_finished_again(done: Project, spoil: Callable[[Path], object]) -> None:
    sound = content(done.root / "runs")
    spoil(folder(done, "maps") / "artefact.json")
    assert planned(done) == {"maps": "was begun"}
    assert made(done.tutelage("run", "recipe.yaml").out) == ["maps"]
    assert content(done.root / "runs").items() >= {n: v for n, v in sound.items() if "page-" not in n}.items()


# Choosing stages


def test_only_runs_the_named_stages_in_the_order_of_the_recipe(fresh: Project) -> None:
    ran = fresh.tutelage("run", "recipe.yaml", "--only", "maps", "--only", "teacher")
    assert ran.status == 0
    assert made(ran.out) == ["teacher", "maps"]
    assert set(planned(fresh)) == {"student", "score"}

    ran = fresh.tutelage("run", "recipe.yaml", "--only", "score")
    assert ran.status == 1
    assert "stage 'score' needs stage 'student': it is not finished" in ran.err
    assert "--only student" in ran.err
    assert set(planned(fresh)) == {"student", "score"}

    label = folder(fresh, "maps") / "labels" / "labels" / "images" / "i2.png"
    whole = label.read_bytes()
    flip(label)
    ran = fresh.tutelage("run", "recipe.yaml", "--only", "student")
    assert ran.status == 1
    assert "stage 'student' needs stage 'maps': labels/labels/images/i2.png was changed" in ran.err
    label.write_bytes(whole)
    assert made(fresh.tutelage("run", "recipe.yaml", "--only", "student").out) == ["student"]


def test_only_an_unknown_stage_is_refused_with_the_known_ones(fresh: Project) -> None:
    ran = fresh.tutelage("run", "recipe.yaml", "--only", "studnet")
    assert ran.status == 1
    assert "no stage 'studnet'" in ran.err
    assert "teacher, maps, student, score" in ran.err
    assert not (fresh.root / "runs").exists()


# Overrides and saved recipes


def keys(recipe: Path, *overrides: str) -> dict[str, str]:
    return {row.stage: row.artefact.key for row in api.plan(recipe, overrides)}


def test_an_override_is_the_same_as_the_edit(fresh: Project) -> None:
    plain = keys(fresh.recipe)
    overridden = keys(fresh.recipe, "stages.teacher.steps=4", "nets.small.width=24", "stages.teacher.method.dice=0.5")
    method = ("method: supervised", "method: {name: supervised, dice: 0.5}")
    fresh.edit(("steps: 3", "steps: 4"), ("width: 16", "width: 24"), method)
    assert keys(fresh.recipe) == overridden
    assert not set(plain.values()) & set(overridden.values())


def test_the_saved_recipe_skips_everything(done: Project) -> None:
    before = state(done.root)
    (saved,) = (done.root / "runs" / "recipes").glob("*.yaml")
    assert "smoothing: 0.0" in saved.read_text(encoding="utf-8"), "defaults are written out"
    done.recipe.unlink()
    ran = done.tutelage("run", str(saved))
    assert ran.status == 0
    assert made(ran.out) == []
    assert state(done.root) == before
    assert list((done.root / "runs" / "recipes").glob("*.yaml")) == [saved], "saved again, it is the same"


def test_a_saved_recipe_finds_its_weight_files(fresh: Project) -> None:
    assert fresh.tutelage("run", "recipe.yaml", "--only", "teacher").status == 0
    net = (folder(fresh, "teacher") / "nets" / "student.safetensors").relative_to(fresh.root)
    fresh.edit(("width: 16}", f"width: 16, weights: {net}}}"), ("steps: 2", f"init: {{student: {net}}}\n    steps: 2"))
    assert fresh.tutelage("run", "recipe.yaml", "out=elsewhere/deep/runs", "--only", "teacher").status == 0
    (saved,) = (fresh.root / "elsewhere" / "deep" / "runs" / "recipes").glob("*.yaml")
    assert keys(saved) == keys(fresh.recipe)
    assert len(set(keys(saved).values()) | set(keys(fresh.recipe, "nets.small.weights=null").values())) == 8


# One process at a time


@pytest.fixture
def working(fresh: Project) -> Iterator[Any]:
    """Another process that is in the middle of training."""
    process = start(run_and_halt, fresh.root, "tutelage.engine.checkpoint:write")
    while not (fresh.root / "here").exists():
        assert process.is_alive()
        time.sleep(0.02)
    yield process
    process.kill()
    process.join()


def test_a_second_process_is_refused_while_the_first_lives(fresh: Project, working: Any) -> None:
    ran = fresh.tutelage("run", "recipe.yaml")
    assert ran.status == 1
    place = folder(fresh, "teacher").relative_to(fresh.root)
    assert f"another process is running in {place}: pid {working.pid} on " in ran.err
    assert "wait for it, stop it, or choose another folder" in ran.err
    assert working.is_alive()

    working.kill()
    working.join()
    ran = fresh.tutelage("run", "recipe.yaml")
    assert ran.status == 0
    assert f"taking over the lock of a process that is gone (pid {working.pid} on " in ran.out
    assert made(ran.out) == ["teacher", "maps", "student", "score"]
    assert fresh.partial() == []


def test_a_second_process_cannot_label_while_the_first_does(fresh: Project) -> None:
    first = start(run_and_halt, fresh.root, "tutelage.data.pseudo_labels:write_grey")
    while not (fresh.root / "here").exists():
        assert first.is_alive()
        time.sleep(0.02)
    ran = fresh.tutelage("run", "recipe.yaml", "--only", "maps")
    first.kill()
    first.join()
    assert ran.status == 1
    place = folder(fresh, "maps").relative_to(fresh.root)
    assert f"another process is running in {place}: pid {first.pid} on " in ran.err
    assert not (folder(fresh, "maps") / "artefact.json").exists()


# Processes that share the work


def test_worker_processes_change_nothing(done: Project) -> None:
    assert done.tutelage("run", "recipe.yaml", "run.workers=2", "out=by-two", "--only=teacher").status == 0
    (by_two,) = done.root.glob("by-two/teacher-*/nets/*.safetensors")
    assert by_two.read_bytes() == (folder(done, "teacher") / "nets" / "student.safetensors").read_bytes()


def in_company(project: Project, failing: int = -1) -> list[int]:
    """Exit statuses of two processes that run the recipe together; the rank ``failing`` fails in the second step."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [start(run_in_company, project.root, rank, 2, port, failing) for rank in range(2)]
    for process in processes:
        process.join(60)
        process.kill()
        process.join()
    return [process.exitcode for process in processes]


def test_two_processes_finish_together_what_one_would_in_two_micro_batches(fresh: Project) -> None:
    assert in_company(fresh) == [0, 0]
    said = [(fresh.root / f"said-{rank}.txt").read_text(encoding="utf-8") for rank in range(2)]
    assert made(said[0]) == ["teacher", "maps", "student", "score"]
    assert said[1] == "", "one speaks for all"
    assert fresh.partial() == []
    assert planned(fresh) == {}, "how many processes there were decides nothing"
    log = [json.loads(line) for line in (folder(fresh, "teacher") / "log.jsonl").read_text().splitlines()]
    assert [record["step"] for record in log] == [1, 2, 3]

    alone = ("out=alone", "stages.teacher.accumulate=2", "--only=teacher")
    assert fresh.tutelage("run", "recipe.yaml", *alone).status == 0
    two = load_file(folder(fresh, "teacher") / "nets" / "student.safetensors")
    (one,) = (load_file(path) for path in fresh.root.glob("alone/teacher-*/nets/*"))
    net = load_segmentor(folder(fresh, "teacher") / "nets" / "student.safetensors")[0]
    for name, _ in net.named_parameters():
        torch.testing.assert_close(two[name], one[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_fault_of_one_process_ends_all(fresh: Project, rank: int) -> None:
    """The other is in the middle of a step; the one that failed must not wait for it."""
    assert in_company(fresh, failing=rank) == [1, 1]
    said = [(fresh.root / f"said-{rank}.txt").read_text(encoding="utf-8") for rank in range(2)]
    assert "stage 'teacher': out of memory (as if)" in said[rank]
    assert "out of memory" not in said[1 - rank]


@pytest.mark.slow
def test_torchrun(fresh: Project) -> None:
    """The same through the real launcher."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "tutelage", "run", "recipe.yaml"]
    ran = subprocess.run(command, cwd=fresh.root, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert made(ran.stdout) == ["teacher", "maps", "student", "score"]
    assert ran.stdout.count("all done") == 1
    assert planned(fresh) == {}


# Cleaning


def test_clean_removes_what_no_recent_recipe_refers_to(done: Project) -> None:
    assert done.tutelage("run", "recipe.yaml", "stages.student.steps=1").status == 0
    runs = done.root / "runs"
    (runs / "notes-of-a-user").mkdir()
    doomed = {Path(row.artefact.folder).name for row in api.plan(done.recipe)[2:]}
    assert len(doomed) == 3
    before = state(done.root)

    dry = done.tutelage("clean", "runs")
    assert dry.status == 0
    assert {word.rstrip(",:") for word in dry.out.replace("runs/", " ").split()} >= doomed
    assert not any(path.name in dry.out for path in runs.iterdir() if path.name not in doomed)
    assert "would remove" in dry.out
    assert state(done.root) == before
    assert not any(row.runs for row in api.plan(done.recipe)), "nothing is gone"
    assert not done.tutelage("clean", "runs", "--keep", "2").out.count("would remove")

    assert done.tutelage("clean", "runs", "--yes").status == 0
    gone = {name for name in before if not Path(name).exists()}
    assert {Path(name).relative_to(runs).parts[0] for name in gone} == doomed
    assert {name: before[name] for name in before if name not in gone} == state(done.root)
    assert planned(done, "stages.student.steps=1") == {}
    assert set(planned(done)) == {"student", "score", "page"}
    assert "nothing to remove" in done.tutelage("clean", "runs").out


# Starting from one's own nets


@pytest.mark.parametrize(
    ("classes", "text"),
    [
        ("[road, car, sky]", "(5 classes in the source, 3 here)"),
        ("[sign, tree, sky, car, way]", "has other classes (road, car, sky, tree, sign): new classifier weights"),
    ],
)
@pytest.mark.parametrize("door", ["init", "weights"])
def test_from_a_net_of_other_classes_the_classifier_is_remade(
    done: Project, classes: str, text: str, door: str
) -> None:
    net = folder(done, "teacher") / "nets" / "student.safetensors"
    bridge = "{tree: null, sign: null}" if "3 here" in text else "{road: way}"
    done.edit(
        ("run:", f"classes: {classes}\nrun:"),
        ("    root: data\n", f"    root: data\n    bridge: {bridge}\n"),
        ("    steps: 3\n", "    steps: 1\n    optimizer: {lr: 1.0e-9}\n"),
        ("    steps: 1\n", f"    steps: 1\n    init: {{student: {net}}}\n")
        if door == "init"
        else ("small: {", f"small: {{weights: {net}, "),
    )
    ran = done.tutelage("run", "recipe.yaml", "out=other", "--only=teacher")
    assert ran.status == 0
    assert text in ran.out
    assert "100.0% of the encoder's parameters" in ran.out
    (other,) = done.root.glob("other/teacher-*/nets/*")
    assert f"[{', '.join(read_metadata(other).classes)}]" == classes
    old, new = load_segmentor(net)[0], load_segmentor(other)[0]
    for (name, before), after in zip(old.named_parameters(), new.parameters(), strict=True):
        if name.startswith("classifier."):
            assert before.shape != after.shape or not torch.allclose(before, after, atol=1e-3), name
        else:
            torch.testing.assert_close(before, after, rtol=0, atol=1e-5, msg=name)


# Logs


def test_the_log_is_json_lines_whatever_the_trackers(fresh: Project) -> None:
    installed = find_spec("tensorboard") is not None
    ran = fresh.tutelage("run", "recipe.yaml", "run.trackers=[tensorboard]", "--only=teacher")
    if not installed:
        assert ran.status == 1
        assert "tracker 'tensorboard' is not installed" in ran.err
        assert "pip install 'tutelage[track]'" in ran.err
        assert fresh.tutelage("run", "recipe.yaml", "--only=teacher").status == 0
    lines = (folder(fresh, "teacher") / "log.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    assert [record["step"] for record in records] == [1, 2, 3]
    assert all("cross_entropy" in record["terms"] for record in records)


def test_tensorboard_gets_the_same_numbers(fresh: Project) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert fresh.tutelage("run", "recipe.yaml", "run.trackers=[tensorboard]", "--only=teacher").status == 0
    lines = (folder(fresh, "teacher") / "log.jsonl").read_text(encoding="utf-8").splitlines()
    events = EventAccumulator(str(folder(fresh, "teacher") / "tensorboard"))
    events.Reload()
    shown = [(event.step, event.value) for event in events.Scalars("terms/cross_entropy")]
    logged = [(record["step"], record["terms"]["cross_entropy"]) for record in map(json.loads, lines)]
    assert shown == [(step, pytest.approx(value)) for step, value in logged]
