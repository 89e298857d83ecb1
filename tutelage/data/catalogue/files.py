"""Files of a public data set: the images of a split, each with its mask.

All common formats of published lists are read: pairs separated by a blank or a tab, image paths alone, absolute paths
of another machine, and bare ids, one per line.
"""

from __future__ import annotations

import glob
import importlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from tutelage.data.catalogue.facts import class_list, fact, label_map
from tutelage.data.catalogue.layouts import Layout, Source, fill, parse, wildcard
from tutelage.data.dataset import Dataset, Sample
from tutelage.data.folder import grouping
from tutelage.data.images import IMAGE_SUFFIXES
from tutelage.data.lists import locate, not_found, read_entries, unique
from tutelage.errors import DataError

# An image path relative to home, its source, its fields, the mask named by a list, and the message for a missing mask
# that a user's list names.
_Found = tuple[str, Source | None, dict[str, str], Path | None, str]


def _any_file(home: Path, pattern: str) -> bool:
    return next(glob.iglob(wildcard(pattern), root_dir=home), None) is not None


def missing(home: Path, sources: Sequence[Source]) -> str | None:
    """The first required file, folder or pattern of a split that is missing under ``home``, or ``None``."""
    for source in sources:
        if not _any_file(home, source.image):
            return source.image
        if source.needs is not None and not (home / source.needs).is_dir():
            return source.needs
        if source.lists and _official_list(home, source) is None:
            if source.without is None:
                return source.lists[0].partition(":")[0]
            if not (home / source.without).is_file():
                return source.without
    return None


def _official_list(home: Path, source: Source) -> str | None:
    return next((name for name in source.lists if (home / name.partition(":")[0]).is_file()), None)


class Files:
    """The images and masks of one data set in one layout."""

    def __init__(self, kind: str, layout: Layout, home: Path, root: Path, group: str | None) -> None:
        self.kind, self.layout, self.home, self.root = kind, layout, home, root
        self.group = grouping(group or layout.group)
        self._places: dict[Source, bool] = {}
        self._folders: dict[str, frozenset[str]] = {}

    def dataset(self, name: str, sources: Sequence[Source]) -> Dataset:
        """Open an official split. Raises :class:`DataError`, e.g. ``missing-split``."""
        return self._dataset(name, [sample for source in sources for sample in self._source(source)], self.home)

    def listed_dataset(self, name: str, list_file: Path) -> Dataset:
        """Open a split from a list file; an image without a mask in the list gets its official mask.

        The sources of the official split of that name are searched first, then all others.
        """
        own = self.layout.splits.get(name, ())
        others = [source for sources in self.layout.splits.values() for source in sources]
        entries = read_entries(list_file, self.home)
        return self._dataset(name, self._listed(entries, (*own, *others), official=False), list_file)

    def _dataset(self, name: str, samples: Sequence[Sample], where: Path) -> Dataset:
        return Dataset(
            name,
            unique(samples, str(where)),
            class_list(self.layout.classes),
            label_map(self.layout.label_map),
            self.layout.resize_labels,
        )

    def _source(self, source: Source) -> list[Sample]:
        listed = _official_list(self.home, source)
        if listed is not None:
            name, _, key = listed.partition(":")
            path = self.home / name
            entries = _mat_entries(path, key) if key else read_entries(path, self.home)
            return self._listed(entries, (source,), official=True)
        images = list(self._images(source))
        if source.without is not None:
            taken = {_stem(image) for _, image, _ in read_entries(self.home / source.without, self.home)}
            images = [
                (image, fields)
                for image, fields in images
                if _stem(image) not in taken and self._mask(source, fields) is not None
            ]
        if not images:
            raise DataError(
                "split-missing",
                f"{fact(self.kind, 'title')}: no image of this split at {self.home / source.image}",
                source.hint,
            )
        return self._paired([(image, source, fields, None, "") for image, fields in images])

    def _images(self, source: Source) -> Iterator[tuple[str, dict[str, str]]]:
        """Images of a source, sorted by name: path relative to home, and its fields."""
        for found in sorted(glob.iglob(wildcard(source.image), root_dir=self.home)):
            path = found.replace("\\", "/")
            fields = parse(source.image, path)
            if fields is not None and (source.only is None or fields[source.only[0]] in source.only[1]):
                yield path, fields

    def _listed(
        self, entries: Sequence[tuple[str, str, str | None]], sources: Sequence[Source], official: bool
    ) -> list[Sample]:
        """Samples in the order of a list. Raises :class:`DataError` (``missing-file``) for a missing image.

        An ``official`` list may be for another packaging: a missing mask is replaced by the official mask of the image.
        The same holds for a user's list if the entry has the name of an official mask; any other missing mask is
        recorded (:attr:`Sample.lost`), because a list of unlabelled images needs none.
        """
        found: list[_Found] = []
        by_name: dict[str, str] | None = None
        for where, image, label in entries:
            path = self._locate(image) if image.lower().endswith(IMAGE_SUFFIXES) else None
            if path is not None:
                relative = _under(path, self.home)
            else:
                by_name = self._by_name(sources) if by_name is None else by_name
                if _stem(image) not in by_name:
                    raise DataError(
                        "file-missing",
                        f"{where}: image not found: {self.home / image}",
                        "write the path of a file, or an image's name without folder and extension",
                    )
                relative = by_name[_stem(image)]
            source, fields = _first_match(sources, relative)
            mask, lost = None, ""
            if label is not None and not _is_other_mask(label, source, fields):
                mask = self._locate(label)
                if mask is None and not official:
                    lost = not_found(label, self.home, where)
                    if not _is_mask(label, source, fields):
                        source = None
            if mask is None and not (official or lost) and source is not None and source.masks:
                lost = not_found(fill(source.masks[0], fields), self.home, where)
            found.append((relative, source, fields, mask, lost))
        return self._paired(found)

    def _paired(self, found: Sequence[_Found]) -> list[Sample]:
        """Samples from images with their sources; an image without a given mask gets its official mask.

        A missing mask is recorded, not raised: the images may be used as unlabelled data.
        """
        samples = []
        for image, source, fields, given, lost in found:
            mask = given
            if mask is None and source is not None and self._has_masks(source):
                mask = self._mask(source, fields)
                if mask is None and not lost:
                    lost = f"{self.home / image} needs {self.home / fill(source.masks[0], fields)}; {source.hint}"
            name = image.rpartition(".")[0]
            samples.append(
                Sample(name, self.home / image, mask, self.group(name), lost="" if mask is not None else lost)
            )
        return samples

    def _locate(self, name: str) -> Path | None:
        return locate(name, self.home) or (locate(name, self.root) if self.root != self.home else None)

    def _by_name(self, sources: Sequence[Source]) -> dict[str, str]:
        """Images by the names used in lists: the file's stem, and the id in it. The first source has priority."""
        names: dict[str, str] = {}
        for source in dict.fromkeys(sources):
            for path, fields in self._images(source):
                for name in (_stem(path), fields.get("id"), fields.get("tile")):
                    if name is not None:
                        names.setdefault(name, path)
        return names

    def _has_masks(self, source: Source) -> bool:
        """Whether a folder for the masks of this source exists; images may be used without masks."""
        if source not in self._places:
            self._places[source] = any(
                _any_file(self.home, pattern.rpartition("/")[0] or pattern) for pattern in source.masks
            )
        return self._places[source]

    def _mask(self, source: Source, fields: Mapping[str, str]) -> Path | None:
        for pattern in source.masks:
            folder, _, name = fill(pattern, fields).rpartition("/")
            if name in self._names(folder):
                return self.home / folder / name
        return None

    def _names(self, folder: str) -> frozenset[str]:
        """File names in a folder, cached: a data set has up to a hundred thousand masks in few folders."""
        if folder not in self._folders:
            path = self.home / folder
            self._folders[folder] = frozenset(entry.name for entry in path.iterdir()) if path.is_dir() else frozenset()
        return self._folders[folder]


def _under(path: Path, home: Path) -> str:
    """A path relative to ``home`` with forward slashes; the full path if it is not under ``home``."""
    try:
        return path.relative_to(home).as_posix()
    except ValueError:
        return path.as_posix()


def _stem(name: str) -> str:
    """A list entry without folders and without an image extension."""
    last = name.replace("\\", "/").rpartition("/")[2]
    return last.rpartition(".")[0] if last.lower().endswith(IMAGE_SUFFIXES) else last


def _first_match(sources: Iterable[Source], image: str) -> tuple[Source | None, dict[str, str]]:
    for source in sources:
        fields = parse(source.image, image)
        if fields is not None:
            return source, fields
    return None, {}


def _is_other_mask(label: str, source: Source | None, fields: Mapping[str, str]) -> bool:
    """Whether a list's label is an official mask of the image with another encoding than this variant reads."""
    return source is not None and _ends(label, source.other_masks, fields)


def _is_mask(label: str, source: Source | None, fields: Mapping[str, str]) -> bool:
    """Whether a list's label is a possible path of the image's official mask."""
    return source is not None and _ends(label, source.masks, fields)


def _ends(label: str, patterns: Iterable[str], fields: Mapping[str, str]) -> bool:
    path = label.replace("\\", "/")
    return any(path.endswith(fill(pattern, fields)) for pattern in patterns)


def _mat_entries(path: Path, key: str) -> list[tuple[str, str, str | None]]:
    """Entries of GTA5's ``split.mat``: image numbers, formatted with five digits like the files.

    Raises :class:`DataError`: ``missing-package`` (SciPy), ``list-format``.
    """
    try:
        loadmat = importlib.import_module("scipy.io").loadmat
    except ImportError:
        raise DataError(
            "package-missing",
            f"reading the MATLAB file {path} needs SciPy",
            "pip install scipy, or use the split `all` or your own list",
        ) from None
    try:
        numbers = [int(number) for number in loadmat(path)[key].ravel()]
    except (KeyError, ValueError, OSError) as error:
        raise DataError(
            "list-unreadable", f"cannot read {path} ({error})", f"unpack the official file again; it holds {key}"
        ) from None
    return [(f"{path} ({key})", f"{number:05d}", None) for number in numbers]
