"""The schema for editors says of recipes what reading them says; every method is found by its name."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml

from tests.recipe.texts import WHOLE, faults, parsed, spoilt
from tutelage.engine.contract import Method
from tutelage.errors import RecipeError
from tutelage.methods import METHODS, find_method, find_settings
from tutelage.recipe.loading import json_schema, resolved
from tutelage.recipe.stages.evaluate import EvaluateStage

jsonschema = pytest.importorskip("jsonschema")


@pytest.fixture(scope="module")
def validator() -> Any:
    schema = json.loads(json.dumps(json_schema()))
    kind = jsonschema.validators.validator_for(schema)
    kind.check_schema(schema)
    return kind(schema)


def test_good_recipes_are_valid(validator: Any) -> None:
    content = yaml.safe_load(WHOLE)
    for stage in content["stages"].values():
        stage.setdefault("kind", "train")
    content["data"]["mine"]["kind"] = "folder"
    content["stages"]["teacher"]["optimizer"]["lr"] = 0.001
    assert not list(validator.iter_errors(content))
    assert not list(validator.iter_errors(yaml.safe_load(resolved(parsed(WHOLE).recipe))))


@pytest.mark.parametrize(
    "change",
    [
        ("name: demo", "name: demo\nsede: 1"),
        ("steps: 10", "stpes: 10"),
        ("steps: 10", "steps: 0"),
        ("temperature: 2", "temprature: 2"),
        ("temperature: 2", "task: {dise: 1}"),
        ("method: supervised", "method: superviced"),
        ("decoder: lraspp", "decoder: lrasp"),
        ("kind: evaluate", "kind: evaluate\n    boundry: true"),
        ("root: city", "rot: city"),
    ],
)
def test_what_reading_refuses_is_invalid(validator: Any, change: tuple[str, str]) -> None:
    text = spoilt(change)
    assert faults(text)
    assert list(validator.iter_errors(yaml.safe_load(text)))


@pytest.mark.parametrize("name", METHODS)
def test_every_methods_settings_are_in_the_schema(name: str) -> None:
    schema = json_schema()
    settings = find_method(name).Settings
    own = schema["$defs"][settings.__name__]
    assert own["properties"]["name"] == {"const": name, "type": "string"}
    assert set(own["properties"]) == {"name", *settings.model_fields}
    assert own["additionalProperties"] is False
    assert {"$ref": f"#/$defs/{settings.__name__}"} in schema["$defs"]["MethodChoice"]["anyOf"]


def test_every_key_says_what_it_is() -> None:
    schema = json_schema()
    silent = [
        f"{name}.{key}"
        for name, definition in schema["$defs"].items()
        for key, value in definition.get("properties", {}).items()
        if key not in ("kind", "name") and not {"description", "$ref"} & value.keys()
    ]
    assert not silent


@pytest.mark.parametrize("name", METHODS)
def test_every_method_keeps_the_contract(name: str) -> None:
    kind = find_method(name)
    assert issubclass(kind, Method)
    assert kind.Settings is find_settings(name)
    assert kind.version >= 1
    assert kind.Settings.streams
    assert all(needs.views and needs.about for needs in kind.Settings.streams.values())
    kind.Settings()  # defaults for everything


def test_an_unknown_method_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        find_method("nowhere")


def test_two_settings_of_one_name_would_hide_each_other() -> None:
    titles = [find_method(name).Settings.__name__ for name in METHODS]
    assert len(set(titles)) == len(titles)


def test_names_of_evaluated_nets() -> None:
    stage = EvaluateStage(nets=["a", "b.ema"], data="x")
    assert stage.scored() == {"a": "a", "b-ema": "b.ema"}
    assert EvaluateStage(nets={"mine": "b.ema"}, data="x").scored() == {"mine": "b.ema"}


def test_settings_are_frozen() -> None:
    recipe = parsed(WHOLE).recipe
    with pytest.raises(ValueError, match="frozen"):
        recipe.seed = 3  # type: ignore[misc]
    assert issubclass(RecipeError, Exception)
