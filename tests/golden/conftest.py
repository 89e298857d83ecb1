"""Golden tensors: numbers made by published implementations, with the random choices stored beside them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

Golden = Callable[[str], dict[str, NDArray]]
_REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def golden() -> Golden:
    """``golden("cirkd/metric")`` reads that file under TUTELAGE_GOLDEN; the test is skipped where there is none."""
    root = Path(os.environ.get("TUTELAGE_GOLDEN") or _REPOSITORY / ".." / "shared" / "golden").resolve()

    def load(name: str) -> dict[str, NDArray]:
        path = root / f"{name}.npz"
        if not path.is_file():
            pytest.skip(f"no golden file {path} (the variable TUTELAGE_GOLDEN names the folder)")
        with np.load(path, allow_pickle=False) as file:
            return dict(file)

    return load
