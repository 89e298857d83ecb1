"""The generated parts of the manual: keys of recipes, settings of methods, help texts of commands.

    python -m docs.reference           write them into the pages
    python -m docs.reference --check   list the pages that are out of date; exit status 1 if there are any

A part stands between ``<!-- generated: NAME -->`` and ``<!-- end -->``. Every settings class that can be reached from
:class:`~tutelage.recipe.schema.Recipe` gets a table on the page of recipe keys, and so do the settings that methods
nest; a method's own settings are on its page.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
import textwrap
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo

from tutelage.methods import METHODS, find_settings
from tutelage.methods.settings.distill_terms import WeightOrSettings
from tutelage.recipe.base import StageSettings
from tutelage.recipe.schema import Recipe
from tutelage.recipe.stages.train import MethodChoice
from tutelage.settings import Settings

DOCS = Path(__file__).resolve().parent
KEYS = DOCS / "recipe_keys.md"
_PART = re.compile(r"(<!-- generated: ([a-z0-9_ -]+) -->\n).*?(<!-- end -->)", re.DOTALL)
_PLAIN = {str: "text", int: "integer", float: "number", bool: "true or false", type(None): "null", Any: "any value"}
_BOUNDS = {"gt": "above", "ge": "from", "lt": "below", "le": "to", "multiple_of": "multiple of"}


def main(arguments: Sequence[str]) -> int:
    """Write the generated parts, or only compare them; returns the exit status."""
    stale = []
    for path in sorted(DOCS.rglob("*.md")):
        text = path.read_text(encoding="utf-8")
        new = filled(path)
        if new != text:
            stale.append(path)
            if "--check" not in arguments:
                path.write_text(new, encoding="utf-8")
    for path in stale:
        print(path.relative_to(DOCS.parent))
    return 1 if stale and "--check" in arguments else 0


def filled(page: Path) -> str:
    """The text of a page, its generated parts made again. Raises ``KeyError`` for a part that does not exist."""

    def part(found: re.Match[str]) -> str:
        kind, _, name = found[2].partition(" ")
        makers: dict[str, Callable[[], str]] = {
            "recipe": recipe_reference,
            "method": lambda: method_reference(name),
            "command": lambda: command_reference(name),
        }
        # A page refers to the keys by its own place.
        keys = "" if page == KEYS else f"{os.path.relpath(KEYS, page.parent)}"
        return f"{found[1]}\n{makers[kind]().replace('](#', f']({keys}#')}\n\n{found[3]}"

    return _PART.sub(part, page.read_text(encoding="utf-8"))


def recipe_reference() -> str:
    """All keys of a recipe, a section for each group of them."""
    return "\n\n".join(_section(model, places) for model, places in _sections().items() if model is not MethodChoice)


def method_reference(name: str) -> str:
    """The streams and the settings of one method."""
    settings = find_settings(name)
    lines = ["| stream | masks are read | views | content |", "| --- | --- | --- | --- |"]
    for stream, spec in settings.streams.items():
        views = ", ".join([f"`{view}`" for view in spec.views] + [f"(`{view}`)" for view in spec.optional])
        lines.append(f"| `{stream}` | {'yes' if spec.labels else 'no'} | {views} | {spec.about} |")
    if settings.teachers:
        lines += ["", "Trained nets, under `inputs`: " + ", ".join(f"`{role}`" for role in settings.teachers) + "."]
    for role, kinds in settings.fitted_inputs.items():
        lines += ["", f"A `fit` stage of {' or '.join(f'`{kind}`' for kind in kinds)}, under `inputs`: `{role}`."]
    return "\n".join([*lines, "", _table(settings)])


@cache
def command_reference(name: str) -> str:
    """The output of ``tutelage NAME --help``."""
    environment = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1"}
    command = [sys.executable, "-m", "tutelage", *name.split(), "--help"]
    shown = subprocess.run(command, env=environment, cwd=DOCS.parent, capture_output=True, text=True, check=True)
    return "```text\n" + "\n".join(line.rstrip() for line in shown.stdout.strip().splitlines()) + "\n```"


@cache
def _sections() -> dict[type[Settings], list[str]]:
    """Every settings class with a table on the page of keys → the keys at which it may stand."""
    places: dict[type[Settings], list[str]] = {}
    _find_places(Recipe, "", places)
    nested: dict[type[Settings], list[str]] = {}
    for name in METHODS:
        _find_places(find_settings(name), "", nested)
    for model, found in nested.items():
        if model not in places and found[0]:  # without a place: the settings of a method itself
            places[model] = [f"stages.<name>.method.{place}" for place in dict.fromkeys(found)]
    return places


def _find_places(model: type[Settings], place: str, places: dict[type[Settings], list[str]]) -> None:
    """Note for every settings class the keys at which it may stand, in the order of the schema."""
    known = places.setdefault(model, [])
    known.append(place)
    if len(known) > 1:
        return
    for name, field in model.model_fields.items():
        for inner, step in _nested(field.annotation):
            _find_places(inner, _joined(place, f"{name}{step}", inner), places)


def _joined(place: str, step: str, model: type[Settings]) -> str:
    kind = model.model_fields.get("kind")
    kinds = typing.get_args(kind.annotation) if kind is not None else ()
    path = f"{place.partition(' ')[0]}.{step}".lstrip(".")
    return f"{path} (kind: {kinds[0] if len(kinds) == 1 else 'a public data set'})" if _is_entry(kinds, step) else path


def _is_entry(kinds: tuple[Any, ...], step: str) -> bool:
    """Whether a class is one of several that stand under one key, told apart by their kind."""
    return len(kinds) == 1 or (bool(kinds) and step.endswith(".<name>"))


def _nested(annotation: Any, step: str = "") -> Iterator[tuple[type[Settings], str]]:
    """The settings classes in a type, and what leads to them: `.<name>` for a mapping."""
    if inspect.isclass(annotation) and issubclass(annotation, Settings):
        yield annotation, step
        return
    arguments = typing.get_args(annotation)
    if typing.get_origin(annotation) is dict:
        yield from _nested(arguments[1], f"{step}.<name>")
        return
    if typing.get_origin(annotation) is not typing.Literal:
        for inner in arguments:
            yield from _nested(inner, step)


def _section(model: type[Settings], places: list[str]) -> str:
    lines = [f"## {_title(model)}", "", _sentence(model.__doc__)]
    others = [place for place in dict.fromkeys(places) if place not in ("", places[0])]
    if others:
        lines.append("Also at " + ", ".join(f"`{place}`" for place in others) + ".")
    lines[2:] = textwrap.wrap(" ".join(lines[2:]), 120, break_long_words=False, break_on_hyphens=False)
    return "\n".join([*lines, "", _table(model)])


@cache
def _title(model: type[Settings]) -> str:
    """The first place of a group of keys; with its holders where several groups have it."""
    if model is Recipe:
        return "Top level"
    place = _sections()[model][0]
    shared = [other for other, places in _sections().items() if places[:1] == [place]]
    return f"`{place}`" if len(shared) == 1 else f"`{place}` ({', '.join(_holders(model))})"


def _holders(model: type[Settings]) -> Iterator[str]:
    """The kinds of stages, and the methods, whose settings hold a group of keys directly."""
    stages = {kind.model_fields["kind"].default: kind for kind in _sections() if issubclass(kind, StageSettings)}
    for name, holder in {**stages, **{name: find_settings(name) for name in METHODS}}.items():
        fields = holder.model_fields.values()
        if any(inner is model for field in fields for inner, _ in _nested(field.annotation)):
            yield f"`{name}`"


def _table(model: type[Settings]) -> str:
    lines = ["| key | value | default | meaning |", "| --- | --- | --- | --- |"]
    for name, field in model.model_fields.items():
        meaning = _sentence(field.description) or {"kind": "Selects the settings of its section."}.get(name, "")
        cells = (f"`{name}`", _value(field), _default(field), meaning)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) if model.model_fields else "No settings."


def _value(field: FieldInfo) -> str:
    value = _type(field.annotation) + _bounds(field.metadata)
    return f"number (the weight) or {value}" if WeightOrSettings in field.metadata else value


def _bounds(metadata: typing.Iterable[Any]) -> str:
    found = [
        f"{word} {getattr(each, attribute)}"
        for each in metadata
        for attribute, word in _BOUNDS.items()
        if getattr(each, attribute, None) is not None
    ]
    return f" ({', '.join(found)})" if found else ""


def _type(annotation: Any) -> str:
    """A type in words."""
    if annotation in _PLAIN:
        return _PLAIN[annotation]
    if annotation is MethodChoice:
        return "a method's name, or `{name: NAME, ...}` with its settings"
    if inspect.isclass(annotation) and issubclass(annotation, Settings):
        return f"[keys](#{_anchor(annotation)})"
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _type(arguments[0]) + _bounds(_flat(arguments[1:]))
    if origin is typing.Literal:
        return ", ".join(f"`{json.dumps(value) if value is None else value}`" for value in arguments)
    if origin in (typing.Union, types.UnionType):
        kinds = list(dict.fromkeys(_type(each) for each in arguments))
        if len(kinds) > 1 and all(kind.startswith("[keys](") for kind in kinds):
            return "keys by kind: " + ", ".join(f"[{_kind(each)}](#{_anchor(each)})" for each in arguments)
        # The plain form first, null last.
        return " or ".join(sorted(kinds, key=lambda kind: (kind == "null", kind.startswith(("list", "mapping")))))
    if origin is list:
        return f"list of {_type(arguments[0])}"
    if origin is tuple:
        if arguments[-1] is Ellipsis:
            return f"list of {_type(arguments[0])}"
        kinds = list(dict.fromkeys(_type(each) for each in arguments))
        return f"[{len(arguments)} of: {kinds[0]}]" if len(kinds) == 1 else f"[{', '.join(kinds)}]"
    if origin is dict:
        inner = _type(arguments[1])
        return f"mapping: {_type(arguments[0])} → {f'({inner})' if ' or ' in inner else inner}"
    return str(getattr(annotation, "__name__", annotation))


def _kind(model: type[Settings]) -> str:
    kinds = typing.get_args(model.model_fields["kind"].annotation)
    return f"`{kinds[0]}`" if len(kinds) == 1 else "public data sets"


def _flat(metadata: typing.Iterable[Any]) -> Iterator[Any]:
    for each in metadata:
        yield from getattr(each, "metadata", ()) if isinstance(each, FieldInfo) else (each,)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "**required**"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, Settings):
        usual = type(value)().model_dump(mode="json")
        changed = {key: each for key, each in value.model_dump(mode="json").items() if each != usual[key]}
        return f"`{_flow(changed)}`" if changed else "defaults"
    if isinstance(value, tuple):
        value = list(value)
    return f"`{_flow(value)}`"


def _flow(value: Any) -> str:
    """A value as YAML on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_flow, value)) + "]"
    if isinstance(value, float):
        return f"{value:g}" if value == float(f"{value:g}") else str(value)
    return value or '""' if isinstance(value, str) else json.dumps(value)


def _anchor(model: type[Settings]) -> str:
    """The anchor of a group of keys: that of its heading, as forges and Sphinx form it."""
    return re.sub(r"[^\w\- ]", "", _title(model).lower()).replace(" ", "-")


def _sentence(text: str | None) -> str:
    return " ".join((text or "").split()).replace("``", "`")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
