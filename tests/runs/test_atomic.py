"""Files are whole or not there, whatever happens while they are written."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import resource
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.processes import Countdown, count_disk_calls, in_child, start
from tutelage.runs.atomic import (
    PARTIAL,
    remove_abandoned,
    remove_partials,
    sha256,
    write_bytes,
    write_json,
    write_text,
    writing,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_was_written_is_there_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "file.txt"
    write_text(path, "grün\n")
    assert path.read_bytes() == "grün\n".encode()
    assert names(path.parent) == ["file.txt"]


def test_the_temporary_name_keeps_the_ending_and_hides(tmp_path: Path) -> None:
    with writing(tmp_path / "net.safetensors") as partial:
        partial.write_bytes(b"x")
        assert partial.parent == tmp_path
        assert partial.suffix == ".safetensors"
        assert partial.name.startswith(".")
        assert PARTIAL in partial.name
        assert not (tmp_path / "net.safetensors").exists()


def write_half(path: Path, error: BaseException) -> None:
    with writing(path) as partial:
        partial.write_bytes(b"half of the n")
        raise error


@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt(), SystemExit(2)])
def test_an_error_leaves_the_file_before_it(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "file"
    write_bytes(path, b"old")
    with pytest.raises(type(error)):
        write_half(path, error)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_a_name_as_long_as_names_can_be(tmp_path: Path) -> None:
    path = tmp_path / ("ü" * 125 + ".png")  # 254 bytes
    write_bytes(path, b"x")
    assert path.read_bytes() == b"x"


def test_two_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with writing(path) as first, writing(path) as second:
        assert first != second
        first.write_bytes(b"1")
        second.write_bytes(b"2")
    assert path.read_bytes() == b"1"


def test_equal_content_has_equal_bytes_whatever_its_order(tmp_path: Path) -> None:
    write_json(tmp_path / "a", {"b": [1, 2.5, None], "a": "ü"})
    write_json(tmp_path / "b", {"a": "ü", "b": [1, 2.5, None]})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert json.loads((tmp_path / "a").read_text(encoding="utf-8")) == {"a": "ü", "b": [1, 2.5, None]}
    assert (tmp_path / "a").read_bytes().endswith(b"}\n")


def test_sha256(tmp_path: Path) -> None:
    write_bytes(tmp_path / "abc", b"abc")
    assert sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    content = bytes(1 << 20) + b"beyond the first block"
    write_bytes(tmp_path / "long", content)
    assert sha256(tmp_path / "long") == hashlib.sha256(content).hexdigest()


def test_only_leftovers_are_removed(tmp_path: Path) -> None:
    for name in ("file.partial.txt", "partial", "sub/.hidden"):
        write_bytes(tmp_path / name, b"mine")
    left = [tmp_path / ".1-2-3.partial.json", tmp_path / "sub" / ".1-2-4.partial"]
    for path in left:
        path.write_bytes(b"")
    assert remove_partials(tmp_path) == sorted(left)
    assert names(tmp_path) == ["file.partial.txt", "partial", "sub"]
    assert names(tmp_path / "sub") == [".hidden"]
    assert remove_partials(tmp_path / "nowhere") == []


def test_what_safetensors_left_is_removed_too(tmp_path: Path) -> None:
    for name in (".tmpDQ348x", ".tmp", ".tmpl-folder"):
        write_bytes(tmp_path / "nets" / name, b"")
    assert remove_partials(tmp_path) == [tmp_path / "nets" / ".tmpDQ348x"]


def _write_and_wait(path: Path) -> None:
    with writing(path) as partial:
        partial.write_bytes(b"half")
        (path.parent / "here").touch()
        threading.Event().wait(60)


def test_where_several_write_only_what_dead_processes_left_goes(tmp_path: Path) -> None:
    left = tmp_path / ".1-2-3.partial.json"
    below = tmp_path / "sub" / ".1-2-4.partial"
    below.parent.mkdir()
    for path in (left, below):
        path.write_bytes(b"")
    writer = start(_write_and_wait, tmp_path / "file")
    while not (tmp_path / "here").exists():
        assert writer.is_alive()
        time.sleep(0.02)
    with writing(tmp_path / "own") as mine:
        mine.write_bytes(b"x")
        assert remove_abandoned(tmp_path) == [left]
    assert (tmp_path / "own").read_bytes() == b"x"
    (theirs,) = tmp_path.glob(f".*{PARTIAL}*")
    writer.kill()
    writer.join()
    assert remove_abandoned(tmp_path) == [theirs]
    assert below.exists()
    assert names(tmp_path) == ["here", "own", "sub"]
    assert remove_abandoned(tmp_path / "nowhere") == []


def _write_and_die(path: Path, number: int) -> None:
    count_disk_calls(Countdown(number))
    write_bytes(path, b"new")


@pytest.mark.parametrize("number", [1, 2, 3])  # before the content lasts, before it has its name, before that lasts
def test_killed_on_the_way(tmp_path: Path, number: int) -> None:
    path = tmp_path / "file"
    write_bytes(path, b"old")
    assert in_child(_write_and_die, path, number) == -9
    assert path.read_bytes() == (b"old" if number < 3 else b"new")
    remove_partials(tmp_path)
    assert names(tmp_path) == ["file"]


def _fill_the_disk(folder: Path) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))
    numbers = []
    for name, write in {
        "bytes": lambda partial: partial.write_bytes(bytes(20_000)),
        "tensors": lambda partial: save_file({"a": torch.zeros(20_000)}, partial),
    }.items():
        try:
            with writing(folder / name) as partial:
                write(partial)
        except OSError as error:
            numbers.append(error.errno)
    os._exit(0 if numbers == [errno.EFBIG] * 2 else 1)


def test_a_full_disk_is_an_os_error_from_every_library_and_harms_nothing(tmp_path: Path) -> None:
    for name in ("bytes", "tensors"):
        write_bytes(tmp_path / name, b"old")
    assert in_child(_fill_the_disk, tmp_path) == 0
    assert names(tmp_path) == ["bytes", "tensors"]
    assert {path.read_bytes() for path in tmp_path.iterdir()} == {b"old"}
