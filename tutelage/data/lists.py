"""List files: one ``IMAGE LABEL`` pair (or one ``IMAGE``) a line, relative to a root folder.

Lists come with blanks or tabs, with Windows line ends, with file names that hold blanks themselves, and with the
absolute paths of the machine on which they were made. All of that is read; a file that is missing in the end is
reported with its full name.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

from tutelage.data.dataset import Sample
from tutelage.errors import DataError
from tutelage.runs.atomic import write_text


def read_list(path: Path, root: Path, group: Callable[[str], str], labels: bool = True) -> tuple[Sample, ...]:
    """The samples of a list file, in its order.

    Raises :class:`DataError` naming the list, the line and the first missing file, and for an empty list or a
    name that occurs twice.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise DataError(f"list file not found: {path}", "make it with `tutelage split`, or mend the recipe") from None
    except (UnicodeDecodeError, OSError) as error:
        raise DataError(f"list file cannot be read: {path} ({error})", "it must be a UTF-8 text file") from None
    samples = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        image, label = _split(line.strip(), root)
        image_path = _find(image, root, f"{path}:{number}")
        label_path = _find(label, root, f"{path}:{number}") if label is not None and labels else None
        samples.append(sample(image_path, label_path, root, group))
    if not samples:
        raise DataError(f"list file names no image: {path}", "add lines of the form `IMAGE LABEL`")
    return unique(samples, str(path))


def write_list(path: Path, samples: Iterable[Sample], root: Path) -> None:
    """Write samples as a list relative to ``root``; a tab separates the pair where a name holds a blank."""
    lines = []
    for item in samples:
        names = [Path(os.path.relpath(p, root)).as_posix() for p in (item.image, item.label) if p is not None]
        lines.append(("\t" if any(" " in name for name in names) else " ").join(names))
    write_text(path, "\n".join(lines) + "\n")


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
    parts = line.split(" ")
    if len(parts) <= 2:
        return parts[0], parts[1] if len(parts) == 2 else None
    if _candidate(line, root).is_file():  # one image whose name holds blanks
        return line, None
    for cut in range(1, len(parts)):
        image, label = " ".join(parts[:cut]), " ".join(parts[cut:])
        if _candidate(image, root).is_file() and _candidate(label, root).is_file():
            return image, label
    return line, None


def _candidate(name: str, root: Path) -> Path:
    path = Path(name)
    return path if path.is_absolute() else root / path


def _find(name: str, root: Path, where: str) -> Path:
    path = _candidate(name, root)
    if path.exists():
        return path
    if path.is_absolute():  # a list from another machine: try the path's tail under our root
        parts = path.parts
        for start in range(1, len(parts)):
            tail = root.joinpath(*parts[start:])
            if tail.is_file():
                return tail
    raise DataError(f"{where}: file not found: {path}", f"check the line and the root folder {root}")
