"""One process per artefact: the second is refused, a dead one's lock is taken over."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import time
from pathlib import Path

import pytest

from tests.errors import raises_code
from tests.processes import start
from tutelage.runs.lock import HeldError, locked


def _hold(path: Path, ready: Path, forks: bool) -> None:
    with locked(path):
        if forks and os.fork() == 0:  # what a loader's worker is; it outlives its killed parent for a while
            ready.with_suffix(".child").write_text(str(os.getpid()))
            time.sleep(30)
            os._exit(0)
        ready.write_text("")
        time.sleep(30)


def wait_for(path: Path) -> None:
    for _ in range(500):
        if path.exists():
            return
        time.sleep(0.02)
    raise AssertionError(f"{path} never came")


def test_a_second_holder_is_refused_and_told_who_has_it(tmp_path: Path) -> None:
    path = tmp_path / "stage" / "lock"
    holder = start(_hold, path, tmp_path / "ready", False)
    try:
        wait_for(tmp_path / "ready")
        with pytest.raises(HeldError, match=f"pid {holder.pid} on") as raised, locked(path):
            pass
        assert "out=" in raised.value.remedy
    finally:
        holder.kill()
        holder.join()
    said: list[str] = []
    with locked(path, said.append):
        holder_file = path.with_name("lock.holder")
        assert str(os.getpid()) in holder_file.read_text()
    assert not holder_file.exists()
    assert len(said) == 1
    assert f"pid {holder.pid}" in said[0]
    with locked(path, said.append):
        pass
    assert len(said) == 1, "released in good order: nothing is stale"


def test_a_child_of_a_killed_holder_does_not_keep_the_lock(tmp_path: Path) -> None:
    path, child = tmp_path / "lock", tmp_path / "ready.child"
    holder = start(_hold, path, tmp_path / "ready", True)
    try:
        wait_for(tmp_path / "ready")
        wait_for(child)
        with raises_code("locked-run"), locked(path):
            pass
    finally:
        holder.kill()
        holder.join()
    os.kill(int(child.read_text()), 0)  # it lives
    try:
        with locked(path):
            pass
    finally:
        os.kill(int(child.read_text()), signal.SIGKILL)


def test_the_same_process_cannot_take_it_twice(tmp_path: Path) -> None:
    with locked(tmp_path / "lock"):
        with raises_code("locked-run", f"pid {os.getpid()}"), locked(tmp_path / "lock"):
            pass
        with raises_code("locked-run"), locked(tmp_path / "lock"):
            pass


def test_released_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), locked(tmp_path / "lock"):
        _ = 1 / 0
    said: list[str] = []
    with locked(tmp_path / "lock", said.append):
        pass
    assert not said


def test_a_leftover_of_garbage_is_taken_over(tmp_path: Path) -> None:
    (tmp_path / "lock.holder").write_text("{not json")
    said: list[str] = []
    with locked(tmp_path / "lock", said.append):
        pass
    assert "holder unknown" in said[0]


def test_a_folder_that_may_not_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "lock").mkdir()  # cannot be opened as a file, whoever one is
    with raises_code("write-failed") as raised, locked(tmp_path / "lock"):
        pass
    assert str(tmp_path) in raised.value.message


def test_a_file_system_without_locks_is_said_and_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    said: list[str] = []
    with locked(tmp_path / "lock", said.append):
        pass
    assert "no locks" in said[0]
