"""tutelage: train small, fast semantic-segmentation models with teachers.

The package opens in milliseconds: everything heavy is imported when it is first used.
"""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Hand out the verbs of :mod:`tutelage.api` (``tutelage.run(...)``) without importing torch up front."""
    if name.startswith("_"):
        raise AttributeError(name)
    from tutelage import api

    try:
        return getattr(api, name)
    except AttributeError:
        raise AttributeError(f"module 'tutelage' has no attribute {name!r}") from None
