"""Greedy iterative stratification: assignment of units to parts so that every part has its share of every class."""

# Legend: U units that stay together (images, or groups of images), C classes, P parts.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tutelage.data.dataset import Dataset
from tutelage.data.statistics import read_statistics
from tutelage.errors import DataError

_TRIED = 64  # candidates for a swap, per class that a part lacks


@dataclass(frozen=True)
class Units:
    """Units of assignment, sorted by name."""

    members: tuple[tuple[int, ...], ...]
    """Sample indices of each unit."""
    presence: np.ndarray
    """(U, C) number of images that contain each class."""
    pixels: np.ndarray
    """(U, C) pixels of each class, relative to the mean of the images that contain it."""

    def __len__(self) -> int:
        return len(self.members)

    @property
    def sizes(self) -> np.ndarray:
        """(U,) number of images of each unit."""
        return np.array([len(member) for member in self.members], np.int64)

    def samples(self, chosen: np.ndarray) -> list[int]:
        """Samples of the units in the mask ``chosen`` (U,), in the order of units."""
        return [index for place in np.flatnonzero(chosen) for index in self.members[place]]


def units_of(dataset: Dataset, group: bool, stratify: bool) -> Units:
    """Images, or with ``group`` groups of images, with their classes; a sample without a group is its own unit.

    Raises :class:`DataError` (``missing-groups``) if ``group`` is set and no sample has a group.
    """
    if group and not any(sample.group for sample in dataset.samples):
        raise DataError(
            "groups-missing", f"{dataset.name}: no image has a group", r"set data.<name>.group, e.g. '([^/]+)_\d+$'"
        )
    by_name: dict[tuple[bool, str], list[int]] = {}
    for index in sorted(range(len(dataset)), key=lambda i: dataset.samples[i].name):
        sample = dataset.samples[index]
        grouped = group and bool(sample.group)
        by_name.setdefault((grouped, sample.group if grouped else sample.name), []).append(index)
    members = tuple(tuple(by_name[name]) for name in sorted(by_name))
    masked = stratify and any(sample.label is not None for sample in dataset.samples)
    classes = read_statistics(dataset).classes if masked else np.zeros((len(dataset), 0), np.int64)
    shown = classes > 0
    usual = classes.sum(0) / np.maximum(shown.sum(0), 1)
    relative = classes / np.maximum(usual, 1)
    presence = np.array([shown[list(member)].sum(0) for member in members], np.float64)
    pixels = np.array([relative[list(member)].sum(0) for member in members], np.float64)
    return Units(members, presence.reshape(len(members), -1), pixels.reshape(len(members), -1))


def deal(units: Units, sizes: Sequence[int], real: int, entropy: int, held: np.ndarray | None = None) -> np.ndarray:
    """Assign every unit to a part: (U,) index of the part.

    ``sizes`` are numbers of images; the first ``real`` parts must contain all classes. ``held`` (U,) is the part to
    which a unit is fixed, or -1. A pure function of its arguments.
    """
    assignment = _Assignment(units, sizes, real, np.full(len(units), -1) if held is None else held.copy())
    order = np.random.Generator(np.random.Philox(key=entropy)).permutation(len(units))
    assignment.by_class(order)
    for unit in order:
        if assignment.part[unit] < 0:
            assignment.give(int(unit), assignment.roomiest(int(unit)))
    assignment.fill_empty()
    assignment.swap_in_missing_classes(order)
    return assignment.part


class _Assignment:
    """State of one assignment: the part of each unit, and the remaining demand of each part."""

    def __init__(self, units: Units, sizes: Sequence[int], real: int, held: np.ndarray) -> None:
        self.units = units
        self.real = real
        self.part = np.full(len(units), -1)
        self.fixed = held >= 0
        self.counts = units.sizes
        self.room = np.array(sizes, np.float64)
        share = self.room / max(self.room.sum(), 1)
        total = units.presence.sum(0)
        # Every part demands at least one image of each class, however small it is.
        floor = np.where((np.arange(len(sizes)) < real)[:, None] & (total > 0), 1.0, 0.0)
        self.image_demand = np.maximum(share[:, None] * total, floor)
        self.pixel_demand = np.maximum(share[:, None] * units.pixels.sum(0), floor)
        for unit in np.flatnonzero(self.fixed):
            self.give(int(unit), int(held[unit]))

    def give(self, unit: int, part: int) -> None:
        self.part[unit] = part
        self.room[part] -= self.counts[unit]
        self.image_demand[part] -= self.units.presence[unit]
        self.pixel_demand[part] -= self.units.pixels[unit]

    def open_parts(self, unit: int) -> np.ndarray:
        """Parts with room for a unit; if there is none, the part with the most room."""
        fitting = np.flatnonzero(self.room >= self.counts[unit])
        return fitting if len(fitting) else np.array([int(self.room.argmax())])

    def roomiest(self, unit: int) -> int:
        parts = self.open_parts(unit)
        return int(parts[self.room[parts].argmax()])

    def by_class(self, order: np.ndarray) -> None:
        """Assign the units of the rarest remaining class, then those of the next."""
        shown = self.units.presence > 0
        while True:
            left = shown[self.part < 0].sum(0)
            if not left.any():
                return
            rarest = int(np.where(left > 0, left, np.iinfo(np.int64).max).argmin())
            for unit in order:
                if self.part[unit] < 0 and shown[unit, rarest]:
                    parts = self.open_parts(int(unit))
                    demand = self.image_demand[parts, rarest] + self.pixel_demand[parts, rarest]
                    best = np.lexsort((self.room[parts], demand.round(9)))[-1]
                    self.give(int(unit), int(parts[best]))

    def fill_empty(self) -> None:
        """Give every empty real part the smallest unit of the part with the most units, if that has more than one."""
        for part in range(self.real):
            if (self.part == part).any():
                continue
            fullest = np.bincount(self.part, minlength=len(self.room)).argmax()
            movable = np.flatnonzero((self.part == fullest) & ~self.fixed)
            if len(movable) > 1:
                self.part[movable[self.counts[movable].argmin()]] = part

    def swap_in_missing_classes(self, order: np.ndarray) -> None:
        """Swap units until every real part contains every class, where no swap removes a class from another part."""
        shown = self.units.presence > 0
        rarest_first = np.argsort(shown.sum(0), kind="stable")
        for part in range(self.real):
            for class_ in rarest_first:
                if shown[:, class_].any() and not shown[self.part == part, class_].any():
                    self._swap_in(part, int(class_), order, shown)

    def _swap_in(self, part: int, class_: int, order: np.ndarray, shown: np.ndarray) -> None:
        mine = np.flatnonzero((self.part == part) & ~self.fixed)
        givers = [int(u) for u in order if shown[u, class_] and self.part[u] != part and not self.fixed[u]]
        if not len(mine):
            return
        here = shown[self.part == part].sum(0)
        for unit in givers[:_TRIED]:
            other = int(self.part[unit])
            # Exclude units with a class that no other unit of this part has and the new unit lacks.
            allowed = ~(shown[mine] & (here == 1) & ~shown[unit]).any(1)
            if other < self.real:
                there = shown[self.part == other].sum(0)
                allowed &= ~(shown[unit] & (there == 1) & ~shown[mine]).any(1)
            if allowed.any():
                candidates = mine[allowed]
                unlike = np.abs(self.units.presence[candidates] - self.units.presence[unit]).sum(1)
                best = np.lexsort((unlike, np.abs(self.counts[candidates] - self.counts[unit])))[0]
                self.part[unit], self.part[candidates[best]] = part, other
                return
