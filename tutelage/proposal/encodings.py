"""Encoding of masks (index, palette, colours, 0 and 255) and the values that occur in them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from tutelage.data.fact_cache import gather
from tutelage.data.images import opened, read_raw_mask
from tutelage.data.labels import unpack
from tutelage.data.statistics import row_runs
from tutelage.errors import DataError

Colour = tuple[int, int, int]
_MOST_FILES = 1000
_MOST = 4096  # distinct values stored per mask
_SMEARED = 0.001  # share of all pixels below which a value of a lossy mask counts as an artefact


@dataclass(frozen=True)
class Encoding:
    """Encoding and values of a set of masks."""

    kind: Literal["index", "rgb"]
    values: dict[int, int]
    """Raw value (or packed colour) → pixels, most frequent first."""
    palette: dict[int, Colour]
    """Colours of the values, for palette files."""
    deep: bool
    """Whether the files store 16 bits."""
    lossy: bool
    """Whether a file is a JPEG, or most of many values are rare."""
    looked_at: int
    """Number of masks read."""
    faults: tuple[str, ...]
    """Messages of masks that could not be read."""

    @property
    def binary(self) -> bool:
        """Whether 0 and 255 are the only values, apart from compression artefacts."""
        return self.kind == "index" and set(self.main()) == {0, 255}

    def main(self) -> dict[int, int]:
        """Values without compression artefacts, in ascending order."""
        total = sum(self.values.values())
        kept = {v: n for v, n in self.values.items() if not self.lossy or n >= _SMEARED * total}
        if self.lossy and self.kind == "index" and kept:
            # Artefacts of a large area can be frequent: drop a value that is close to a far more frequent one.
            kept = {v: n for v, n in kept.items() if not any(abs(v - w) <= 8 and m > 4 * n for w, m in kept.items())}
        return dict(sorted(kept.items()))

    def share(self, value: int) -> float:
        """Share of a value among all pixels."""
        return self.values.get(value, 0) / max(sum(self.values.values()), 1)


def scan_masks(paths: Sequence[Path], workers: int = 2) -> Encoding:
    """Read masks (1000 evenly spaced ones if there are more) and determine their encoding."""
    places = np.linspace(0, len(paths) - 1, min(_MOST_FILES, len(paths))).astype(int)
    chosen = [paths[place] for place in places]
    seen = gather(_by_index, chosen, workers)
    painted = any(one.painted for one in seen)
    if painted:
        seen = gather(_by_colour, chosen, workers)
    values: Counter[int] = Counter()
    for one in seen:
        values.update(one.values)
    jpeg = any(one.format in ("JPEG", "MPO") for one in seen)
    many = len(values) > (256 if painted else 64) and _mostly_rare(values)
    return Encoding(
        "rgb" if painted else "index",
        dict(values.most_common()),
        {} if painted else next((one.palette for one in seen if one.palette), {}),
        any(one.deep for one in seen),
        jpeg or many,
        len(chosen),
        tuple(one.fault for one in seen if one.fault),
    )


def _mostly_rare(values: Counter[int]) -> bool:
    total = sum(values.values())
    return sum(count < _SMEARED * total for count in values.values()) > len(values) / 2


@dataclass(frozen=True)
class _MaskValues:
    values: dict[int, int]
    format: str = ""
    palette: dict[int, Colour] | None = None
    painted: bool = False
    deep: bool = False
    fault: str = ""


def _by_index(path: Path) -> _MaskValues:
    try:
        with opened(path, "mask") as image:
            format_, mode = image.format or "", image.mode
            colours = image.getpalette() if mode == "P" else None
        raw = read_raw_mask(path)
    except DataError as error:
        painted = error.code == "mask-colours"
        return _MaskValues({}, painted=painted, fault="" if painted else error.message)
    counts = _counted(raw)
    palette = None
    if colours is not None:
        palette = {
            v: (colours[3 * v], colours[3 * v + 1], colours[3 * v + 2]) for v in counts if 3 * v + 2 < len(colours)
        }
    return _MaskValues(counts, format_, palette, deep=mode.startswith("I"))


def _by_colour(path: Path) -> _MaskValues:
    try:
        with opened(path, "mask") as image:
            format_ = image.format or ""
        return _MaskValues(_counted(read_raw_mask(path, "rgb")), format_)
    except DataError as error:
        return _MaskValues({}, fault=error.message)


def _counted(raw: np.ndarray) -> dict[int, int]:
    values, lengths = row_runs(raw)
    distinct, inverse = np.unique(values, return_inverse=True)
    counts = np.bincount(inverse, weights=lengths).astype(np.int64)
    order = np.argsort(-counts, kind="stable")[:_MOST]
    return {int(distinct[place]): int(counts[place]) for place in order}


def colour_text(value: int) -> str:
    """A packed colour as `r,g,b`."""
    return ",".join(map(str, unpack(value)))
