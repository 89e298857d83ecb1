"""Class lists that differ in names alone: a renamed class keeps its id, and what was made under its old name."""

from __future__ import annotations

from collections.abc import Sequence


def renamed(theirs: Sequence[str], ours: Sequence[str]) -> bool:
    """Whether two lists can be of the same classes: as many, and not the same names in another order."""
    return len(theirs) == len(ours) and (list(theirs) == list(ours) or sorted(theirs) != sorted(ours))


def differences(theirs: Sequence[str], ours: Sequence[str]) -> str:
    """The names that differ, for a message: ``person → pedestrian, car → vehicle``."""
    return ", ".join(f"{one} → {other}" for one, other in zip(theirs, ours, strict=True) if one != other)
