"""Killed at any moment and started again, a run ends with the same bytes as one that was left alone."""

from __future__ import annotations

import random
import resource
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engine.test_loop import CPU, settings
from tests.engine.toy import Toy, ToyStream
from tests.engine.victims import STEPS, train
from tests.errors import raises_code
from tests.processes import in_child, kill_until_done
from tutelage.engine.interruption import Interruption
from tutelage.engine.log import read_log
from tutelage.engine.loop import fit
from tutelage.runs.checkpoints import Checkpoints

KILLED = -signal.SIGKILL
_PER_STEP = 3 + 3 + 3  # flush, name and folder of: best weights, tensors, state


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was left alone."""
    folder = tmp_path_factory.mktemp("whole")
    assert in_child(train, folder, "disk", 0) == 0
    return folder


def course(folder: Path) -> list[dict[str, Any]]:
    """The log without the times."""
    timeless = ("step", "terms", "evaluation", "rate")
    return [{key: record[key] for key in timeless if key in record} for record in read_log(folder / "log.jsonl")]


def assert_same(folder: Path, whole: Path) -> None:
    names, found = (
        {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()} for root in (whole, folder)
    )
    assert {"best.safetensors", f"checkpoints/checkpoint-{STEPS:09d}.json"} <= names
    assert found == names
    for name in names:
        if name not in ("log.jsonl", "calls"):
            assert (folder / name).read_bytes() == (whole / name).read_bytes(), name
    assert course(folder) == course(whole)


def survives(folder: Path, whole: Path, *deaths: tuple[str, int]) -> None:
    folder.mkdir(exist_ok=True)
    for where, number in deaths:
        assert in_child(train, folder, where, number) == KILLED, (where, number)
    assert in_child(train, folder) == 0
    assert_same(folder, whole)


def test_the_whole_run_does_what_these_tests_think(whole: Path) -> None:
    assert int((whole / "calls").read_text()) > 3 * _PER_STEP
    assert [record["step"] for record in course(whole)] == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert Checkpoints(whole / "checkpoints").steps() == [STEPS - 1, STEPS]


# Of the fourth step: its weights are the best so far, and the checkpoint of the second is removed.
@pytest.mark.parametrize("number", [24, 26, 28, 30, 32, 33])
def test_killed_before_a_disk_call(whole: Path, tmp_path: Path, number: int) -> None:
    survives(tmp_path, whole, ("disk", number))


def test_killed_again_and_again(whole: Path, tmp_path: Path) -> None:
    survives(tmp_path, whole, ("disk", 8), ("disk", 3), ("disk", 12), ("half a checkpoint", 1), ("evaluation", 2))


@pytest.mark.parametrize("number", [1, 3])
def test_killed_inside_a_checkpoint(whole: Path, tmp_path: Path, number: int) -> None:
    survives(tmp_path, whole, ("half a checkpoint", number))


@pytest.mark.parametrize("number", [1, 4])
def test_killed_in_an_evaluation(whole: Path, tmp_path: Path, number: int) -> None:
    survives(tmp_path, whole, ("evaluation", number))


@pytest.mark.slow
def test_killed_before_every_disk_call(whole: Path, tmp_path: Path) -> None:
    for number in range(1, int((whole / "calls").read_text()) + 1):
        survives(tmp_path / str(number), whole, ("disk", number))


@pytest.mark.slow
def test_killed_at_random_moments(whole: Path, tmp_path: Path) -> None:
    chance = random.Random(0)
    kills = 0
    for number in range(12):
        folder = tmp_path / str(number)
        folder.mkdir()
        kills += kill_until_done(train, folder, lambda: chance.uniform(0.0, 0.2))
        assert_same(folder, whole)
    assert kills > 6


# Signals


@pytest.mark.parametrize(("name", "number"), [("SIGTERM", 2), ("SIGINT", 3)])
def test_asked_to_stop_it_ends_between_two_steps(whole: Path, tmp_path: Path, name: str, number: int) -> None:
    assert in_child(train, tmp_path, name, number) == 1
    assert Checkpoints(tmp_path / "checkpoints").steps()[-1] == number
    assert in_child(train, tmp_path) == 0
    assert_same(tmp_path, whole)


def test_asked_twice_it_ends_at_once(whole: Path, tmp_path: Path) -> None:
    assert in_child(train, tmp_path, "SIGTERM SIGTERM", 3) == -signal.SIGTERM
    assert Checkpoints(tmp_path / "checkpoints").steps()[-1] == 2
    survives(tmp_path, whole)


class Asked(Toy):
    """Asks its own run to stop after a step."""

    ask_after = 2

    def after_step(self, context: Any) -> None:
        super().after_step(context)
        if context.step + 1 == self.ask_after:
            signal.raise_signal(signal.SIGTERM)


def test_a_stop_keeps_a_checkpoint_and_says_how_to_go_on(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    store = Checkpoints(tmp_path)
    with raises_code("stopped", "SIGTERM", "step 2") as raised:
        fit(Asked(), {"labeled": ToyStream()}, settings(checkpoint_every=100), seed=3, device=CPU, checkpoints=store)
    assert raised.value.exit_status == 128 + signal.SIGTERM
    assert "same command" in raised.value.remedy
    assert store.steps() == [2], "though none was due"
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_stop_in_the_last_step_still_stops(tmp_path: Path) -> None:
    toy = Asked()
    toy.ask_after = 4
    store = Checkpoints(tmp_path)
    with raises_code("stopped"):
        fit(toy, {"labeled": ToyStream()}, settings(), seed=3, device=CPU, checkpoints=store)
    assert store.steps()[-1] == 4


def test_an_interruption_remembers_the_first_signal_and_lets_the_second_act() -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
    try:
        with Interruption() as interruption:
            interruption.raise_if_asked(1)
            signal.raise_signal(signal.SIGINT)
            assert not heard
            with raises_code("stopped", "SIGINT", "step 5"):
                interruption.raise_if_asked(5)
            signal.raise_signal(signal.SIGINT)
            assert heard == [signal.SIGINT]
        signal.raise_signal(signal.SIGINT)
        assert heard == [signal.SIGINT] * 2
    finally:
        signal.signal(signal.SIGINT, before)


# A full disk


def _train_on_a_full_disk(folder: Path) -> None:
    torch.set_num_threads(1)
    store = Checkpoints(folder)
    fit(Toy(), {"labeled": ToyStream()}, settings(checkpoint_every=1), seed=3, device=CPU, checkpoints=store, stop_at=2)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
    try:
        fit(Toy(), {"labeled": ToyStream()}, settings(checkpoint_every=1), seed=3, device=CPU, checkpoints=store)
    except OSError as error:
        raise SystemExit(error.errno) from None


def test_a_full_disk_stops_the_run_with_the_last_checkpoint_intact(tmp_path: Path) -> None:
    assert in_child(_train_on_a_full_disk, tmp_path / "full") == 27  # file too large, as a quota says
    store = Checkpoints(tmp_path / "full")
    assert store.steps() == [1, 2]
    assert sorted(path.suffix for path in store.folder.iterdir()) == [".json", ".json", ".safetensors", ".safetensors"]
    toys = [Toy(), Toy()]
    fit(toys[0], {"labeled": ToyStream()}, settings(), seed=3, device=CPU, checkpoints=store)
    fit(toys[1], {"labeled": ToyStream()}, settings(), seed=3, device=CPU)
    assert all(torch.equal(value, toys[1].state_dict()[name]) for name, value in toys[0].state_dict().items())


def test_a_child_starts_quickly() -> None:
    """Else these tests would have to be few."""
    begun = time.monotonic()
    assert in_child(time.sleep, 0) == 0
    assert time.monotonic() - begun < 10
