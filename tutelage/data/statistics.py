"""Mask statistics of a data set: every mask is read once, the results are cached by fingerprint.

Class weights, stratified splits and the data checks use them. A mask is processed by horizontal runs of equal pixels:
this yields its histogram without sorting the pixels, and the mean length of a run measures the object size of a class.
Masks that cannot be used are recorded, not raised, so that `tutelage check` lists all of them at once.
"""

# Legend: N samples, C classes.

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from tutelage.data.dataset import Dataset
from tutelage.data.fact_cache import Progress, cache_file, gather, load, store
from tutelage.data.images import image_size, opened, read_raw_mask
from tutelage.data.labels import IGNORE
from tutelage.errors import DataError

VERSION = 1
"""Increase it when the statistics or their storage change."""
_MOST_VALUES = 512  # stored per mask; a colour mask that was resampled or stored as JPEG has tens of thousands
_COLUMNS = ("offsets", "values", "counts", "classes", "runs", "rest", "sizes", "formats", "faults")

FaultKind = Literal["unreadable", "form", "unexpected", "size"]


@dataclass(frozen=True)
class MaskFault:
    """A mask that cannot be used."""

    index: int
    """Index of the sample."""
    kind: FaultKind
    """``unreadable``; ``form``: no class indices (colours, fractions); ``unexpected``: values without a class;
    ``size``: size differs from the image."""
    message: str


@dataclass(frozen=True)
class MaskStatistics:
    """Statistics of one mask; counts are pixels of the stored mask."""

    values: dict[int, int]
    """Raw value → pixels, most frequent first (at most 512 values)."""
    classes: np.ndarray
    """(C,) pixels of each train id."""
    runs: np.ndarray
    """(C,) horizontal runs of each train id; pixels / runs is the mean width of its objects."""
    ignored: int
    unexpected: int
    """Pixels with values that are not in the label map."""
    height: int
    width: int
    image_size: tuple[int, int]
    """Upright height and width of the image; zeros if it cannot be read."""
    format: str
    """Pillow's name of the file format."""


@dataclass(frozen=True)
class DatasetStatistics:
    """Statistics of all masks of a data set; a sample without a readable mask has zeros."""

    offsets: np.ndarray
    values: np.ndarray
    counts: np.ndarray
    classes: np.ndarray
    """(N, C) pixels of each train id in each mask."""
    runs: np.ndarray
    """(N, C) horizontal runs of each train id."""
    rest: np.ndarray
    """(N, 2) ignored pixels, and pixels with unexpected values."""
    sizes: np.ndarray
    """(N, 4) height and width of the mask, upright height and width of the image."""
    formats: tuple[str, ...]
    faults: tuple[MaskFault, ...]

    def __len__(self) -> int:
        return len(self.classes)

    def __getitem__(self, index: int) -> MaskStatistics:
        place = slice(self.offsets[index], self.offsets[index + 1])
        height, width, image_height, image_width = map(int, self.sizes[index])
        return MaskStatistics(
            {int(v): int(n) for v, n in zip(self.values[place], self.counts[place], strict=True)},
            self.classes[index],
            self.runs[index],
            int(self.rest[index, 0]),
            int(self.rest[index, 1]),
            height,
            width,
            (image_height, image_width),
            self.formats[index],
        )

    def __iter__(self) -> Iterator[MaskStatistics]:
        return (self[index] for index in range(len(self)))

    @property
    def read(self) -> np.ndarray:
        """(N,) bool: true for masks that could be read."""
        present: np.ndarray = self.sizes[:, 0] > 0
        return present

    def class_pixels(self) -> np.ndarray:
        """(C,) pixels of each class over all masks."""
        total: np.ndarray = self.classes.sum(0)
        return total

    def images_with_class(self) -> np.ndarray:
        """(C,) number of masks that contain each class."""
        return np.asarray(np.count_nonzero(self.classes, axis=0))

    def histogram(self) -> dict[int, int]:
        """Raw value → pixels over all masks, most frequent first."""
        total: Counter[int] = Counter()
        values, inverse = np.unique(self.values, return_inverse=True)
        sums = np.zeros(len(values), np.int64)
        np.add.at(sums, inverse, self.counts)
        total.update({int(value): int(count) for value, count in zip(values, sums, strict=True)})
        return dict(total.most_common())

    def of(self, kind: FaultKind) -> tuple[MaskFault, ...]:
        """The faults of one kind."""
        return tuple(fault for fault in self.faults if fault.kind == kind)


def read_statistics(
    dataset: Dataset, *, workers: int = 2, progress: Progress | None = None, cache: Path | None = None
) -> DatasetStatistics:
    """Compute the statistics of every mask, or load them from the cache if the data are unchanged.

    ``cache`` is the cache folder (default: the user's). Files that cannot be used are recorded in ``faults``; nothing
    is raised for them.
    """
    try:
        kept = cache_file("masks", VERSION, dataset.fingerprint, cache)
    except DataError:  # a missing file: no fingerprint, so nothing is cached
        kept = None
    stored = None if kept is None else load(kept, _COLUMNS)
    if stored is not None:
        found = _unpacked(dataset, stored)
        if found is not None:
            return found
    rows = gather(partial(_read, dataset), range(len(dataset)), workers, progress)
    found = _assembled(rows, len(dataset.classes))
    if kept is not None:
        store(kept, _packed(dataset, found))
    return found


@dataclass(frozen=True)
class _MaskRow:
    values: np.ndarray
    counts: np.ndarray
    classes: np.ndarray
    runs: np.ndarray
    rest: tuple[int, int]
    size: tuple[int, int, int, int]
    format: str
    faults: tuple[MaskFault, ...]


def _read(dataset: Dataset, index: int) -> _MaskRow:
    classes = len(dataset.classes)
    sample = dataset.samples[index]
    nothing = np.zeros(0, np.int64)
    if sample.label is None:
        return _MaskRow(nothing, nothing, *_zeros(classes), (0, 0), (0, 0, 0, 0), "", ())
    try:
        image = image_size(sample.image)
    except DataError:
        image = (0, 0)  # recorded by the image statistics
    try:
        raw = read_raw_mask(sample.label, dataset.label_map.encoding)
    except DataError as error:
        fault = MaskFault(index, "form" if _decodes(sample.label) else "unreadable", error.message)
        return _MaskRow(nothing, nothing, *_zeros(classes), (0, 0), (0, 0, *image), _format(sample.label), (fault,))
    values, lengths = row_runs(raw)
    labels = dataset.label_map.convert(values)
    pixels = np.bincount(labels, weights=lengths, minlength=256).astype(np.int64)
    unexpected = int(pixels[IGNORE - 1]) if dataset.label_map.others is None else 0
    distinct, counts = _histogram(values, lengths)
    faults = []
    if unexpected:
        strange = dataset.label_map.unexpected(distinct)
        found = [(int(v), int(n)) for v, n in zip(distinct, counts, strict=True) if int(v) in strange]
        listed = ", ".join(f"{dataset.label_map.name_of(v)} ({n} pixels)" for v, n in found[:5])
        more = f" and {len(found) - 5} more values" if len(found) > 5 else ""
        faults.append(MaskFault(index, "unexpected", f"{sample.label}: {listed}{more}"))
    if image != (0, 0) and raw.shape != image and not dataset.resize_labels:
        sizes = f"mask is {raw.shape[1]}x{raw.shape[0]}, image is {image[1]}x{image[0]}"
        faults.append(MaskFault(index, "size", f"{sample.label}: {sizes}"))
    return _MaskRow(
        distinct,
        counts,
        pixels[:classes],
        np.bincount(labels, minlength=256)[:classes],
        (int(pixels[IGNORE]), unexpected),
        (raw.shape[0], raw.shape[1], *image),
        _format(sample.label),
        tuple(faults),
    )


def _zeros(classes: int) -> tuple[np.ndarray, np.ndarray]:
    return np.zeros(classes, np.int64), np.zeros(classes, np.int64)


def row_runs(values_HW: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values and lengths of all horizontal runs of equal pixels, row by row."""
    flat = values_HW.ravel()
    starts = np.empty(flat.shape, dtype=bool)
    starts[:1] = True
    np.not_equal(flat[1:], flat[:-1], out=starts[1:])
    starts[:: max(values_HW.shape[1], 1)] = True
    places = np.flatnonzero(starts)
    return flat[places], np.diff(places, append=flat.size)


def _histogram(values: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct values and their pixel counts, most frequent first, at most 512."""
    distinct, inverse = np.unique(values, return_inverse=True)
    counts = np.bincount(inverse, weights=lengths, minlength=len(distinct)).astype(np.int64)
    order = np.lexsort((distinct, -counts))[:_MOST_VALUES]
    return distinct[order].astype(np.int64), counts[order]


def _decodes(path: Path) -> bool:
    """Whether Pillow can decode a file; if so, the error concerns its form."""
    try:
        with opened(path, "mask") as image:
            image.load()
    except DataError:
        return False
    return True


def _format(path: Path) -> str:
    try:
        with opened(path, "mask") as image:
            return image.format or ""
    except DataError:
        return ""


def _assembled(rows: list[_MaskRow], classes: int) -> DatasetStatistics:
    lengths = [len(row.values) for row in rows]
    nothing = [np.zeros(0, np.int64)]
    return DatasetStatistics(
        offsets=np.concatenate(([0], np.cumsum(lengths))).astype(np.int64),
        values=np.concatenate([row.values for row in rows] or nothing),
        counts=np.concatenate([row.counts for row in rows] or nothing),
        classes=np.array([row.classes for row in rows], np.int64).reshape(-1, classes),
        runs=np.array([row.runs for row in rows], np.int64).reshape(-1, classes),
        rest=np.array([row.rest for row in rows], np.int64).reshape(-1, 2),
        sizes=np.array([row.size for row in rows], np.int64).reshape(-1, 4),
        formats=tuple(row.format for row in rows),
        faults=tuple(fault for row in rows for fault in row.faults),
    )


def _packed(dataset: Dataset, found: DatasetStatistics) -> dict[str, np.ndarray]:
    """The columns to store. Paths become a placeholder: equal data have equal fingerprints in any folder."""
    faults = []
    for fault in found.faults:
        path = str(dataset.samples[fault.index].label)
        faults.append([fault.index, fault.kind, fault.message.replace(path, "\x1f")])
    arrays = {name: getattr(found, name) for name in _COLUMNS[:-2]}
    arrays["formats"] = np.frombuffer(json.dumps(found.formats).encode(), np.uint8)
    arrays["faults"] = np.frombuffer(json.dumps(faults).encode(), np.uint8)
    return arrays


def _unpacked(dataset: Dataset, arrays: dict[str, np.ndarray]) -> DatasetStatistics | None:
    """Statistics from stored columns; ``None`` if they do not fit the data set."""
    if arrays["classes"].shape != (len(dataset), len(dataset.classes)):
        return None
    columns = {name: arrays[name] for name in _COLUMNS[:-2]}
    try:
        formats = tuple(json.loads(arrays["formats"].tobytes()))
        faults = tuple(
            MaskFault(index, kind, message.replace("\x1f", str(dataset.samples[index].label)))
            for index, kind, message in json.loads(arrays["faults"].tobytes())
        )
    except (ValueError, IndexError):
        return None
    return DatasetStatistics(**columns, formats=formats, faults=faults)
