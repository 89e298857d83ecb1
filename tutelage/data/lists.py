"""List files: one ``IMAGE LABEL`` pair (or one ``IMAGE``) per line, relative to a root folder.

The reader accepts blanks or tabs as separators, Windows line ends, file names with blanks, and absolute paths of the
machine on which the list was made.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from tutelage.data.dataset import Sample
from tutelage.errors import DataError
from tutelage.runs.atomic import write_text


def read_list(
    path: Path, root: Path, group: Callable[[str], str], labels: bool = True, *, lost_labels: bool = False
) -> tuple[Sample, ...]:
    """Samples of a list file, in its order.

    With ``lost_labels`` a missing label is recorded in :attr:`Sample.lost` instead of raised, because published lists
    of unlabelled images name labels that are never read. Raises :class:`DataError`: ``missing-list``, ``list-format``,
    ``empty-dataset``, ``missing-file`` (with file and line), ``duplicate-name``.
    """
    samples = []
    for where, image, label in read_entries(path, root):
        image_path = _find(image, root, where)
        label_path, lost = None, ""
        if label is not None and labels:
            label_path = locate(label, root) if lost_labels else _find(label, root, where)
            lost = "" if label_path is not None else not_found(label, root, where)
        samples.append(replace(sample(image_path, label_path, root, group), lost=lost))
    return unique(samples, str(path))


def read_entries(path: Path, root: Path) -> list[tuple[str, str, str | None]]:
    """Entries of a list file as written: position (file:line), image, and label or ``None``.

    ``root`` serves only to distinguish the blank between two names from a blank inside a name. Raises
    :class:`DataError`: ``missing-list``, ``list-format``, ``empty-dataset``.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise DataError(
            "file-missing", f"list file not found: {path}", "create it with `tutelage split`, or fix the recipe"
        ) from None
    except (UnicodeDecodeError, OSError) as error:
        raise DataError(
            "list-unreadable", f"cannot read list file: {path} ({error})", "write it as UTF-8 text, one image per line"
        ) from None
    entries = [
        (f"{path}:{number}", *_split(line.strip(), root))
        for number, line in enumerate(lines, 1)
        if line.strip() and not line.lstrip().startswith("#")
    ]
    if not entries:
        raise DataError("dataset-empty", f"list file names no image: {path}", "add lines of the form `IMAGE LABEL`")
    return entries


def list_text(samples: Iterable[Sample], root: Path) -> str:
    """Text of a list file of samples, relative to ``root``; the separator is a tab if a name contains a blank."""
    lines = []
    for item in samples:
        names = [Path(os.path.relpath(p, root)).as_posix() for p in (item.image, item.label) if p is not None]
        lines.append(("\t" if any(" " in name for name in names) else " ").join(names))
    return "\n".join(lines) + "\n"


def write_list(path: Path, samples: Iterable[Sample], root: Path) -> None:
    """Write samples as a list file relative to ``root``, atomically."""
    write_text(path, list_text(samples, root))


def sample(image: Path, label: Path | None, root: Path, group: Callable[[str], str]) -> Sample:
    """A sample named by its image's path relative to ``root``, without extension."""
    try:
        name = image.relative_to(root).with_suffix("").as_posix()
    except ValueError:
        name = image.with_suffix("").as_posix()
    return Sample(name=name, image=image, label=label, group=group(name))


def unique(samples: Iterable[Sample], where: str) -> tuple[Sample, ...]:
    """The samples as a tuple. Raises :class:`DataError` (``duplicate-name``) if two have the same name."""
    seen: dict[str, Path] = {}
    result = tuple(samples)
    for item in result:
        if item.name in seen:
            raise DataError(
                "duplicate-name",
                f"{where}: duplicate image name {item.name!r}: {seen[item.name]} and {item.image}",
                "rename one of them, or remove it from the list",
            )
        seen[item.name] = item.image
    return result


def _split(line: str, root: Path) -> tuple[str, str | None]:
    if "\t" in line:
        image, _, label = line.partition("\t")
        return image.strip(), label.strip() or None
    words = line.split()
    if len(words) == 1:
        return line, None
    if len(words) == 2 and locate(words[0], root) is not None:
        return words[0], words[1]
    # One image whose name contains blanks. If its folders contain blanks too, the tail of a path from another machine
    # could be the label's.
    if _candidate(line, root).is_file() or (" " not in line.rpartition("/")[0] and locate(line, root) is not None):
        return line, None
    parts = line.split(" ")
    for cut in range(1, len(parts)):
        image, label = " ".join(parts[:cut]).strip(), " ".join(parts[cut:]).strip()
        if image and label and locate(image, root) is not None and locate(label, root) is not None:
            return image, label
    return (words[0], words[1]) if len(words) == 2 else (line, None)


def _candidate(name: str, root: Path) -> Path:
    path = Path(name)
    return path if path.is_absolute() else root / path


def locate(name: str, root: Path) -> Path | None:
    """Path of a list entry: under ``root``, or, for a path from another machine, by its tail under ``root``."""
    path = _candidate(name, root)
    if path.exists():
        return path
    if path.is_absolute():
        parts = path.parts
        for start in range(1, len(parts)):
            tail = root.joinpath(*parts[start:])
            if tail.is_file():
                return tail
    return None


def _find(name: str, root: Path, where: str) -> Path:
    path = locate(name, root)
    if path is None:
        raise DataError("file-missing", not_found(name, root, where), f"check the line and the root folder {root}")
    return path


def not_found(name: str, root: Path, where: str) -> str:
    """Message for a list entry at ``where`` (file:line) whose file is missing."""
    return f"{where}: file not found: {_candidate(name, root)}"
