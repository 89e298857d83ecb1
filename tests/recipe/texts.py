"""A recipe with a stage of every kind, for tests to spoil."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import pytest

from tutelage.errors import RecipeError
from tutelage.recipe.loading import LoadedRecipe, parse_recipe

WHOLE = """\
tutelage: 1
name: demo
data:
  city:
    kind: toycity
    root: city
    splits: {train: 4, val: 2}
  mine:
    classes: [road, car]
    splits: {all: all.txt}
nets:
  student: {encoder: resnet10t, decoder: lraspp}
  big: {encoder: resnet18, decoder: deeplabv3plus, auxiliary: true}
stages:
  teacher:
    method: supervised
    nets: {student: big}
    steps: 10
    optimizer: {lr: 1e-3}
    streams:
      labeled: {data: city/train}
    evaluate:
      data: city/val
  kd:
    method:
      name: pixel_kd
      temperature: 2
    inputs: {teacher: teacher}
    streams:
      labeled: {data: [city/train, mine]}
  marked:
    kind: annotate
    net: kd
    data: city/train
  again:
    method: supervised
    init: {student.encoder: kd.student}
    streams:
      labeled:
        data: marked
  score:
    kind: evaluate
    nets: [teacher, kd]
    data: city/val
    protocol: {kind: sliding, window: [64, 64], overlap: 0.5}
  page:
    kind: report
    scores: score
"""


def parsed(text: str, *overrides: str) -> LoadedRecipe:
    """The recipe in ``text``."""
    return parse_recipe(text, Path("."), overrides, "r.yaml")


def spoilt(*changes: tuple[str, str]) -> str:
    """:data:`WHOLE` with each (old, new) replaced once."""
    text = WHOLE
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new, 1)
    return text


def line_of(text: str, part: str) -> int:
    """The number of the first line that holds ``part``."""
    return next(number for number, line in enumerate(text.splitlines(), 1) if part in line)


class FoundFault(NamedTuple):
    """One error that reading a recipe reports."""

    where: str
    code: str
    text: str

    @property
    def meant(self) -> str:
        """The name that it suggests, if any."""
        found = re.search(r"did you mean '([^']+)'\?", self.text)
        return found.group(1) if found else ""

    @property
    def line(self) -> int:
        """The line of the file."""
        return int(self.where.rpartition(":")[2])


def faults(text: str, *overrides: str) -> list[FoundFault]:
    """The errors that reading ``text`` reports."""
    with pytest.raises(RecipeError) as raised:
        parsed(text, *overrides)
    assert raised.value.remedy
    assert raised.value.faults
    return [FoundFault(*one) for one in raised.value.faults]


def refusal(text: str, *overrides: str) -> str:
    """The code of the one error for which ``text`` is refused."""
    with pytest.raises(RecipeError) as raised:
        parsed(text, *overrides)
    return raised.value.code
