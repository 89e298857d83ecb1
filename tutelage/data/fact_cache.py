"""Cache of per-file statistics that are expensive to compute: computed by threads, stored in the user's cache folder.

The statistics of a data set are one compressed file, named by the data set's fingerprint, their kind and a version. A
damaged file or an unwritable folder costs time, and raises nothing.
"""

from __future__ import annotations

import hashlib
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from tutelage.runs.atomic import remove_abandoned, writing

Item = TypeVar("Item")
Result = TypeVar("Result")
Progress = Callable[[int, int], None]
"""Progress callback: items done, items in total."""


def cache_folder() -> Path:
    """The cache folder: ``$TUTELAGE_CACHE``, else ``tutelage`` in the user's cache folder."""
    configured = os.environ.get("TUTELAGE_CACHE")
    if configured:
        return Path(configured)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "tutelage"


def cache_file(kind: str, version: int, fingerprint: str, folder: Path | None = None) -> Path:
    """Path of the cache file for one kind of statistics and one fingerprint."""
    name = hashlib.blake2b(f"{kind}\x1f{version}\x1f{fingerprint}".encode(), digest_size=16).hexdigest()
    return (folder or cache_folder()) / kind / f"{name}.npz"


def load(path: Path, names: Iterable[str]) -> dict[str, np.ndarray] | None:
    """The named arrays of a file, or ``None`` if the file is missing, damaged or incomplete."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in names}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error, struct.error, NotImplementedError):
        return None


def store(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Store arrays in a compressed file, atomically. Does nothing if the folder cannot be written."""
    content: dict[str, Any] = dict(arrays)
    remove_abandoned(path.parent)
    try:
        with writing(path) as partial:
            np.savez_compressed(partial, **content)
    except OSError:
        return


def gather(
    function: Callable[[Item], Result], items: Sequence[Item], workers: int = 2, progress: Progress | None = None
) -> list[Result]:
    """``function`` of every item, in order, computed by threads (Pillow and numpy release the interpreter lock)."""
    results: list[Result] = []
    if workers < 2 or len(items) < 2:
        for item in items:
            results.append(function(item))
            if progress is not None:
                progress(len(results), len(items))
        return results
    pool = ThreadPoolExecutor(workers, thread_name_prefix="gather")
    try:
        for result in pool.map(function, items):
            results.append(result)
            if progress is not None:
                progress(len(results), len(items))
    finally:
        pool.shutdown(cancel_futures=True)
    return results
