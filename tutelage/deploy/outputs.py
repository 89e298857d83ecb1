"""Input images of a call, and the names of their results.

An image's name is its path below the given folder (below the common parent of several), without its suffix. Where
two images would write one file (``a.jpg`` and ``a.png``), both keep their suffix: ``a.jpg.png`` and ``a.png.png``.
"""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from tutelage.data.folder import list_images
from tutelage.data.images import IMAGE_SUFFIXES
from tutelage.errors import TutelageError

Kind = Literal["palette", "index", "overlay", "confidence"]
KINDS: tuple[Kind, ...] = get_args(Kind)

_ENDINGS: dict[Kind, str] = {
    "palette": ".png",
    "index": "_index.png",
    "overlay": "_overlay.jpg",
    "confidence": "_confidence.png",
}


@dataclass(frozen=True)
class Job:
    """One image and the name of its results, below the output folder."""

    image: Path
    name: str

    def path(self, out: Path, kind: Kind) -> Path:
        """The file that holds one kind of result."""
        return out / f"{self.name}{_ENDINGS[kind]}"


def find_jobs(inputs: Sequence[Path], out: Path) -> list[Job]:
    """Find the images of files, folders (with subfolders) and patterns (``*``, ``**``), in order.

    Earlier results are skipped if ``out`` lies below a searched folder. Raises :class:`TutelageError` for an input that
    does not exist or holds no image, and if results would overwrite images or lie among them.
    """
    out = _plain(out)
    roots: list[Path] = []
    images: dict[Path, None] = {}
    for given in inputs:
        root, found = _search(_plain(given), out)
        roots.append(root)
        images.update(dict.fromkeys(found))
    if not images:
        raise TutelageError(
            "input-missing", "no images given", "name files, folders, or patterns such as 'photos/*.jpg'"
        )
    base = _common(roots)
    jobs = _named({image: image.relative_to(base) for image in images})
    _check_outputs(jobs, images.keys(), [_plain(given) for given in inputs if given.is_dir()], out)
    return jobs


def _plain(path: Path) -> Path:
    """Absolute, without ``..``; links are not resolved."""
    return Path(os.path.abspath(path))


def _search(given: Path, out: Path) -> tuple[Path, list[Path]]:
    """The folder that names are relative to, and the images."""
    if given.is_file():
        return given.parent, [given]
    if given.is_dir():
        root, found = given, list_images(given)
    elif glob.has_magic(str(given)):
        root = _fixed_part(given)
        found = []
        for match in sorted(map(Path, glob.glob(str(given), recursive=True))):
            if match.is_dir() and "**" not in given.parts:
                found += list_images(match)
            elif match.is_file() and match.suffix.lower() in IMAGE_SUFFIXES:
                found.append(match)
    else:
        raise TutelageError(
            "file-missing", f"file or folder not found: {given}", "check the path; quote patterns such as '*.jpg'"
        )
    if out.is_relative_to(root) and out != root:
        found = [path for path in found if not path.is_relative_to(out)]
    if not found:
        raise TutelageError(
            "folder-empty", f"no images in folder: {given}", f"supported extensions: {', '.join(IMAGE_SUFFIXES)}"
        )
    return root, found


def _fixed_part(pattern: Path) -> Path:
    """The folders of a pattern before its first wildcard."""
    fixed = Path(pattern.anchor)
    for part in pattern.parts[1:-1]:
        if glob.has_magic(part):
            break
        fixed /= part
    return fixed


def _common(roots: Sequence[Path]) -> Path:
    try:
        return Path(os.path.commonpath(roots))
    except ValueError:  # Windows' drives
        raise TutelageError(
            "output-drives",
            "images are on several drives, so their results have no common folder",
            "predict the images of each drive separately",
        ) from None


def _named(relative: dict[Path, Path]) -> list[Job]:
    """Jobs in order; names get suffixes until no two jobs write one file, whatever kinds are written."""
    whole: set[Path] = set()
    while True:
        jobs = [
            Job(image, path.as_posix() if image in whole else path.with_suffix("").as_posix())
            for image, path in relative.items()
        ]
        written = Counter(job.name + ending for job in jobs for ending in _ENDINGS.values())
        clashing = {job.image for job in jobs if any(written[job.name + ending] > 1 for ending in _ENDINGS.values())}
        if clashing <= whole:
            return jobs
        whole |= clashing


def _check_outputs(jobs: Sequence[Job], images: Iterable[Path], folders: Sequence[Path], out: Path) -> None:
    known = set(images)
    remedy = "write the results to another folder"
    for job in jobs:
        for kind in KINDS:
            path = job.path(out, kind)
            if path in known:
                raise TutelageError("output-overlap", f"result of {job.image} would overwrite image {path}", remedy)
            inside = next((folder for folder in folders if path.is_relative_to(folder)), None)
            if inside is not None and not (out.is_relative_to(inside) and out != inside):
                raise TutelageError(
                    "output-overlap", f"results would be written among the images, in {path.parent}", remedy
                )
