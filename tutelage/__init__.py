"""tutelage: train small, fast semantic-segmentation models with teachers.

The package opens in milliseconds: everything heavy is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Hand out the verbs of :mod:`tutelage.api` (``tutelage.run(...)``) without importing torch up front."""
    if name.startswith("_"):
        raise AttributeError(name)
    # Not `from tutelage import api`: that asks this function for `api` first.
    api = importlib.import_module("tutelage.api")
    try:
        return api if name == "api" else getattr(api, name)
    except AttributeError:
        raise AttributeError(f"module 'tutelage' has no attribute {name!r}") from None
