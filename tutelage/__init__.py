"""tutelage: train small, fast semantic-segmentation models with teachers.

The package imports in milliseconds: heavy modules are imported when they are first used.
"""

# ruff: noqa: F403, F405

from typing import TYPE_CHECKING, Any

from tutelage.version import __version__ as __version__

if TYPE_CHECKING:
    from tutelage.api import *


__all__ = [
    "check",
    "clean",
    "compare",
    "doctor",
    "estimate",
    "evaluate",
    "import_checkpoint",
    "init",
    "ladder",
    "load_model",
    "models",
    "plan",
    "plan_ladder",
    "predict",
    "run",
    "schema",
    "show",
    "split",
    "toycity",
]


def __getattr__(name: str) -> Any:
    """The functions of :mod:`tutelage.api`, imported when the first of them is used."""
    if name not in __all__ and name != "api":
        raise AttributeError(f"module 'tutelage' has no attribute {name!r}")
    import importlib

    # Not `from tutelage import api`: that calls this function with `api` first.
    api = importlib.import_module("tutelage.api")
    return api if name == "api" else getattr(api, name)


def __dir__() -> list[str]:
    return sorted([*__all__, *(name for name in globals() if name.startswith("__"))])
