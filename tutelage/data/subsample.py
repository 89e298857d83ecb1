"""A part of a data set that stands for all of it."""

from __future__ import annotations


def evenly(length: int, count: int | None) -> list[int] | None:
    """``count`` indices spread evenly over ``length``; ``None``: all."""
    return None if count is None or count >= length else [i * length // count for i in range(count)]
