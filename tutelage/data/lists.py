"""List files: one ``IMAGE LABEL`` pair (or one ``IMAGE``) a line, relative to a root folder.

Lists come with blanks or tabs, with Windows line ends, with file names that hold blanks themselves, and with the
absolute paths of the machine on which they were made. All of that is read; a file that is missing in the end is
reported with its full name.
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
    """The samples of a list file, in its order.

    With ``lost_labels`` a label that is not there is noted in :attr:`Sample.lost`: published lists of unlabelled
    images name labels that nobody needs. Raises :class:`DataError` naming the list, the line and the first missing
    file, and for an empty list or a name that occurs twice.
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
    """The entries of a list file as it writes them: where it stands (file:line), image, and label if it has one.

    Raises :class:`DataError` for a list that is missing, unreadable or empty. ``root`` is only looked at to tell
    the blank between two names from a blank inside one.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise DataError(f"list file not found: {path}", "make it with `tutelage split`, or mend the recipe") from None
    except (UnicodeDecodeError, OSError) as error:
        raise DataError(f"list file cannot be read: {path} ({error})", "it must be a UTF-8 text file") from None
    entries = [
        (f"{path}:{number}", *_split(line.strip(), root))
        for number, line in enumerate(lines, 1)
        if line.strip() and not line.lstrip().startswith("#")
    ]
    if not entries:
        raise DataError(f"list file names no image: {path}", "add lines of the form `IMAGE LABEL`")
    return entries


def list_text(samples: Iterable[Sample], root: Path) -> str:
    """Samples as the text of a list relative to ``root``; a tab separates the pair where a name holds a blank."""
    lines = []
    for item in samples:
        names = [Path(os.path.relpath(p, root)).as_posix() for p in (item.image, item.label) if p is not None]
        lines.append(("\t" if any(" " in name for name in names) else " ").join(names))
    return "\n".join(lines) + "\n"


def write_list(path: Path, samples: Iterable[Sample], root: Path) -> None:
    """Write samples as a list relative to ``root``, atomically."""
    write_text(path, list_text(samples, root))


def sample(image: Path, label: Path | None, root: Path, group: Callable[[str], str]) -> Sample:
    """A sample named by its image's path under ``root``, without the ending."""
    try:
        name = image.relative_to(root).with_suffix("").as_posix()
    except ValueError:
        name = image.with_suffix("").as_posix()
    return Sample(name=name, image=image, label=label, group=group(name))


def unique(samples: Iterable[Sample], where: str) -> tuple[Sample, ...]:
    """The samples as a tuple. Raises :class:`DataError` when two have one name."""
    seen: dict[str, Path] = {}
    result = tuple(samples)
    for item in result:
        if item.name in seen:
            raise DataError(
                f"{where}: two images have the name {item.name!r}: {seen[item.name]} and {item.image}",
                "rename one of them, or take it out of the list",
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
    # One image whose name holds blanks; where its folders hold some too, the tail of a foreign path could be a label's.
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
    """The file that a list's entry means: under ``root``, or, for a path from another machine, by its tail there."""
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
        raise DataError(not_found(name, root, where), f"check the line and the root folder {root}")
    return path


def not_found(name: str, root: Path, where: str) -> str:
    """What is said of a list's entry at ``where`` (file:line) that is not there."""
    return f"{where}: file not found: {_candidate(name, root)}"
