"""A data set: lists of image and mask files with their classes. Files are read one at a time, by index.

Unlabelled and target data go through :meth:`Dataset.without_labels`, which removes the mask paths even where a list
names them, so that no code can read them by mistake.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from tutelage.data.images import image_size, read_image
from tutelage.data.labels import IGNORE, LabelMap, compose, resized
from tutelage.errors import DataError

_SAMPLED = 1 << 16


@dataclass(frozen=True)
class Classes:
    """Class names by train id, with one RGB colour each.

    Raises :class:`DataError`: ``class-palette``, ``class-count``, ``class-names``.
    """

    names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...] = ()

    def __post_init__(self) -> None:
        if not self.palette:
            object.__setattr__(self, "palette", tuple(distinct_colour(i) for i in range(len(self.names))))
        if len(self.palette) != len(self.names):
            raise DataError(
                "class-palette",
                f"{len(self.names)} class names but {len(self.palette)} palette colours",
                "give one colour per class",
            )
        if not 1 <= len(self.names) <= 254:
            raise DataError(
                "class-count",
                f"number of classes must be in [1, 254], got {len(self.names)}",
                "give 1 to 254 classes (value 255 means ignored)",
            )
        alike = [plain(name) for name in self.names]  # lists of classes are matched by plain names
        twice = sorted({name for name in self.names if alike.count(plain(name)) > 1})
        if twice:
            raise DataError(
                "duplicate-name", f"duplicate class name: {', '.join(twice)}", "give each class its own name"
            )

    def __len__(self) -> int:
        return len(self.names)


def distinct_colour(index: int) -> tuple[int, int, int]:
    """Colour of class ``index`` in the VOC palette: the bits of the index spread over the three channels."""
    red = green = blue = 0
    for bit in range(8):
        red |= ((index >> 0) & 1) << (7 - bit)
        green |= ((index >> 1) & 1) << (7 - bit)
        blue |= ((index >> 2) & 1) << (7 - bit)
        index >>= 3
    return red, green, blue


@dataclass(frozen=True)
class Sample:
    """One image, with its mask if it has one; ``group`` is its sequence, tile or patient."""

    name: str
    image: Path
    label: Path | None = None
    group: str = ""
    confidence: Path | None = None
    """8-bit confidence map of a pseudo label."""
    weight: Path | None = None
    """8-bit map of pixel weights."""
    lost: str = ""
    """Expected place of a missing mask. Not an error until the mask is read: unlabelled images need none."""


@dataclass(frozen=True)
class Dataset:
    """Images, masks and classes under one name. Cheap to build and picklable; holds no open file."""

    name: str
    samples: tuple[Sample, ...]
    classes: Classes
    label_map: LabelMap
    resize_labels: bool = False
    """Whether a mask of another size is resized to its image (GTA5 has a few); if false, such a mask is an error."""

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def labeled(self) -> bool:
        """Whether every sample has a mask."""
        return bool(self.samples) and all(sample.label is not None for sample in self.samples)

    def image(self, index: int) -> np.ndarray:
        """Image ``index`` as (H, W, 3) uint8 RGB. Raises :class:`DataError` as :func:`images.read_image` does."""
        return read_image(self.samples[index].image)

    def label(self, index: int) -> np.ndarray:
        """Mask ``index`` as (H, W) uint8 train ids, 255 = ignore.

        Raises :class:`DataError`: ``image-without-mask``, and the errors of :meth:`LabelMap.read`.
        """
        path = self.samples[index].label
        if path is None:
            lost = self.samples[index].lost
            raise DataError(
                "mask-missing",
                f"{self.name}: {self.samples[index].image} has no mask" + (f" ({lost})" if lost else ""),
                "add the mask, or use the image as unlabelled data",
            )
        label = self.label_map.read(path)
        return resized(label, image_size(self.samples[index].image)) if self.resize_labels else label

    def without_labels(self) -> Dataset:
        """The same images without masks, confidence maps and weights."""
        bare = (replace(s, label=None, confidence=None, weight=None, lost="") for s in self.samples)
        return replace(self, samples=tuple(bare))

    def require_images(self, what: str) -> Dataset:
        """This data set; raises :class:`DataError`, naming ``what``, where it has no images."""
        if not self.samples:
            raise DataError("dataset-empty", f"data set {what!r} has no images", "check its list or folder")
        return self

    def require_labels(self, what: str) -> None:
        """Check that every sample has a mask; ``what`` names the reader of the masks in the message.

        Raises :class:`DataError`: ``empty-dataset``, ``missing-mask``, ``image-without-mask``.
        """
        if self.labeled:
            return
        if not self.samples:
            raise DataError(
                "dataset-empty", f"{what}: data set {self.name!r} has no images", "check its list or folder"
            )
        without = [sample for sample in self.samples if sample.label is None]
        lost = [sample.lost for sample in without if sample.lost]
        if lost:
            raise DataError(
                "mask-missing",
                f"{what}: {len(lost)} of {len(self)} masks not found; first: {lost[0]}",
                "check the list and data.<name>.root; only images that are used as unlabelled data need no masks",
            )
        raise DataError(
            "mask-missing",
            f"{what}: {len(without)} of {len(self)} images have no mask; first: {without[0].image}",
            "add the mask after the image in the list, or remove the line; or use the images as unlabelled data",
        )

    def subset(self, indices: Sequence[int], name: str | None = None) -> Dataset:
        """The samples at ``indices``, in that order."""
        return replace(self, name=name or self.name, samples=tuple(self.samples[i] for i in indices))

    def bridged(self, classes: Classes, mapping: Mapping[str, str | None]) -> Dataset:
        """The same data with the class list ``classes``; see :func:`bridge`."""
        return replace(self, classes=classes, label_map=compose(self.label_map, bridge(self, classes, mapping)))

    @cached_property
    def fingerprint(self) -> str:
        """Hash of file names, sizes, contents and label map: equal data have equal fingerprints in any folder.

        Reads the size and the first and last 64 KiB of every file: all of a mask or a small photograph, a sample of a
        large one, so that a large data set takes seconds. Raises :class:`DataError` (``unreadable-file``).
        """
        digest = hashlib.blake2b(digest_size=16)
        digest.update(repr((len(self.classes), sorted(self.label_map.table.items()), self.label_map.encoding)).encode())
        digest.update(repr(self.label_map.others).encode())
        if self.resize_labels:
            digest.update(b"labels resized")
        for sample in self.samples:
            digest.update(f"\n{sample.name}\x1f{sample.group}\x1f".encode())
            for path in (sample.image, sample.label, sample.confidence):
                digest.update(b"-" if path is None else _sampled_digest(path))
        return digest.hexdigest()


def _sampled_digest(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            content = file.read(_SAMPLED)
            if size > 2 * _SAMPLED:
                file.seek(-_SAMPLED, 2)
            content += file.read(_SAMPLED)
    except OSError as error:
        raise DataError(
            "file-unreadable",
            f"cannot read file of the data set: {path} ({error.strerror})",
            "check the path and its permissions",
        ) from None
    return hashlib.blake2b(content + str(size).encode(), digest_size=16).digest()


def bridge(dataset: Dataset, classes: Classes, mapping: Mapping[str, str | None]) -> dict[int, int]:
    """Map the train ids of ``dataset`` to those of ``classes``: by ``mapping`` where it names a class, else by name.

    ``mapping``: class name of the data set → class name of the task (several may merge), or ``None`` (ignored). Raises
    :class:`DataError`: ``unknown-class`` for a name that is in neither list, ``unmapped-class`` for a class without a
    partner.
    """
    own = {plain(name): i for i, name in enumerate(dataset.classes.names)}
    other = {plain(name): i for i, name in enumerate(classes.names)}
    for theirs, ours in mapping.items():
        if plain(theirs) not in own:
            raise DataError(
                "unknown-class",
                f"{dataset.name}: bridge maps unknown class {theirs!r} of the data set",
                f"use one of: {', '.join(own)}",
            )
        if ours is not None and plain(ours) not in other:
            raise DataError(
                "unknown-class",
                f"{dataset.name}: bridge maps to unknown class {ours!r} of the task",
                f"use one of: {', '.join(other)}",
            )
    chosen = {plain(theirs): None if ours is None else plain(ours) for theirs, ours in mapping.items()}
    lost = [name for name in dataset.classes.names if plain(name) not in chosen and plain(name) not in other]
    if lost:
        raise DataError(
            "class-unmapped",
            f"{dataset.name}: classes without a partner in the task's class list: {', '.join(lost)}",
            f"map them under data.<name>.bridge, e.g. {{{lost[0]}: null}} to ignore a class",
        )
    result = {}
    for name, index in own.items():
        partner = chosen.get(name, name)
        result[index] = IGNORE if partner is None else other[partner]
    return result


def inner_path(name: str) -> str:
    """A sample's name as a relative path that cannot leave its folder.

    Names of images outside the root begin with ``..`` or with the drive. Output files with such names would be written
    beside, or over, the user's own files.
    """
    path = Path(name)
    parts = ["_up" if part == ".." else part for part in path.parts if part != path.anchor]
    return Path("_top" if path.anchor else "", *parts).as_posix()


def plain(name: str) -> str:
    """Normalise a class name for comparison: lower case, without blanks, hyphens and underscores."""
    return "".join(letter for letter in name.lower() if letter not in " _-")


def describe_bridge(dataset: Dataset, classes: Classes, mapping: Mapping[str, str | None]) -> list[str]:
    """One line for each class that a bridge merges, ignores or leaves without source; empty if the lists are equal."""
    if dataset.classes.names == classes.names and not mapping:
        return []
    partner = bridge(dataset, classes, mapping)
    lines = []
    for target, name in enumerate(classes.names):
        sources = [dataset.classes.names[i] for i, j in partner.items() if j == target]
        if not sources:
            lines.append(f"{dataset.name}: no class maps to {name}; it has no pixels here")
        elif len(sources) > 1:
            lines.append(f"{dataset.name}: {' + '.join(sources)} map to {name}")
    ignored = [dataset.classes.names[i] for i, j in partner.items() if j == IGNORE]
    if ignored:
        lines.append(f"{dataset.name}: ignored: {', '.join(ignored)}")
    return lines
