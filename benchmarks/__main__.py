"""``python -m benchmarks [name ...]``: all measurements, or those named, as Markdown tables."""

from __future__ import annotations

import importlib
import sys

from benchmarks.common import machine

ALL = (
    "inputs",
    "metric",
    "scoring",
    "training",
    "memory",
    "relations",
    "frequency",
    "mixtures",
    "prototypes",
    "distillation",
    "unimatch_v2",
    "trikd",
    "teacher_cache",
    "annotate",
)


def main() -> None:
    """Run the measurements."""
    names = sys.argv[1:] or ALL
    unknown = [name for name in names if name not in ALL]
    if unknown:
        raise SystemExit(f"no measurement {unknown[0]!r}; known: {', '.join(ALL)}")
    print(f"{machine()}")
    for name in names:
        importlib.import_module(f"benchmarks.{name}").main()


if __name__ == "__main__":
    main()
