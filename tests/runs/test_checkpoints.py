"""The newest checkpoint that is whole is found, and what is damaged is named."""

from __future__ import annotations

import json
import os
import resource
from pathlib import Path

import pytest

from tests.processes import Countdown, count_disk_calls, in_child
from tutelage.runs.checkpoints import Checkpoints

Said = list[str]


def save(checkpoints: Checkpoints, step: int, content: bytes = b"tensors") -> None:
    checkpoints.save(step, lambda path: path.write_bytes(content + str(step).encode()) and None, {"at": step, "x": 0.1})


@pytest.fixture
def said() -> Said:
    return []


@pytest.fixture
def three(tmp_path: Path, said: Said) -> Checkpoints:
    checkpoints = Checkpoints(tmp_path / "checkpoints", 3, said.append)
    for step in (5, 10, 15):
        save(checkpoints, step)
    return checkpoints


def files(checkpoints: Checkpoints) -> list[str]:
    return sorted(path.name for path in checkpoints.folder.iterdir())


def test_the_newest_comes_back_as_it_was(three: Checkpoints, said: Said) -> None:
    found = three.latest()
    assert found is not None
    assert (found.step, found.state, found.tensors.read_bytes()) == (15, {"at": 15, "x": 0.1}, b"tensors15")
    assert not said


def test_none_where_there_is_none(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path / "nowhere").latest() is None
    assert Checkpoints(tmp_path / "nowhere").steps() == []
    assert Checkpoints(tmp_path).latest() is None


def test_so_many_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, 2)
    for step in (8, 9, 10, 100):  # not in the order of text
        save(checkpoints, step)
    assert checkpoints.steps() == [10, 100]
    assert len(files(checkpoints)) == 4


def flip(path: Path, place: int = -1) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(bytes(content))


DAMAGES = {
    "tensors cut short": lambda folder: os.truncate(folder / "checkpoint-000000015.safetensors", 4),
    "tensors empty": lambda folder: os.truncate(folder / "checkpoint-000000015.safetensors", 0),
    "tensors flipped": lambda folder: flip(folder / "checkpoint-000000015.safetensors"),
    "tensors gone": lambda folder: (folder / "checkpoint-000000015.safetensors").unlink(),
    "state cut short": lambda folder: os.truncate(folder / "checkpoint-000000015.json", 40),
    "state empty": lambda folder: os.truncate(folder / "checkpoint-000000015.json", 0),
    "state of zeros": lambda folder: (folder / "checkpoint-000000015.json").write_bytes(bytes(100)),
    "state of another kind": lambda folder: (folder / "checkpoint-000000015.json").write_text("[1]"),
    "state null": lambda folder: (folder / "checkpoint-000000015.json").write_text("null"),
    "state is no UTF-8": lambda folder: (folder / "checkpoint-000000015.json").write_bytes(b'{"step": "\xff"}'),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_one_is_named_and_the_one_before_used(three: Checkpoints, said: Said, damage: str) -> None:
    DAMAGES[damage](three.folder)
    found = three.latest()
    assert found is not None
    assert found.step == 10
    assert len(said) == 1
    assert "step 15" in said[0]
    assert "before" in said[0]
    assert three.steps() == [5, 10], "taken away: it must not count among those that are kept"
    said.clear()
    assert three.latest() == found
    assert not said


@pytest.mark.parametrize(
    ("old", "new"), [('"at": 15', '"at": 14'), ('"x": 0.1', '"x": 0.3'), ('"step": 15', '"step": 16')]
)
def test_a_digit_that_changed_in_the_state_is_damage(three: Checkpoints, old: str, new: str) -> None:
    path = three.folder / "checkpoint-000000015.json"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    found = three.latest()
    assert found is not None
    assert found.step == 10


def test_all_damaged(three: Checkpoints, said: Said) -> None:
    for path in three.folder.glob("*.safetensors"):
        flip(path)
    assert three.latest() is None
    assert len(said) == 3
    assert "from the start" in said[-1]
    assert files(three) == []


def test_tensors_have_their_name_before_the_state_that_vouches_for_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named: list[str] = []
    replace = os.replace

    def noted(source: Path, target: Path) -> None:
        replace(source, target)
        named.append(Path(target).suffix)

    monkeypatch.setattr("tutelage.runs.atomic.os.replace", noted)
    save(Checkpoints(tmp_path), 5)
    assert named == [".safetensors", ".json"]


def test_foreign_files_are_left_alone(three: Checkpoints) -> None:
    for name in ("checkpoint-15 (copy).json", "best-student.safetensors", "notes.json"):
        (three.folder / name).write_text("{}")
    found = three.latest()
    assert found is not None
    assert found.step == 15
    save(three, 20)
    assert {"checkpoint-15 (copy).json", "best-student.safetensors", "notes.json"} <= set(files(three))


def test_state_of_any_json_kind_verifies(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    state = {"b": None, "a": [1, 2.5e-300, float("inf")], "c": {"9": 1, "10": True}, "t": (1, 2), "ü": "ß"}
    checkpoints.save(1, lambda path: path.write_bytes(b"") and None, state)
    found = checkpoints.latest()
    assert found is not None
    assert found.state == json.loads(json.dumps(state))


def _save_and_die(folder: Path, number: int) -> None:
    countdown = Countdown(number)
    count_disk_calls(countdown)
    save(Checkpoints(folder, 2), 30, b"new")
    raise SystemExit(countdown.calls)


def test_killed_at_every_disk_call_of_a_save(tmp_path: Path) -> None:
    """At each moment the newest whole checkpoint is the one before or the new one, and nothing is left over after."""
    total = number = 0
    while not total:
        number += 1
        folder = tmp_path / str(number)
        checkpoints = Checkpoints(folder, 2)
        save(checkpoints, 10)
        save(checkpoints, 20)
        status = in_child(_save_and_die, folder, number)
        if status >= 0:
            total = status
        found = checkpoints.latest()
        assert found is not None
        # The state gets its name at the fifth call: flush and name of the tensors, of the folder, flush of the state.
        assert found.step == (20 if number <= 5 else 30), number
        assert found.tensors.read_bytes() == {20: b"tensors20", 30: b"new30"}[found.step]
        save(checkpoints, 40)
        assert len(files(checkpoints)) == 4, files(checkpoints)
    assert total >= 7


def _save_on_a_full_disk(folder: Path) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))
    try:
        save(Checkpoints(folder, 2), 30, bytes(20_000))
    except OSError:
        raise SystemExit(3) from None


def test_a_full_disk_leaves_the_last_good_one(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, 2)
    save(checkpoints, 10)
    save(checkpoints, 20)
    before = files(checkpoints)
    assert in_child(_save_on_a_full_disk, tmp_path) == 3
    assert files(checkpoints) == before
    found = checkpoints.latest()
    assert found is not None
    assert found.step == 20


def test_one_that_may_not_be_read_is_not_thrown_away(three: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **named: object) -> str:
        raise PermissionError

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(PermissionError):
        three.latest()
    assert three.steps() == [5, 10, 15]
