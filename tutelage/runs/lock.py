"""One process per artefact: a lock that ends with its process."""

from __future__ import annotations

import errno
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from tutelage.errors import RunError

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
HOLDER = ".holder"
"""Ending of the file beside a held lock that names its holder; Windows lets nobody read the locked file itself."""


class HeldError(RunError):
    """Another live process holds the lock."""


@contextmanager
def locked(path: Path, say: Callable[[str], None] = lambda text: None) -> Iterator[None]:
    """Hold the lock file ``path`` while the block runs.

    The system releases the lock when its holder dies, whatever the cause; a leftover file is recognised as stale,
    reported and taken over. Raises :class:`HeldError`, naming the holder, if another live process holds the lock.
    """
    # Without flock, a lock by existence would outlive a process that is killed: rather none.
    lock = FileLock(path, blocking=False, thread_local=False, fallback_to_soft=False)
    holder, owner = path.with_name(path.name + HOLDER), os.getpid()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise HeldError(
            "locked-run",
            f"another process is running in {path.parent}: {_named(holder)}",
            "wait for it, stop it, or choose another folder with out=...",
        ) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            text = f"cannot write to the run folder: {path.parent} ({error.strerror})"
            raise RunError(
                "write-failed", text, "choose another folder with out=..., or change its permissions"
            ) from None
        say(f"no locks on this file system ({error.strerror}): run only one process in {path.parent}")
    try:
        if holder.exists():
            say(f"taking over the lock of a process that is gone ({_named(holder)})")
        content = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.ctime()}
        holder.write_text(json.dumps(content), encoding="utf-8")
        yield
    finally:
        if os.getpid() == owner:  # a forked child does not hold the lock
            holder.unlink(missing_ok=True)
            lock.release()


def _named(holder: Path) -> str:
    try:
        content = json.loads(holder.read_text(encoding="utf-8"))
        return f"pid {content['pid']} on {content['host']} since {content['since']}"
    except (OSError, ValueError, KeyError):
        return "holder unknown"
