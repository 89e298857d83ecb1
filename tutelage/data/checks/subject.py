"""Subjects of the checks: a data set with its roles and the statistics of its files."""

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
"""Roles whose masks are used in training."""


@dataclass(frozen=True)
class Subject:
    """One data set with its name, roles and statistics."""

    name: str
    dataset: Dataset
    roles: frozenset[Role]
    masks: DatasetStatistics | None
    """``None`` for data whose masks are not read."""
    pictures: Pictures

    @property
    def duty(self) -> Duty:
        """Use of the data, for the checks of leaks and missing classes."""
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
    """Guess roles from names of the form ``data/split``: `city/target_test` is the test split of the target.

    Names without a known word are training data.
    """
    result: dict[str, frozenset[Role]] = {}
    for name in names:
        head, _, split = name.partition("/")
        roles = _roles_in(split or head)
        # The name of the data set may give its domain; the name of the split gives its use.
        roles |= {role for role in _roles_in(head) if role in ("source", "target", "unlabeled")}
        if roles & {"val", "test"}:
            roles -= {"train", "source"}  # `source_val` is not training data
        elif roles & {"target", "unlabeled"}:
            roles -= {"train"}
        result[name] = frozenset(roles or {"train"})
    return result


def _roles_in(text: str) -> set[Role]:
    return {_WORDS[word] for word in re.split(r"[^a-z]+", text.lower()) if word in _WORDS}


def named_roles(names: Iterable[str], roles: Mapping[str, str | Collection[str]] | None) -> dict[str, frozenset[Role]]:
    """The given roles, and guesses for the other names. Raises ``ValueError`` for an unknown role."""
    result = guess_roles(names)
    for name, given in (roles or {}).items():
        words = {given} if isinstance(given, str) else set(given)
        unknown = words - set(_WORDS)
        if unknown:
            raise ValueError(
                f"{name}: unknown role {sorted(unknown)[0]!r}; use one of: {', '.join(sorted(set(_WORDS.values())))}"
            )
        result[name] = frozenset(_WORDS[word] for word in words)
    return result
