"""Conversion of stored mask values to train ids: one look-up table, one gather per mask.

Inside the library a label is uint8: train ids 0..C-1, and 255 = ignored. Other encodings (Cityscapes' raw ids, ADE20K's
shifted ids, colours, 16-bit ids) are converted here and occur nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from tutelage.data.images import MaskEncoding, read_raw_mask
from tutelage.errors import DataError

IGNORE = 255
_UNEXPECTED = 254  # marks values that are not in the table; hence at most 254 classes
_SIZES: dict[MaskEncoding, int] = {"rgb": 1 << 24, "index": 1 << 16, "first16": 1 << 16}


def pack(colour: Sequence[int]) -> int:
    """Pack an RGB colour into one 24-bit integer (exact, unlike weighted sums of the channels)."""
    red, green, blue = colour
    return (int(red) << 16) | (int(green) << 8) | int(blue)


def unpack(value: int) -> tuple[int, int, int]:
    """RGB colour of a packed 24-bit integer."""
    return (value >> 16) & 255, (value >> 8) & 255, value & 255


@dataclass(frozen=True)
class LabelMap:
    """Map from raw mask values to train ids.

    ``table`` maps a raw value (an index, or a packed colour) to a train id or :data:`IGNORE`; ``others`` is the
    train id of every value that is not in the table, or ``None`` to raise an error for such a value. Raises
    :class:`DataError` (``mask-value-range``) for a value that a mask cannot store.
    """

    table: Mapping[int, int]
    encoding: MaskEncoding = "index"
    others: int | None = None

    def __post_init__(self) -> None:
        beyond = [value for value in self.table if value >= _SIZES[self.encoding]]
        if beyond:
            raise DataError(
                "invalid-value",
                f"mask values must be in [0, {_SIZES[self.encoding] - 1}], got {beyond[0]}",
                "fix data.<name>.ids or data.<name>.ignore",
            )

    @property
    def identity(self) -> str:
        """The map as text; equal maps have equal text."""
        return repr((sorted(self.table.items()), self.encoding, self.others))

    @cached_property
    def _lookup(self) -> np.ndarray:
        lookup = np.full(_SIZES[self.encoding], _UNEXPECTED if self.others is None else self.others, dtype=np.uint8)
        lookup[np.fromiter(self.table.keys(), dtype=np.int64)] = np.fromiter(self.table.values(), dtype=np.uint8)
        return lookup

    def convert(self, raw: np.ndarray) -> np.ndarray:
        """Convert raw values (H, W) to train ids (H, W) uint8; values that are not in the map become 254."""
        if raw.dtype != np.uint8 and (raw.min(initial=0) < 0 or raw.max(initial=0) >= len(self._lookup)):
            raw = np.where((raw < 0) | (raw >= len(self._lookup)), len(self._lookup) - 1, raw)
        return np.take(self._lookup, raw)

    def unexpected(self, raw: np.ndarray) -> dict[int, int]:
        """Raw values of a mask that are not in the map, with their pixel counts."""
        values, counts = np.unique(raw[self.convert(raw) == _UNEXPECTED], return_counts=True)
        return {int(value): int(count) for value, count in zip(values, counts, strict=True)}

    def name_of(self, value: int) -> str:
        """A raw value as text: a colour as R,G,B, an index as a number."""
        return ",".join(map(str, unpack(value))) if self.encoding == "rgb" else str(value)

    def read(self, path: Path) -> np.ndarray:
        """Read a mask file as train ids (H, W) uint8.

        Raises :class:`DataError`: ``mask-value`` for a value that is not in the map, with its pixel count, and the
        errors of :func:`tutelage.data.images.read_raw_mask`.
        """
        raw = read_raw_mask(path, self.encoding)
        label = self.convert(raw)
        if self.others is None and (label == _UNEXPECTED).any():
            found = ", ".join(f"{self.name_of(v)} ({n} pixels)" for v, n in list(self.unexpected(raw).items())[:5])
            known = ", ".join(self.name_of(value) for value in list(self.table)[:12])
            raise DataError(
                "mask-value",
                f"{path}: mask values without a class: {found}; expected {known}",
                "add the values to data.<name>.ids or data.<name>.ignore, or set data.<name>.others: ignore",
            )
        return label


def resized(label: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize a label (H, W) to ``size`` (height, width) by nearest neighbour."""
    if label.shape == size:
        return label
    rows, columns = (
        (2 * np.arange(length) + 1) * stored // (2 * length) for length, stored in zip(size, label.shape, strict=True)
    )
    result: np.ndarray = np.take(np.take(label, rows, axis=0), columns, axis=1)
    return result


def identity(classes: int, ignore: Sequence[int] = (IGNORE,)) -> LabelMap:
    """Label map in which value i is class i and the values in ``ignore`` are ignored; any other value is an error."""
    return LabelMap({**{i: i for i in range(classes)}, **dict.fromkeys(ignore, IGNORE)})


def compose(label_map: LabelMap, bridge: Mapping[int, int]) -> LabelMap:
    """``label_map`` followed by ``bridge``, from its train ids to those of another class list (255: ignored)."""

    def moved(train_id: int) -> int:
        return IGNORE if train_id == IGNORE else bridge[train_id]

    others = label_map.others if label_map.others is None else moved(label_map.others)
    return LabelMap({raw: moved(i) for raw, i in label_map.table.items()}, label_map.encoding, others)
