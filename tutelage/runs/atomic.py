"""Files that are either whole or not there.

Everything is written to a temporary name in the same folder, flushed to the disk and then renamed over its
final name. A kill, a full disk or a power cut leaves the previous file untouched; what it can leave behind is
a file whose name ends in ``.partial``, which :func:`remove_partials` takes away.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PARTIAL = ".partial"

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
def writing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; what was written there becomes ``path`` when the block ends well.

    Raises ``OSError`` for a full disk also where a library has an error of its own for it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The ending stays: libraries choose the file format by it. The name does not: it may be as long as names can be.
    partial = path.with_name(f".{os.getpid()}-{threading.get_ident()}-{next(_numbers)}{PARTIAL}{path.suffix}")
    try:
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


def remove_partials(folder: Path) -> list[Path]:
    """Remove what an interrupted write left in ``folder`` and below; returns what was removed."""
    leftovers = sorted(path for path in folder.rglob(f".*{PARTIAL}*") if path.is_file())
    for path in leftovers:
        path.unlink(missing_ok=True)
    return leftovers
