"""Atomic writes: a file is whole or absent.

A file is written under a temporary name in the same folder, flushed to the disk and renamed to its final name. A
kill, a full disk or a power cut leaves the previous file unchanged; it may leave a file with ``.partial`` in its
name. :func:`remove_partials` removes such files where one process works at a time, :func:`remove_abandoned` where
several write: a process holds a lock on the file that it writes, which ends with the process.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

PARTIAL = ".partial"

# The second is the temporary name that safetensors uses.
_LEFTOVERS = (f".*{PARTIAL}*", ".tmp??????")

# How Rust (safetensors) reports a system error.
_SYSTEM_ERROR = re.compile(r"\(os error (\d+)\)")
_numbers = itertools.count()


def _sync_folder(folder: Path) -> None:
    """Make a rename inside ``folder`` durable, where the system lets a folder be opened."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows
        return
    try:
        os.fsync(handle)
    except OSError:  # some network file systems
        pass
    finally:
        os.close(handle)


@contextmanager
def _held(partial: Path) -> Iterator[None]:
    """Create the file and hold a lock on it, where the system has locks; the lock marks it as being written."""
    with ExitStack() as held:
        if fcntl is not None:
            file = held.enter_context(open(partial, "wb"))
            with suppress(OSError):  # some network file systems
                fcntl.flock(file, fcntl.LOCK_SH)
        yield


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; it is renamed to ``path`` if the block ends without an error.

    Raises ``OSError`` for a full disk, even where a library raises its own error.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Keep the suffix: libraries choose the file format by it. Not the name: it may have the maximal length already.
    partial = path.with_name(f".{os.getpid()}-{threading.get_ident()}-{next(_numbers)}{PARTIAL}{path.suffix}")
    try:
        with _held(partial):
            yield partial
            with open(partial, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(partial, path)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        wrapped = None if isinstance(error, OSError) else _SYSTEM_ERROR.search(str(error))
        if wrapped is not None:
            number = int(wrapped[1])
            raise OSError(number, os.strerror(number), str(path)) from error
        raise
    _sync_folder(path.parent)


def write_bytes(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path`` atomically."""
    with writing(path) as partial:
        partial.write_bytes(content)


def write_text(path: Path, content: str) -> None:
    """Write ``content`` to ``path`` atomically, as UTF-8 with plain line ends."""
    write_bytes(path, content.encode())


def write_json(path: Path, content: Any) -> None:
    """Write ``content`` to ``path`` atomically as indented JSON with sorted keys (equal content, equal bytes)."""
    write_text(path, json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def sha256(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def leftovers(folder: Path) -> list[Path]:
    """Partial files in ``folder`` and below, of interrupted writes and of writes in progress."""
    return sorted(path for pattern in _LEFTOVERS for path in folder.rglob(pattern) if path.is_file())


def remove_partials(folder: Path) -> list[Path]:
    """Remove the partial files in ``folder`` and below; returns the removed paths.

    Only for a folder that no other process uses: its files in progress would be removed, too.
    """
    found = leftovers(folder)
    for path in found:
        path.unlink(missing_ok=True)
    return found


def remove_abandoned(folder: Path) -> list[Path]:
    """Remove the partial files that dead processes left in ``folder``, not below; returns the removed paths.

    Files of live processes stay, if they write into the file that :func:`writing` created (safetensors does not).
    Nothing is removed where the system has no locks.
    """
    return [path for path in sorted(folder.glob(f".*{PARTIAL}*")) if _remove_unheld(path)]


def _remove_unheld(path: Path) -> bool:
    try:
        with open(path, "rb+") as file:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
                return True
    except OSError:  # it is held, or gone
        pass
    return False
