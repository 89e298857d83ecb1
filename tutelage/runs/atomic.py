"""Files that are either whole or not there.

Everything is written to a temporary name in the same folder, flushed to the disk and then renamed over its
final name. A kill, a full disk or a power cut leaves the previous file untouched; what it can leave behind is
a file with ``.partial`` in its name. :func:`remove_partials` takes it away where one process works at a time,
:func:`remove_abandoned` where several write: a process holds a lock on the file that it writes, which ends with it.
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

# The second is what safetensors writes before it gives the file the name that it was asked for.
_LEFTOVERS = (f".*{PARTIAL}*", ".tmp??????")

# How Rust (safetensors) tells of an error of the system.
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
    """Make the file and hold a lock on it, where the system has locks; it says that somebody is still at it."""
    with ExitStack() as held:
        if fcntl is not None:
            file = held.enter_context(open(partial, "wb"))
            with suppress(OSError):  # some network file systems
                fcntl.flock(file, fcntl.LOCK_SH)
        yield


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; what was written there becomes ``path`` when the block ends well.

    Raises ``OSError`` for a full disk also where a library has an error of its own for it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The ending stays: libraries choose the file format by it. The name does not: it may be as long as names can be.
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
    """What interrupted writes left in ``folder`` and below, and what is being written there."""
    return sorted(path for pattern in _LEFTOVERS for path in folder.rglob(pattern) if path.is_file())


def remove_partials(folder: Path) -> list[Path]:
    """Remove what an interrupted write left in ``folder`` and below; returns what was removed.

    For a folder in which nobody else works: what another process is writing there would go, too.
    """
    found = leftovers(folder)
    for path in found:
        path.unlink(missing_ok=True)
    return found


def remove_abandoned(folder: Path) -> list[Path]:
    """Remove what dead processes left in ``folder``, not below; returns what was removed.

    What a living process is writing stays, if it writes into the file that :func:`writing` made (safetensors does not).
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
