"""One process per artefact: a lock that ends with its process."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from tutelage.errors import RunError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_held: set[TextIO] = set()


class HeldError(RunError):
    """Another live process holds the lock."""


def _let_go() -> None:
    """In a forked child: a lock shared with a loader's worker would outlive the process that holds it."""
    for file in _held:
        file.close()
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


@contextmanager
def locked(path: Path, say: Callable[[str], None] = lambda text: None) -> Iterator[None]:
    """Hold the lock file ``path`` while the block runs.

    The system releases the lock when its holder dies, whatever the cause; a leftover file is recognised as stale,
    reported and taken over. Raises :class:`HeldError`, naming the holder, if another live process holds the lock.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        file = open(path, "a+", encoding="utf-8")  # noqa: SIM115 - held open as long as the lock
    except OSError as error:
        raise RunError(
            "write-failed",
            f"cannot write to the run folder: {path.parent} ({error.strerror})",
            "choose another folder with out=..., or change its permissions",
        ) from None
    with file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise HeldError(
                    "locked-run",
                    f"another process works in {path.parent}: {_holder(path)}",
                    "wait for it, stop it, or choose another folder with out=...",
                ) from None
            except OSError as error:
                say(f"no locks on this file system ({error.strerror}): run only one process in {path.parent}")
        if path.stat().st_size:
            say(f"taking over the lock of a process that is gone ({_holder(path)})")
        file.truncate(0)
        file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": time.ctime()}))
        file.flush()
        _held.add(file)
        try:
            yield
        finally:
            _held.discard(file)
            # Emptied, not removed: leftover content marks a stale lock.
            if not file.closed:
                file.truncate(0)


def _holder(path: Path) -> str:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return f"pid {content['pid']} on {content['host']} since {content['since']}"
    except (OSError, ValueError, KeyError):
        return "holder unknown"
