"""A dataset: which images, which masks, which classes. Finding files is all it does; reading is done by position.

An unlabelled or target dataset is opened by :meth:`Dataset.without_labels`, which forgets the mask paths even
where a list names them: what is not there cannot be read by mistake.
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
    """Class names by train id, with a colour (RGB) for each."""

    names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...] = ()

    def __post_init__(self) -> None:
        if not self.palette:
            object.__setattr__(self, "palette", tuple(distinct_colour(i) for i in range(len(self.names))))
        if len(self.palette) != len(self.names):
            raise DataError(
                f"{len(self.names)} class names but {len(self.palette)} palette colours", "give one colour per class"
            )
        if not 1 <= len(self.names) <= 254:
            raise DataError(f"{len(self.names)} classes", "a data set has 1 to 254 classes (255 means ignore)")
        alike = [plain(name) for name in self.names]  # lists of classes are matched by plain names
        twice = sorted({name for name in self.names if alike.count(plain(name)) > 1})
        if twice:
            raise DataError(f"class name given twice: {', '.join(twice)}", "give every class its own name")

    def __len__(self) -> int:
        return len(self.names)


def distinct_colour(index: int) -> tuple[int, int, int]:
    """The colour that VOC gives to class ``index``: its bits spread over the three channels."""
    red = green = blue = 0
    for bit in range(8):
        red |= ((index >> 0) & 1) << (7 - bit)
        green |= ((index >> 1) & 1) << (7 - bit)
        blue |= ((index >> 2) & 1) << (7 - bit)
        index >>= 3
    return red, green, blue


@dataclass(frozen=True)
class Sample:
    """One image with its mask, if it has one; ``group`` is the sequence, tile or patient that it belongs to."""

    name: str
    image: Path
    label: Path | None = None
    group: str = ""
    confidence: Path | None = None
    """8-bit confidence map of a pseudo label."""
    weight: Path | None = None
    """8-bit map of how much each labelled pixel counts."""
    lost: str = ""
    """Where its mask should be, if it is not there. Unlabelled images need none, so that this is no fault yet."""


@dataclass(frozen=True)
class Dataset:
    """Images, masks and classes under one name. Cheap to make, picklable, nothing is open."""

    name: str
    samples: tuple[Sample, ...]
    classes: Classes
    label_map: LabelMap
    resize_labels: bool = False
    """Whether a mask of another size than its image is brought to the image's (GTA5 has a few); else it is a fault."""

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def labeled(self) -> bool:
        """Whether every sample has a mask."""
        return bool(self.samples) and all(sample.label is not None for sample in self.samples)

    def image(self, index: int) -> np.ndarray:
        """Image ``index`` as (H, W, 3) uint8 RGB. Raises :class:`DataError` when it cannot be read."""
        return read_image(self.samples[index].image)

    def label(self, index: int) -> np.ndarray:
        """Mask ``index`` as (H, W) uint8 train ids, 255 = ignore. Raises :class:`DataError`."""
        path = self.samples[index].label
        if path is None:
            lost = self.samples[index].lost
            raise DataError(
                f"{self.name}: {self.samples[index].image} has no mask" + (f" ({lost})" if lost else ""),
                "use it as unlabelled data",
            )
        label = self.label_map.read(path)
        return resized(label, image_size(self.samples[index].image)) if self.resize_labels else label

    def without_labels(self) -> Dataset:
        """The same images, with no trace of their masks."""
        bare = (replace(s, label=None, confidence=None, weight=None, lost="") for s in self.samples)
        return replace(self, samples=tuple(bare))

    def require_images(self, what: str) -> Dataset:
        """This data set; raises :class:`DataError`, naming ``what``, where it has no images."""
        if not self.samples:
            raise DataError("no-images", f"data set {what!r} has no images", "check its list or folder")
        return self

    def require_labels(self, what: str) -> None:
        """Raise :class:`DataError`, naming ``what`` reads masks and the first that is not there, unless all are."""
        if self.labeled:
            return
        if not self.samples:
            raise DataError(f"{what}: data set {self.name!r} has no images", "check its list or folder")
        without = [sample for sample in self.samples if sample.label is None]
        lost = [sample.lost for sample in without if sample.lost]
        if lost:
            raise DataError(
                f"{what}: {len(lost)} of {len(self)} masks are not there; the first: {lost[0]}",
                "check the list and the root folder of the data; only images that are used without labels need no "
                "masks",
            )
        raise DataError(
            f"{what}: {len(without)} of {len(self)} images have no mask; the first: {without[0].image}",
            "write the mask behind the image in the list, or take the line out; or use a method for unlabelled images",
        )

    def subset(self, indices: Sequence[int], name: str | None = None) -> Dataset:
        """The samples at ``indices``, in that order."""
        return replace(self, name=name or self.name, samples=tuple(self.samples[i] for i in indices))

    def bridged(self, classes: Classes, mapping: Mapping[str, str | None]) -> Dataset:
        """The same data in another class list; see :func:`bridge`."""
        return replace(self, classes=classes, label_map=compose(self.label_map, bridge(self, classes, mapping)))

    @cached_property
    def fingerprint(self) -> str:
        """A hash of file names, sizes, contents and label map: equal data, equal fingerprint, wherever it lies.

        Of every file its size and its first and last 64 KiB are read: all of a mask or a small photograph, and a
        sample of a large one, so that a big data set is fingerprinted in seconds.
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
        raise DataError(f"file of the data set cannot be read: {path} ({error.strerror})", "check the path") from None
    return hashlib.blake2b(content + str(size).encode(), digest_size=16).digest()


def bridge(dataset: Dataset, classes: Classes, mapping: Mapping[str, str | None]) -> dict[int, int]:
    """Train ids of ``dataset`` to those of ``classes``: by ``mapping`` where it names a class, else by equal name.

    ``mapping`` sends a class name to another list's (several may merge) or to ``None`` (ignored). Raises
    :class:`DataError` for names that exist on neither side and for classes that have no partner and no mapping.
    """
    own = {plain(name): i for i, name in enumerate(dataset.classes.names)}
    other = {plain(name): i for i, name in enumerate(classes.names)}
    for theirs, ours in mapping.items():
        if plain(theirs) not in own:
            raise DataError(
                f"{dataset.name}: bridge names class {theirs!r}, which it has not", "known: " + ", ".join(own)
            )
        if ours is not None and plain(ours) not in other:
            raise DataError(
                f"{dataset.name}: bridge leads to class {ours!r}, which the task has not",
                f"the task has: {', '.join(other)}",
            )
    chosen = {plain(theirs): None if ours is None else plain(ours) for theirs, ours in mapping.items()}
    lost = [name for name in dataset.classes.names if plain(name) not in chosen and plain(name) not in other]
    if lost:
        raise DataError(
            f"{dataset.name}: these classes have no partner in the task's list: {', '.join(lost)}",
            f"say under data.<name>.bridge what they become, e.g. {{{lost[0]}: null}} to ignore it",
        )
    result = {}
    for name, index in own.items():
        partner = chosen.get(name, name)
        result[index] = IGNORE if partner is None else other[partner]
    return result


def inner_path(name: str) -> str:
    """A sample's name as a relative path that stays inside of any folder.

    Images outside of the root are named by ``..`` or from the top of the disk; written as they are, files that are
    called after them would lie beside, or replace, the user's own.
    """
    path = Path(name)
    parts = ["_up" if part == ".." else part for part in path.parts if part != path.anchor]
    return Path("_top" if path.anchor else "", *parts).as_posix()


def plain(name: str) -> str:
    """A class name without the differences that mean nothing: case, blanks, hyphens, underscores."""
    return "".join(letter for letter in name.lower() if letter not in " _-")


def describe_bridge(dataset: Dataset, classes: Classes, mapping: Mapping[str, str | None]) -> list[str]:
    """What a bridge merges, ignores and leaves without source, a line each; empty where the lists are equal."""
    if dataset.classes.names == classes.names and not mapping:
        return []
    partner = bridge(dataset, classes, mapping)
    lines = []
    for target, name in enumerate(classes.names):
        sources = [dataset.classes.names[i] for i, j in partner.items() if j == target]
        if not sources:
            lines.append(f"{dataset.name}: no class becomes {name}: it will have no pixels here")
        elif len(sources) > 1:
            lines.append(f"{dataset.name}: {' + '.join(sources)} become {name}")
    ignored = [dataset.classes.names[i] for i, j in partner.items() if j == IGNORE]
    if ignored:
        lines.append(f"{dataset.name}: ignored: {', '.join(ignored)}")
    return lines
