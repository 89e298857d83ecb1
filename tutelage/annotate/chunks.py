"""Work on many images in parts that are kept until all is done: a run that was killed goes on with the next part.

Parts are the same whatever the number of processes, and are put together in the order of the images. So what is made
of them does not depend on that number either.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from torch import Tensor

from tutelage.engine import collectives
from tutelage.errors import TutelageError
from tutelage.prototypes.storage import load_tensors, save_tensors

KIND = "part of a fit"
IMAGES = 64

Progress = Callable[[int, int], None]


def in_parts(
    folder: Path,
    name: str,
    count: int,
    make: Callable[[range], Mapping[str, Tensor]],
    progress: Progress = lambda done, total: None,
    images: int = IMAGES,
) -> Iterator[dict[str, Tensor]]:
    """The results of ``make`` for images 0..``count``, part after part; parts that exist in ``folder`` are not redone.

    With several processes each makes its share, and each reads all. Part n holds the images from n x ``images`` on.
    """
    ranges = [range(first, min(first + images, count)) for first in range(0, count, images)]
    mine = ranges[collectives.rank() :: collectives.world()]
    done, total = 0, sum(map(len, mine))
    for part in mine:
        path = _path(folder, name, part)
        if not _is_whole(path):
            save_tensors(path, KIND, make(part), {"first": part.start, "images": len(part)})
        done += len(part)
        progress(done, total)
    collectives.barrier()
    for part in ranges:
        yield load_tensors(_path(folder, name, part), KIND)[0]


def _path(folder: Path, name: str, part: range) -> Path:
    return folder / f"{name}-{part.start:07d}-{part.stop:07d}.safetensors"


def _is_whole(path: Path) -> bool:
    if not path.is_file():
        return False
    try:
        load_tensors(path, KIND)
    except TutelageError:
        return False
    return True
