"""Figures measured while training: loss terms, images per second, share of time spent waiting for data, memory."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def peak_memory(device: torch.device) -> float:
    """Largest memory so far in MiB: of the device on a GPU, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        # Not `getrusage`: its peak starts at that of the process that started this one.
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return int(status.partition("VmHWM:")[2].split()[0]) / 2**10
    except (OSError, ValueError, IndexError):
        pass
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


class Meter:
    """Collects figures between two lines of the log, without synchronising with the device in between."""

    def __init__(self, device: torch.device, images_per_step: int, step: int, total: int) -> None:
        self.device = device
        self.images_per_step = images_per_step
        self.total = total
        self._step = step
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._waited = self._elsewhere = 0.0
        self._since = time.perf_counter()

    def add(self, terms: Mapping[str, Tensor]) -> None:
        """Add one pass's loss terms."""
        for name, term in terms.items():
            value = term.detach()
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._counts[name] = self._counts.get(name, 0) + 1

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Measure time spent waiting for data."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Measure time that is not training (evaluation, checkpoints), to exclude it from the rate."""
        start = time.perf_counter()
        yield
        self._elsewhere += time.perf_counter() - start

    def record(self, step: int, rates: Mapping[str, float]) -> dict[str, Any]:
        """The figures since the last record; restart counting."""
        terms = {name: round(float(value) / self._counts[name], 6) for name, value in self._sums.items()}
        now = time.perf_counter()
        spent = max(now - self._since - self._elsewhere, 1e-9)
        steps = step - self._step
        result = {
            "step": step,
            "steps": self.total,
            "terms": terms,
            "rate": {name: round(rate, 6) for name, rate in rates.items()},
            "images_per_s": round(self.images_per_step * steps / spent, 2),
            "data_wait": round(self._waited / spent, 4),
            "spent_s": round(spent, 3),
            "memory_mib": round(peak_memory(self.device), 1),
            "eta_s": round((self.total - step) * spent / max(steps, 1), 1),
        }
        self._step, self._since = step, now
        self._sums, self._counts = {}, {}
        self._waited = self._elsewhere = 0.0
        return result
