"""How masks say which class a pixel is: by index, by a palette, by colours, by 0 and 255; and in which values."""

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
_LOOKED_AT = 1000
_MOST = 4096  # distinct values remembered of one mask
_SMEARED = 0.001  # share of all pixels below which a value of a lossy mask is taken for a smear


@dataclass(frozen=True)
class Encoding:
    """What was seen in the masks."""

    kind: Literal["index", "rgb"]
    values: dict[int, int]
    """Raw value (or packed colour) → pixels, most frequent first."""
    palette: dict[int, Colour]
    """Colours of the values, where the masks are palette files."""
    deep: bool
    """Whether the files hold 16 bits."""
    lossy: bool
    """Whether a file is a JPEG, or there are more values than classes can explain."""
    looked_at: int
    faults: tuple[str, ...]
    """What could not be read."""

    @property
    def binary(self) -> bool:
        """Whether 0 and 255 are all there is, but for smears."""
        return self.kind == "index" and set(self.main()) == {0, 255}

    def main(self) -> dict[int, int]:
        """The values without smears, in ascending order."""
        total = sum(self.values.values())
        kept = {v: n for v, n in self.values.items() if not self.lossy or n >= _SMEARED * total}
        if self.lossy and self.kind == "index" and kept:
            # Smears of a large area can be frequent: a value is one when a far more frequent one is close by.
            kept = {v: n for v, n in kept.items() if not any(abs(v - w) <= 8 and m > 4 * n for w, m in kept.items())}
        return dict(sorted(kept.items()))

    def share(self, value: int) -> float:
        """The share of all pixels that have a value."""
        return self.values.get(value, 0) / max(sum(self.values.values()), 1)


def look_at_masks(paths: Sequence[Path], workers: int = 2) -> Encoding:
    """Read masks (evenly chosen, where there are more than a thousand) and say how they are written."""
    places = np.linspace(0, len(paths) - 1, min(_LOOKED_AT, len(paths))).astype(int)
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
        painted = error.message.startswith("mask holds colours")
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
