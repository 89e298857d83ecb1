"""A sample of rows of each class from a stream, of bounded size, that depends on the rows alone.

Every row has a key: a number mixed from (seed, class, the row's number). A class keeps the rows with the smallest keys,
so that the sample is the same in whatever batches, in whatever order and on however many processes the rows come, as
long as their numbers stay the same. Each set of rows of one size is as likely as any other. This stands for the
published random thinning at fixed rates and the first file of a million rows, which depend on the order of loading.

Legend: K classes, N rows offered, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tutelage.data import draws
from tutelage.engine import collectives
from tutelage.errors import TutelageError
from tutelage.prototypes.storage import load_tensors, save_tensors

KIND = "samples of features"
_LARGEST = torch.iinfo(torch.int64).max
_EARLY = 4096
"""Rows, or a quarter of the capacity, that a class may hold beyond it before the largest keys are dropped."""


def _signed(value: int) -> int:
    """The int64 with the bits of a number below 2^64."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


_STEP, _FIRST, _SECOND = (_signed(n) for n in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def keys(base: Tensor, number: Tensor) -> Tensor:
    """int64 keys of row numbers: SplitMix64's stream from ``base``. Distinct numbers have distinct keys."""
    value = base + number * _STEP  # int64 wraps
    for shift, factor in ((30, _FIRST), (27, _SECOND)):
        value = (value ^ _shifted(value, shift)) * factor
    return value ^ _shifted(value, 31)


def _shifted(value: Tensor, by: int) -> Tensor:
    """A shift to the right that fills in zeros; torch's repeats the sign."""
    return (value >> by) & ((1 << (64 - by)) - 1)


@dataclass
class _Kept:
    """Keys and rows of one class, unordered, the first ``size`` of the allocated ones; and how many were offered."""

    keys: Tensor
    rows: Tensor
    size: int = 0
    offered: int = 0


class Reservoir:
    """At most ``capacity`` rows of each class, on the CPU; a class without rows takes no memory."""

    def __init__(
        self, classes: int, channels: int, capacity: int, *, seed: int, dtype: torch.dtype = torch.float32
    ) -> None:
        if capacity < 1:
            raise ValueError(f"capacity must be above 0, got {capacity}")
        self.classes, self.channels, self.capacity, self.seed, self.dtype = classes, channels, capacity, seed, dtype
        self.offered = 0
        """Rows offered so far, of any class or none: the number of the next one, unless numbers are given."""
        self._base_K = torch.tensor([_signed(draws.key(seed, "reservoir", number)) for number in range(classes)])
        self._bound_K = torch.full((classes,), _LARGEST)
        self._kept = [self._nothing() for _ in range(classes)]

    def add(self, rows_NC: Tensor, label_N: Tensor, number_N: Tensor | None = None) -> None:
        """Offer rows (N, C) with their classes (N); a row without a class (255) counts, but is not kept.

        ``number_N``: int64 numbers that name the rows in the whole data set (such as image x positions + position), no
        two alike; needed where rows come in no fixed order or over several processes. By default they are counted in
        the order in which they are offered. ValueError where shapes do not fit.
        """
        if rows_NC.shape != (label_N.shape[0], self.channels):
            raise ValueError(f"rows {tuple(rows_NC.shape)} for {label_N.shape[0]} labels and {self.channels} channels")
        device = rows_NC.device
        if number_N is None:
            number_N = torch.arange(self.offered, self.offered + rows_NC.shape[0], device=device)
        self.offered += rows_NC.shape[0]
        label_N = label_N.to(device).long()
        valid_N = (label_N >= 0) & (label_N < self.classes)
        safe_N = label_N.where(valid_N, 0)
        key_N = keys(self._base_K.to(device)[safe_N], number_N.to(device))
        # Nearly all rows end here, once the samples are full: only their keys were compared.
        wanted = (valid_N & (key_N <= self._bound_K.to(device)[safe_N])).nonzero()[:, 0]
        offered = torch.bincount(label_N[valid_N], minlength=self.classes).tolist()
        label, key = label_N[wanted].cpu(), key_N[wanted].cpu()
        rows = rows_NC.detach()[wanted].to("cpu", self.dtype)
        order = label.argsort(stable=True)
        parts = torch.bincount(label, minlength=self.classes).tolist()
        for number, part in enumerate(torch.split(order, parts)):
            self._kept[number].offered += offered[number]
            if part.numel():
                self._take(number, key[part], rows[part])

    def rows(self, number: int) -> Tensor:
        """The sample of class ``number``: (n, C), n <= capacity, in the order of keys, which is random.

        So the first rows are a random sample as well.
        """
        self._shrink(number)
        kept = self._kept[number]
        return kept.rows[: kept.size]

    def counts(self) -> list[int]:
        """How many rows of each class were offered."""
        return [kept.offered for kept in self._kept]

    def over_ranks(self, device: torch.device | None = None) -> None:
        """Make every process hold the sample of all processes' rows; ``add`` must have been given numbers.

        Keys travel first, rows only if they stay. ``device``: where the process group's tensors lie (the CPU for
        gloo). All processes must call it, once, after the last ``add``. ValueError where two gave one number.
        """
        if not collectives.active():
            return
        device = device or torch.device("cpu")
        own = torch.tensor([*self.counts(), self.offered], device=device)
        *offered, self.offered = collectives.sum_over_ranks(own).tolist()
        for number in range(self.classes):
            self._shrink(number)
            kept = self._kept[number]
            all_keys = collectives.gather_rows(kept.keys[: kept.size].to(device)).sort().values
            if all_keys.numel() > self.capacity:
                stay = int((kept.keys[: kept.size] <= all_keys[self.capacity - 1].cpu()).sum())
            else:
                stay = kept.size
            fresh = self._nothing()
            fresh.offered = offered[number]
            fresh.keys = collectives.gather_rows(kept.keys[:stay].to(device)).cpu()
            fresh.rows = collectives.gather_rows(kept.rows[:stay].to(device)).cpu()
            fresh.size = fresh.keys.shape[0]
            self._kept[number] = fresh
            self._shrink(number)
            self._check_distinct(number)

    def save(self, path: Path, facts: dict[str, Any] | None = None) -> None:
        """Write all samples to a safetensors file, atomically, with a checksum and JSON-able ``facts``."""
        tensors = {}
        for number in range(self.classes):
            rows = self.rows(number)
            if rows.shape[0]:
                tensors[f"rows.{number}"] = rows
                tensors[f"keys.{number}"] = self._kept[number].keys[: rows.shape[0]]
        about = {
            "classes": self.classes,
            "channels": self.channels,
            "capacity": self.capacity,
            "seed": self.seed,
            "offered": self.offered,
            "counts": self.counts(),
            "dtype": str(self.dtype).removeprefix("torch."),
            "facts": facts or {},
        }
        save_tensors(path, KIND, tensors, about)

    @staticmethod
    def load(path: Path) -> tuple[Reservoir, dict[str, Any]]:
        """The samples in a file, to which rows may still be added, and the facts beside them.

        TutelageError for a file that is missing, damaged, of another kind or from a newer tutelage.
        """
        tensors, about = load_tensors(path, KIND)
        try:
            result = Reservoir(
                about["classes"],
                about["channels"],
                about["capacity"],
                seed=about["seed"],
                dtype=getattr(torch, about["dtype"]),
            )
            result.offered = about["offered"]
            for number, offered in enumerate(about["counts"]):
                result._kept[number].offered = offered
                if f"rows.{number}" in tensors:
                    result._take(number, tensors[f"keys.{number}"], tensors[f"rows.{number}"])
                    result._shrink(number)
        except (KeyError, AttributeError) as error:
            raise TutelageError(
                "damaged-file", f"the description inside {path} is unreadable ({error})", "run its stage again"
            ) from error
        return result, dict(about["facts"])

    def _nothing(self) -> _Kept:
        return _Kept(torch.empty(0, dtype=torch.int64), torch.empty(0, self.channels, dtype=self.dtype))

    def _take(self, number: int, key: Tensor, rows: Tensor) -> None:
        """Append rows; the surplus is dropped now and then, not each time."""
        kept = self._kept[number]
        surplus = max(_EARLY, self.capacity // 4)
        most = self.capacity + surplus
        for start in range(0, key.shape[0], surplus):
            part, own = key[start : start + surplus], rows[start : start + surplus]
            if kept.size + part.shape[0] > most:
                self._shrink(number)
            needed = kept.size + part.shape[0]
            if needed > kept.keys.shape[0]:
                room = max(needed, min(2 * kept.keys.shape[0], most))
                kept.keys = torch.cat([kept.keys[: kept.size], torch.empty(room - kept.size, dtype=torch.int64)])
                kept.rows = torch.cat([kept.rows[: kept.size], kept.rows.new_empty(room - kept.size, self.channels)])
            kept.keys[kept.size : needed] = part
            kept.rows[kept.size : needed] = own
            kept.size = needed

    def _shrink(self, number: int) -> None:
        """Put the class's rows in the order of their keys and drop those beyond the capacity."""
        kept = self._kept[number]
        order = kept.keys[: kept.size].argsort()[: self.capacity]
        kept.keys, kept.rows, kept.size = kept.keys[order], kept.rows[order], order.shape[0]
        if kept.size == self.capacity:
            self._bound_K[number] = kept.keys[-1]

    def _check_distinct(self, number: int) -> None:
        kept = self._kept[number]
        if bool((kept.keys[1 : kept.size] == kept.keys[: kept.size - 1]).any()):
            raise ValueError("two samples hold a row of the same number: give add() numbers of the whole data set")
