"""Every setting that names something is found by its mark: dependencies, existence checks, renaming and keys follow."""

from __future__ import annotations

import typing
from typing import Any

import pytest
from pydantic import BaseModel

from tests.recipe.texts import WHOLE, faults, parsed
from tutelage.recipe.base import StageSettings
from tutelage.recipe.ladder import expand
from tutelage.recipe.references import Known, rename_stages, stages_before
from tutelage.recipe.stages import Stage
from tutelage.settings import Ref, Settings, key_content, references, renamed

STAGES: tuple[type[StageSettings], ...] = typing.get_args(typing.get_args(Stage)[0])


def marked(kind: type[BaseModel], place: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The places of all settings below ``kind`` that carry a mark, through unions, lists and mappings."""
    found: list[tuple[str, ...]] = []
    for name, field in kind.model_fields.items():
        stack: list[Any] = [field.annotation, *field.metadata]
        is_marked = False
        while stack:
            one = stack.pop()
            if isinstance(one, Ref):
                is_marked = True
            elif isinstance(one, type) and issubclass(one, BaseModel):
                found += marked(one, (*place, name))
            else:
                stack += [*typing.get_args(one), *getattr(one, "__metadata__", ())]
        if is_marked:
            found.append((*place, name))
    return found


def built(kind: type[BaseModel], place: tuple[str, ...], number: list[int]) -> Any:
    """An instance whose setting at ``place`` holds a name of its own, in a list or mapping where it may."""
    head, *rest = place
    field = kind.model_fields[head]
    members = [field.annotation]
    while members and typing.get_origin(members[-1]) is not None:
        members[-1:] = [it for it in typing.get_args(members[-1]) if it is not type(None) and not isinstance(it, Ref)]
        models = [it for it in members if isinstance(it, type) and issubclass(it, BaseModel)]
        if models:
            break
    models = [it for it in members if isinstance(it, type) and issubclass(it, BaseModel)]
    text = str(field.annotation)
    if rest:
        inner = next(built(it, tuple(rest), number) for it in models if rest[0] in it.model_fields)
        value: Any = {"role": inner} if text.startswith("dict") else inner
    else:
        number[0] += 1
        name = f"name{number[0]}"
        value = {"role": [name] if "list[" in text else name} if "dict[" in text else name
    return kind.model_construct(**{**defaults(kind), head: value})


def defaults(kind: type[BaseModel]) -> dict[str, Any]:
    """The defaults, and None for what is required."""
    return {name: None if field.is_required() else field.get_default() for name, field in kind.model_fields.items()}


CASES = [(kind, place) for kind in STAGES for place in dict.fromkeys(marked(kind))]


def test_there_are_marks_in_every_kind_of_stage() -> None:
    assert {kind for kind, _ in CASES} == set(STAGES)
    assert ("audit", "val") in [place for _, place in CASES]
    assert len(CASES) >= 25


@pytest.mark.parametrize(("kind", "place"), CASES, ids=[f"{k.__name__}.{'.'.join(p)}" for k, p in CASES])
def test_every_marked_setting_is_found_renamed_and_hashed(kind: type[StageSettings], place: tuple[str, ...]) -> None:
    stage = built(kind, place, [0])
    Settings.refined, plain = Settings.refined, kind.refined
    try:
        kind.refined = Settings.refined  # type: ignore[method-assign] # the marks alone: other settings are not filled in
        (found,) = [it for it in references(stage) if it.value == "name1"]
        assert tuple(it for it in found.place if it not in ("role", 0)) == place
        (changed,) = [it for it in references(renamed(stage, lambda it: f"new {it.value}")) if "name1" in it.value]
        assert changed.value == "new name1"
        assert "KEY-name1" in str(key_content(stage, lambda it: f"KEY-{it.value}"))
        if found.ref.kind in ("data", "net", "trained", "input", "start", "fit", "scores"):
            assert list(Known([], []).faults(found)), "a name that does not exist is an error"
        if found.ref.kind in ("data", "trained", "input", "start", "fit", "scores"):
            (moved,) = [
                it.value for it in references(rename_stages(stage, lambda name: f"rung-{name}")) if "name1" in it.value
            ]
            assert moved == "rung-name1"
    finally:
        kind.refined = plain  # type: ignore[method-assign]


STYLISED = ("data:\n", "data:\n  day: {kind: toycity, root: day, splits: {train: 4}}\n")
AUDITED = WHOLE.replace(
    "  again:\n    method: supervised\n",
    "  stylised: {kind: transform, data: city/val, target: city/train}\n"
    "  again:\n    method: supervised\n    audit: {val: stylised}\n",
)


def test_an_audit_on_copies_depends_on_the_stage_that_makes_them() -> None:
    recipe = parsed(AUDITED).recipe
    assert stages_before(recipe, "again") == ["kd", "marked", "stylised"]


def test_an_audit_on_copies_is_accepted_in_a_rung_too() -> None:
    ladder = """\
ladder:
  student: student
  training: {streams: {labeled: {data: city/train}}, steps: 3}
  score: {data: city/val}
  rungs:
    plain: supervised
    chain:
      stages:
        stylised: {kind: transform, data: city/val, target: city/train}
        net: {method: supervised, audit: {val: stylised}}
"""
    recipe = expand(parsed(WHOLE + ladder).recipe, {}).recipe
    assert stages_before(recipe, "chain-0-net") == ["chain-0-stylised"]


def test_an_audit_on_pseudo_labels_is_refused() -> None:
    (fault,) = faults(AUDITED.replace("audit: {val: stylised}", "audit: {val: marked}"))
    assert fault.code == "pseudo-labels-as-truth"


def test_the_default_of_an_audit_is_not_a_name() -> None:
    recipe = parsed(WHOLE, "stages.again.audit={}").recipe
    assert stages_before(recipe, "again") == ["kd", "marked"]
