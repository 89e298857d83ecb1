"""What decides a result is in the key of its stage, and nothing else: every setting, by construction."""

from __future__ import annotations

import typing
from typing import Any

import pytest
from pydantic import BaseModel

from tutelage.annotate.fits import MeansFit
from tutelage.nets.settings import NetSettings
from tutelage.recipe.base import StageSettings
from tutelage.recipe.stages import Stage
from tutelage.recipe.stages.fit import FitStage
from tutelage.settings import NOT_IN_KEY, Settings, key_content

STAGES: tuple[type[StageSettings], ...] = typing.get_args(typing.get_args(Stage)[0])
EXCEPTIONS = {"log_every", "checkpoint_every", "keep_checkpoints"}
"""Settings that only decide what is displayed, and what is kept while training."""

DISTINCT = "a value that no setting has"


def models_below(kind: type[BaseModel]) -> set[type[BaseModel]]:
    """``kind`` and all settings that it can hold."""
    found, waiting = {kind}, [field.annotation for field in kind.model_fields.values()]
    while waiting:
        one: Any = waiting.pop()
        if isinstance(one, type) and issubclass(one, BaseModel):
            if one not in found:
                found |= models_below(one)
        else:
            waiting += typing.get_args(one)
    return found


MODELS = sorted({it for kind in (*STAGES, NetSettings) for it in models_below(kind)}, key=lambda it: it.__name__)


@pytest.mark.parametrize("kind", MODELS, ids=lambda kind: kind.__name__)
def test_every_setting_is_in_the_key_but_for_the_listed_ones(kind: type[Settings]) -> None:
    defaults = {name: None if it.is_required() else it.get_default() for name, it in kind.model_fields.items()}
    if kind is FitStage:
        defaults["what"] = MeansFit()

    def content(**changes: object) -> dict[str, Any]:
        return key_content(kind.model_construct(**{**defaults, **changes}), lambda reference: reference.value)

    before = content()
    same = {name for name in kind.model_fields if content(**{name: DISTINCT}) == before}
    assert same <= EXCEPTIONS
    assert same == {name for name, field in kind.model_fields.items() if NOT_IN_KEY in field.metadata}


def test_settings_of_all_stages_were_seen() -> None:
    names = {kind.__name__ for kind in MODELS}
    assert {
        "TrainStage",
        "Protocol",
        "StreamSettings",
        "MixturesFit",
        "ClassQuantileSettings",
        "AuditSettings",
    } <= names
