"""Reading a recipe: YAML, overrides from the command line, and all faults at once.

Every fault says where it stands (file and line, or the command line), which key it is about, and what would be right.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from tutelage.errors import RecipeError
from tutelage.recipe.document import COMMAND_LINE, Document, parse, read
from tutelage.recipe.references import check_references, nearest
from tutelage.recipe.schema import FORMAT, METHODS, Recipe, TrainStage, find_method
from tutelage.settings import Settings

Path_ = tuple[str | int, ...]


class Read(typing.NamedTuple):
    """A recipe that was read, with what is needed to say where things stand."""

    recipe: Recipe
    document: Document
    base: Path
    """Folder that data paths are relative to: the recipe's."""


def read_recipe(path: Path, overrides: Sequence[str] = ()) -> Read:
    """Read and check a recipe file, with overrides such as ``stages.student.steps=200``.

    Raises :class:`RecipeError` that lists every fault.
    """
    document = read(path)
    return _checked(document, overrides, path.resolve().parent)


def parse_recipe(text: str, base: Path, overrides: Sequence[str] = (), name: str = "recipe") -> Read:
    """Read and check a recipe that is text already."""
    return _checked(parse(text, name), overrides, base)


def _checked(document: Document, overrides: Sequence[str], base: Path) -> Read:
    if not isinstance(document.content, dict):
        raise RecipeError(f"{document.name}: a recipe is a mapping of keys", "start with `tutelage: 1` and `name: ...`")
    for override in overrides:
        _apply(document, override)
    # What has no kind is the usual one.
    for section, kind in (("data", "folder"), ("stages", "train")):
        entries = document.content.get(section)
        for entry in entries.values() if isinstance(entries, dict) else ():
            if isinstance(entry, dict):
                entry.setdefault("kind", kind)
    version = document.content.get("tutelage", FORMAT)
    if isinstance(version, int) and version > FORMAT:
        raise RecipeError(
            f"{document.where(('tutelage',))}: recipe format {version} is newer than this tutelage knows ({FORMAT})",
            "update tutelage",
        )
    faults: list[str] = []
    recipe: Recipe | None = None
    try:
        recipe = Recipe.model_validate(document.content)
    except ValidationError as error:
        faults += _faults(error, document, (), Recipe)
    faults += _method_faults(document)
    if recipe is not None:
        faults += [f"{document.where(place)}: {text}" for place, text in check_references(recipe)]
    if faults or recipe is None:
        count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
        raise RecipeError(
            f"{document.name} has {count}:\n  " + "\n  ".join(faults), "mend these; `tutelage schema` has all keys"
        )
    return Read(recipe, document, base)


def method_settings(stage: TrainStage) -> Settings:
    """The checked settings of a stage's method, defaults filled in."""
    return find_method(stage.method.name).Settings.model_validate(stage.method.settings())


def resolved(recipe: Recipe) -> str:
    """The recipe with every default written out, as YAML that reads back to the same recipe."""
    content = recipe.model_dump(mode="json")
    for name, stage in recipe.stages.items():
        if isinstance(stage, TrainStage):
            settings = method_settings(stage).model_dump(mode="json")
            content["stages"][name]["method"] = {"name": stage.method.name, **settings}
    return str(yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120))


def json_schema() -> dict[str, Any]:
    """JSON schema of a recipe, for editors; each method's settings included."""
    schema = Recipe.model_json_schema()
    definitions = schema.setdefault("$defs", {})
    choices = []
    for name in METHODS:
        own = find_method(name).Settings.model_json_schema(ref_template="#/$defs/{model}")
        definitions.update(own.pop("$defs", {}))
        own["properties"] = {"name": {"const": name, "type": "string"}, **own.get("properties", {})}
        own["required"] = ["name", *own.get("required", [])]
        definitions[own["title"]] = own
        choices.append({"$ref": f"#/$defs/{own['title']}"})
    definitions["MethodChoice"] = {"anyOf": [*choices, {"enum": sorted(METHODS)}]}
    return schema


def _apply(document: Document, override: str) -> None:
    """Put one ``a.b=c`` into the document. Raises :class:`RecipeError` when it cannot be meant."""
    key, separator, value = override.partition("=")
    if not separator or not key.strip():
        raise RecipeError(f"command line: {override!r} is no override", "write key.key=value, e.g. seed=1")
    try:
        new = yaml.safe_load(value)
    except yaml.YAMLError:
        new = value
    place = document.content
    parts = key.strip().split(".")
    for depth, part in enumerate(parts[:-1]):
        if not isinstance(place, dict):
            raise RecipeError(
                f"command line: {'.'.join(parts[:depth])} is a single value, it has no key {part!r}", "shorten the key"
            )
        if not isinstance(place.get(part), dict):
            short = part == "method" and isinstance(place.get(part), str)
            place[part] = {"name": place[part]} if short else {}
        place = place[part]
    if not isinstance(place, dict):
        raise RecipeError(f"command line: {'.'.join(parts[:-1])} is a single value", "shorten the key")
    place[parts[-1]] = new
    document.lines[tuple(parts)] = COMMAND_LINE


def _method_faults(document: Document) -> Iterable[str]:
    """Faults in the settings of the methods that the stages name."""
    stages = document.content.get("stages")
    for name, stage in stages.items() if isinstance(stages, dict) else ():
        if not isinstance(stage, dict) or stage.get("kind", "train") != "train" or "method" not in stage:
            continue
        method = stage["method"]
        place: Path_ = ("stages", name, "method")
        chosen = method.get("name") if isinstance(method, dict) else method
        if not isinstance(chosen, str):
            continue  # the frame's check has said so
        if chosen not in METHODS:
            yield f"{document.where((*place, 'name'))}: unknown method {chosen!r}{nearest(chosen, METHODS)}"
            continue
        settings = find_method(chosen).Settings
        try:
            settings.model_validate(
                {k: v for k, v in method.items() if k != "name"} if isinstance(method, dict) else {}
            )
        except ValidationError as error:
            yield from _faults(error, document, place, settings)


def _faults(error: ValidationError, document: Document, prefix: Path_, root: type[BaseModel]) -> list[str]:
    result = []
    for item in error.errors(include_url=False):
        path, model = _written(item["loc"], document, prefix, root)
        key = ".".join(map(str, path)) or document.name
        where = document.where(path)
        if item["type"] == "extra_forbidden":
            known = [] if model is None else list(model.model_fields)
            result.append(f"{where}: unknown key {key!r}{nearest(str(path[-1]), known)}")
        elif item["type"] == "missing":
            result.append(f"{where}: {key!r} is missing")
        elif item["type"] in ("union_tag_invalid", "union_tag_not_found"):
            tags = str(item.get("ctx", {}).get("expected_tags", ""))
            given = item["input"].get("kind") if isinstance(item["input"], dict) else item["input"]
            wanted = [tag.strip(" '\"") for tag in tags.split(",")] if tags else []
            result.append(f"{where}: {key}.kind is {given!r}{nearest(str(given), wanted)}")
        elif item["type"] == "literal_error":
            wanted = [part.strip("' ") for part in item["ctx"]["expected"].replace(" or ", ", ").split(",")]
            result.append(f"{where}: {key} is {_short(item['input'])}{nearest(str(item['input']), wanted)}")
        else:
            message = item["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
            result.append(f"{where}: {key} should be: {message} (given: {_short(item['input'])})")
    return list(dict.fromkeys(result))


def _written(
    location: Iterable[str | int], document: Document, prefix: Path_, root: type[BaseModel]
) -> tuple[Path_, type[BaseModel] | None]:
    """A validator's location as the user wrote it (without the names of union members), and the innermost model."""
    path: Path_ = prefix
    models: list[Any] = [root]
    parts = list(location)
    for number, part in enumerate(parts):
        inner = [found for model in models for found in _step(model, part)]
        last = number == len(parts) - 1
        if inner or last:
            path = (*path, part)
            if not last:
                models = inner
        else:
            # The tag or type of a union's member: it narrows what can follow.
            named = [m for m in models if part in _tags(m)]
            models = named or models
    model = next((m for m in models if isinstance(m, type) and issubclass(m, BaseModel)), None)
    return path, model


def _tags(model: Any) -> set[str]:
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        return set()
    kind = model.model_fields.get("kind")
    return {model.__name__, *(map(str, typing.get_args(kind.annotation)) if kind is not None else ())}


def _step(model: Any, part: str | int) -> list[Any]:
    """The types that may stand under a key or index of ``model``."""
    if isinstance(model, type) and issubclass(model, BaseModel):
        field = model.model_fields.get(str(part))
        return [] if field is None else _members(field.annotation)
    origin, arguments = typing.get_origin(model), typing.get_args(model)
    if origin is dict:
        return _members(arguments[1])
    if origin in (list, tuple) and isinstance(part, int):
        return [member for argument in arguments for member in _members(argument)]
    return []


def _members(annotation: Any) -> list[Any]:
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _members(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return [member for argument in typing.get_args(annotation) for member in _members(argument)]
    return [annotation]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
