"""A toy city on disk: images, labels, lists and the class file, in the layout of a folder data set."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from tutelage.data.toycity.appearance import Domain
from tutelage.data.toycity.picture import CLASSES, IGNORE_INDEX, PALETTE, render
from tutelage.errors import DataError
from tutelage.runs.atomic import write_json, write_text, writing

VERSION = 1  # increase it when equal parameters give other images
_RECORD = "toycity.json"


def first_index(split: str) -> int:
    """First scene index of a split: far from those of all other splits, whatever their counts."""
    return int.from_bytes(hashlib.sha256(split.encode()).digest()[:6], "big") << 32


def is_complete(root: Path, counts: Mapping[str, int], size: tuple[int, int], domain: Domain, seed: int) -> bool:
    """Whether ``root`` holds the complete data set of these parameters."""
    return _recorded(Path(root)) == {**_parameters(counts, size, domain, seed), "complete": True}


def generate(
    root: Path,
    counts: Mapping[str, int],
    size: tuple[int, int],
    domain: Domain,
    seed: int,
    workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write ``counts[split]`` scenes of ``size`` (height, width) for each split into ``root``.

    ``workers``: number of processes (0: this process); it does not change the files. ``progress`` is called with
    (scenes done, scenes in total). A complete folder of the same parameters is unchanged, an incomplete one is
    completed. Raises :class:`DataError`: ``toycity-settings``, ``toycity-folder``.
    """
    root = Path(root)
    for split, count in counts.items():
        if not split or split != Path(split).name or count < 0:
            raise DataError(
                "invalid-value",
                f"invalid toycity split {split!r} of {count} scenes",
                "give a plain folder name and a count of 0 or more",
            )
    parameters = _parameters(counts, size, domain, seed)
    recorded = _recorded(root)
    if recorded == {**parameters, "complete": True}:
        return
    if recorded is not None and {**recorded, "complete": False} != {**parameters, "complete": False}:
        changed = [key for key in parameters if recorded.get(key) != parameters[key]]
        raise DataError(
            "output-exists",
            f"{root} holds a toy city with other parameters ({', '.join(changed) or 'another file format'})",
            "choose another folder, or delete this one to generate it again",
        )
    if recorded is None and root.is_dir() and any(root.iterdir()):
        raise DataError(
            "output-exists", f"{root} is not empty and holds no toy city", "choose an empty or a new folder"
        )

    # The record is written first, marked incomplete, and again at the end, marked complete.
    write_json(root / _RECORD, {**parameters, "complete": False})
    tasks = [(split, number) for split in sorted(counts) for number in range(counts[split])]
    work = partial(_write_scene, root, size, domain, seed)
    with closing(_results(work, tasks, workers)) as results:
        for done, _ in enumerate(results, start=1):
            if progress is not None:
                progress(done, len(tasks))
    for split, count in counts.items():
        lines = [f"{_name('images', split, domain, i)} {_name('labels', split, domain, i)}\n" for i in range(count)]
        write_text(root / f"{split}.txt", "".join(lines))
    write_json(
        root / "classes.json",
        {
            "names": list(CLASSES),
            "palette": [list(colour) for colour in PALETTE],
            "ignore_index": IGNORE_INDEX,
            "num_classes": len(CLASSES),
        },
    )
    write_json(root / _RECORD, {**parameters, "complete": True})


def _parameters(counts: Mapping[str, int], size: tuple[int, int], domain: Domain, seed: int) -> dict[str, Any]:
    return {"version": VERSION, "counts": dict(counts), "size": list(size), "domain": domain, "seed": seed}


def _recorded(root: Path) -> dict[str, Any] | None:
    """The record of the folder; ``None`` if there is none, an empty dictionary if it cannot be read."""
    try:
        content = json.loads((root / _RECORD).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _name(kind: str, split: str, domain: str, number: int) -> str:
    return f"{kind}/{split}/{domain}_{number:05d}.png"


def _results(
    work: Callable[[tuple[str, int]], None], tasks: list[tuple[str, int]], workers: int
) -> Generator[None, None, None]:
    if workers <= 0:
        yield from map(work, tasks)
        return
    # Spawned, since forking a process whose torch already runs threads can hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        try:
            yield from pool.map(work, tasks, chunksize=8)
        finally:
            pool.shutdown(cancel_futures=True)


def _write_scene(root: Path, size: tuple[int, int], domain: Domain, seed: int, task: tuple[str, int]) -> None:
    split, number = task
    targets = [root / _name(kind, split, domain, number) for kind in ("images", "labels")]
    if all(target.is_file() for target in targets):  # from an interrupted run; complete, since writes are atomic
        return
    for target, array in zip(targets, render(seed, first_index(split) + number, size, domain), strict=True):
        with writing(target) as path:
            Image.fromarray(array).save(path, compress_level=1)
