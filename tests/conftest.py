"""What all tests share."""

from __future__ import annotations

import os

import pytest
import torch

# One thread everywhere: the suite runs beside other things, and sums must not depend on how many.
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or leaves anything in the user's cache."""
    monkeypatch.setenv("TUTELAGE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
