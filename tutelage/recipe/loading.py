"""Loading a recipe: YAML, overrides from the command line, and all errors at once.

Every error names its place (file and line, or the command line), the key, and what was expected.
"""

from __future__ import annotations

import copy
import typing
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from tutelage.errors import RecipeError
from tutelage.evaluation.protocol import Protocol
from tutelage.methods import METHODS
from tutelage.recipe.base import Fault, nearest
from tutelage.recipe.document import COMMAND_LINE, Document, parse, read, value_of
from tutelage.recipe.ladder_faults import ladder_faults, ladder_leaks, setting_faults
from tutelage.recipe.ladder_settings import RUNG_KEYS, known_rungs, rung_settings
from tutelage.recipe.leaks import leak_faults, without_leaks
from tutelage.recipe.references import check_references
from tutelage.recipe.schema import FORMAT, Recipe
from tutelage.recipe.validation import ValidationFinding, faults_of, findings
from tutelage.settings import Place, plain

_DEFAULT_KINDS = {"data": "folder", "stages": "train"}
"""Section → the default kind of an entry."""
_SHORT_FORMS = {"method": "name", "what": "kind", "policy": "kind"}
"""Key of a stage with a short form → the inner key that the short form sets."""


class LoadedRecipe(typing.NamedTuple):
    """A checked recipe, and the places of its keys in the file."""

    recipe: Recipe
    document: Document
    base: Path
    """The recipe's folder; data paths are relative to it."""


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """Load and check a recipe file, with overrides such as ``stages.student.steps=200``.

    Raises :class:`RecipeError` that lists every error.
    """
    document = read(path)
    return _checked(document, overrides, path.resolve().parent)


def parse_recipe(text: str, base: Path, overrides: Sequence[str] = (), name: str = "recipe") -> LoadedRecipe:
    """Check the text of a recipe."""
    return _checked(parse(text, name), overrides, base)


def _checked(document: Document, overrides: Sequence[str], base: Path) -> LoadedRecipe:
    if not isinstance(document.content, dict):
        text = f"{document.name}: expected a mapping of keys"
        raise RecipeError("not-a-recipe", text, "start with `tutelage: 1` and `name: ...`")
    for override in overrides:
        _apply(document, override)
    for section, kind in _DEFAULT_KINDS.items():
        entries = document.content.get(section)
        for entry in entries.values() if isinstance(entries, dict) else ():
            if isinstance(entry, dict):
                entry.setdefault("kind", kind)
    version = document.content.get("tutelage", FORMAT)
    if isinstance(version, int) and version > FORMAT:
        where = document.where(("tutelage",))
        text = f"{where}: recipe format {version} is not supported; this version of tutelage reads up to {FORMAT}"
        raise RecipeError("newer-format", text, "update tutelage")
    recipe, faults = _validated(document)
    if recipe is not None and not faults:
        recipe = without_leaks(recipe)
        faults = [*leak_faults(recipe), *([] if recipe.ladder is None else ladder_leaks(recipe, recipe.ladder))]
    if faults or recipe is None:
        raise _error(document, faults)
    return LoadedRecipe(recipe, document, base)


def _validated(document: Document) -> tuple[Recipe | None, list[Fault]]:
    """The recipe, if its keys are valid, and all errors except leaks."""

    def invalid(error: ValidationError, place: Place, root: type[BaseModel]) -> list[Fault]:
        return faults_of(findings(error, place, root), document)

    try:
        recipe = Recipe.model_validate(document.content)
    except ValidationError as error:
        found = findings(error, (), Recipe)
        return None, [*faults_of(found, document), *_method_faults(document), *_remaining_faults(document, found)]
    faults, known = check_references(recipe)
    if recipe.ladder is not None:
        faults += ladder_faults(recipe, recipe.ladder, known)
    faults += _method_faults(document)
    if recipe.ladder is not None:
        faults += setting_faults(recipe.ladder, invalid)
    return recipe, faults


def _error(document: Document, faults: Iterable[Fault]) -> RecipeError:
    lines = list(dict.fromkeys((document.where(it.place), it.code, it.text) for it in faults))
    remedy = "fix these; `tutelage schema` lists all keys"
    if len(lines) == 1:
        where, code, text = lines[0]
        error = RecipeError(code, f"{where}: {text}", "fix it; `tutelage schema` lists all keys")
    else:
        listing = "\n  ".join(f"{where}: {text} [{code}]" for where, code, text in lines)
        error = RecipeError("invalid-recipe", f"{document.name} has {len(lines)} errors:\n  {listing}", remedy)
    error.faults = tuple(lines)
    return error


def resolved(recipe: Recipe) -> str:
    """The recipe with every default, as YAML that loads to the same recipe."""
    return str(yaml.safe_dump(plain(recipe), sort_keys=False, allow_unicode=True, width=120))


def json_schema() -> dict[str, Any]:
    """JSON schema of a recipe, for editors, including each method's settings."""
    schema = Recipe.model_json_schema()
    definitions = schema.setdefault("$defs", {})
    choices = []
    for name in METHODS:
        own = rung_settings(name).model_json_schema(ref_template="#/$defs/{model}")
        definitions.update(own.pop("$defs", {}))
        own["properties"] = {"name": {"const": name, "type": "string"}, **own.get("properties", {})}
        own["required"] = ["name", *own.get("required", [])]
        definitions[own["title"]] = own
        choices.append({"$ref": f"#/$defs/{own['title']}"})
    definitions["MethodChoice"] = {"anyOf": [*choices, {"enum": sorted(METHODS)}]}
    for stage, key in (("FitStage", "what"), ("AnnotateStage", "policy")):
        union = definitions[stage]["properties"][key]
        short = {"enum": sorted(union["discriminator"]["mapping"])}
        definitions[stage]["properties"][key] = {
            "description": union.pop("description", ""),
            "anyOf": [union, short],
        }
    definitions["Rung"] = {"anyOf": [definitions["Rung"], {"enum": sorted(METHODS)}]}
    return schema


def _apply(document: Document, override: str) -> None:
    """Apply one override ``a.b=c`` to the document. Raises :class:`RecipeError` for an invalid override."""
    key, separator, value = override.partition("=")
    parts = key.strip().split(".")
    if not separator or not all(parts):
        text = f"command line: invalid override {override!r}; expected key.key=value"
        raise RecipeError("invalid-override", text, "e.g. seed=1 or stages.student.steps=200")
    place = document.content
    for depth, part in enumerate(parts[:-1], 1):
        inner = place.get(part)
        if depth == 3 and isinstance(inner, str) and part in _SHORT_FORMS:
            inner = {_SHORT_FORMS[part]: inner}
        elif depth == 3 and isinstance(inner, str) and parts[:2] == ["ladder", "rungs"]:
            inner = {"name": inner}
        elif inner is None:
            inner = {}
        elif not isinstance(inner, dict):
            text = f"command line: cannot set {parts[depth]!r}: {'.'.join(parts[:depth])} has no keys"
            raise RecipeError("invalid-override", text, "set it as a whole")
        place[part] = inner
        place = inner
        document.lines.setdefault(tuple(parts[:depth]), COMMAND_LINE)
    place[parts[-1]] = value_of(value, "command line")
    below = [path for path in document.lines if path[: len(parts)] == tuple(parts)]
    for path in below:
        del document.lines[path]
    document.lines[tuple(parts)] = COMMAND_LINE


def _remaining_faults(document: Document, found: Sequence[ValidationFinding]) -> list[Fault]:
    """Errors of names in the valid parts of an invalid recipe: all errors are listed at once."""
    stand_ins: dict[str, Any] = {"tutelage": FORMAT, "name": "recipe", "data": {}, "stages": {}}
    content = copy.deepcopy(document.content)
    removed: set[Place] = set()
    while True:
        before = len(removed)
        for one in found:
            removed |= _remove(content, one.path[:-1] if one.kind == "missing" else one.path)
        if removed & {("data",), ("nets",), ("stages",)}:
            return []
        try:
            recipe = Recipe.model_validate({**stand_ins, **content})
        except ValidationError as error:
            if len(removed) == before:
                break
            found = findings(error, (), Recipe)
            continue
        left_out = sorted((str(path[0]), str(path[1])) for path in removed if len(path) == 2)
        faults, known = check_references(recipe, left_out)
        if recipe.ladder is not None:
            faults += ladder_faults(recipe, recipe.ladder, known)
        return [
            fault
            for fault in faults
            if not any(fault.place[: len(it)] == it or it[: len(fault.place)] == fault.place for it in removed)
        ]
    return []


def _remove(content: dict[str, Any], path: Place) -> set[Place]:
    """Remove the value at ``path``, or the list that contains it; returns the place, if it existed."""
    place: Any = content
    for depth, part in enumerate(path, 1):
        if not isinstance(place, dict) or part not in place:
            break
        if depth == len(path) or not isinstance(place[part], dict):
            del place[part]
            return {path[:depth]}
        place = place[part]
    return set()


def _method_faults(document: Document) -> Iterable[Fault]:
    """Errors in the settings of the stages' methods."""
    stages, ladder = document.content.get("stages"), document.content.get("ladder")
    for name, stage in stages.items() if isinstance(stages, dict) else ():
        if isinstance(stage, dict) and stage.get("kind", "train") == "train" and "method" in stage:
            yield from _choice_faults(document, ("stages", name, "method"), stage["method"], METHODS, ())
    rungs = ladder.get("rungs") if isinstance(ladder, dict) else None
    for name, rung in rungs.items() if isinstance(rungs, dict) else ():
        local = rung.get("stages") if isinstance(rung, dict) else None
        if isinstance(local, dict) and local:
            for key, stage in local.items():
                if isinstance(stage, dict) and "method" in stage:
                    place = ("ladder", "rungs", name, "stages", key, "method")
                    yield from _choice_faults(document, place, stage["method"], METHODS, ())
            continue
        yield from _choice_faults(document, ("ladder", "rungs", name), rung, known_rungs(), RUNG_KEYS)


def _choice_faults(
    document: Document, place: Place, choice: Any, known: Collection[str], other: Collection[str]
) -> Iterable[Fault]:
    """Errors of one method and its settings; keys in ``other`` belong to the rung."""
    chosen = choice.get("name") if isinstance(choice, dict) else choice
    if not isinstance(chosen, str):
        return  # reported by the schema
    if chosen not in known:
        yield Fault((*place, "name"), "unknown-method", f"unknown method {chosen!r}{nearest(chosen, known)}")
        return
    settings = rung_settings(chosen)
    try:
        given = choice if isinstance(choice, dict) else {}
        settings.model_validate({key: value for key, value in given.items() if key != "name" and key not in other})
    except ValidationError as error:
        yield from faults_of(findings(error, place, settings), document)


def protocol_from(pairs: Sequence[str]) -> Protocol:
    """A protocol from ``a=b`` pairs of the command line. Raises :class:`RecipeError` that lists every error."""
    document = Document("command line", {})
    for pair in pairs:
        _apply(document, pair)
    try:
        return Protocol.model_validate(document.content)
    except ValidationError as error:
        faults = "\n  ".join(it.text for it in faults_of(findings(error, (), Protocol), document))
        text = f"invalid protocol:\n  {faults}"
        raise RecipeError("invalid-protocol", text, "e.g. kind=sliding window=[512,512]") from None
