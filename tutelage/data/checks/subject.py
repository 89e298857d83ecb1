"""What is checked: a data set with the part it plays, and what its files were found to hold."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from tutelage.data.dataset import Dataset
from tutelage.data.pictures import Pictures
from tutelage.data.statistics import DatasetStatistics

Role = Literal["train", "val", "test", "source", "target", "unlabeled"]
Duty = Literal["train", "unlabeled", "val", "test"]
_WORDS: dict[str, Role] = {
    "train": "train",
    "training": "train",
    "labeled": "train",
    "labelled": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
    "source": "source",
    "target": "target",
    "unlabeled": "unlabeled",
    "unlabelled": "unlabeled",
}


TEACHING: frozenset[Role] = frozenset({"train", "source"})
"""Roles in which masks teach; other training data are looked at without."""


@dataclass(frozen=True)
class Subject:
    """One data set under its name, with its roles and what was found in its files."""

    name: str
    dataset: Dataset
    roles: frozenset[Role]
    masks: DatasetStatistics | None
    """``None`` where no mask is read: unlabelled data."""
    pictures: Pictures

    @property
    def duty(self) -> Duty:
        """What the data are used for, for questions of leaks and missing classes."""
        if "test" in self.roles:
            return "test"
        if "val" in self.roles:
            return "val"
        return "train" if self.roles & TEACHING else "unlabeled"

    @property
    def source(self) -> str:
        """The data set's name without its split."""
        return self.name.partition("/")[0]


def guess_roles(names: Iterable[str]) -> dict[str, frozenset[Role]]:
    """The roles that names of the form ``data/split`` speak of: `city/target_test` is the target's test set.

    What says nothing is taken for training data.
    """
    result: dict[str, frozenset[Role]] = {}
    for name in names:
        head, _, split = name.partition("/")
        roles = _spoken(split or head)
        # The data set's own name may say which domain it is from; its split says what it is for.
        roles |= {role for role in _spoken(head) if role in ("source", "target", "unlabeled")}
        if roles & {"val", "test"}:
            roles -= {"train", "source"}  # `source_val` is no training data
        elif roles & {"target", "unlabeled"}:
            roles -= {"train"}
        result[name] = frozenset(roles or {"train"})
    return result


def _spoken(text: str) -> set[Role]:
    return {_WORDS[word] for word in re.split(r"[^a-z]+", text.lower()) if word in _WORDS}


def named_roles(names: Iterable[str], roles: Mapping[str, str | Collection[str]] | None) -> dict[str, frozenset[Role]]:
    """The roles that were given, and guesses for the rest. Raises ``ValueError`` for a word that is no role."""
    result = guess_roles(names)
    for name, given in (roles or {}).items():
        words = {given} if isinstance(given, str) else set(given)
        unknown = words - set(_WORDS)
        if unknown:
            raise ValueError(
                f"{name}: no role {sorted(unknown)[0]!r}; roles are {', '.join(sorted(set(_WORDS.values())))}"
            )
        result[name] = frozenset(_WORDS[word] for word in words)
    return result
