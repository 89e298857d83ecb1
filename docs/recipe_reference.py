"""The reference of recipes and commands, read off the code when the manual is built.

A page asks for a part with a comment such as ``<!-- generated: recipe -->``; :func:`filled` puts it there. Every
settings class that can be reached from :class:`~tutelage.recipe.schema.Recipe` gets a section, and so does every
method, with its streams and its settings. Nothing is listed by hand.
"""

from __future__ import annotations

import inspect
import json
import re
import types
import typing
from collections.abc import Callable, Iterator
from typing import Any

import click
from pydantic.fields import FieldInfo

from tutelage.cli import program
from tutelage.methods import METHODS, find_method
from tutelage.methods.settings.distill_terms import WeightOrSettings
from tutelage.recipe.schema import Recipe
from tutelage.recipe.stages.train import MethodChoice
from tutelage.settings import Settings

_COMMAND_WIDTH = 100
_MARK = re.compile(r"^<!-- generated: ([a-z_ -]+) -->$", re.MULTILINE)
_PLAIN = {str: "text", int: "integer", float: "number", bool: "true or false", type(None): "null", Any: "any value"}
_BOUNDS = {"gt": "above", "ge": "from", "lt": "below", "le": "to", "multiple_of": "multiple of"}


def filled(page: str) -> str:
    """A page with every generated part in its place. Raises ``KeyError`` for a part that does not exist."""

    def part(mark: re.Match[str]) -> str:
        what, _, name = mark.group(1).partition(" ")
        makers: dict[str, Callable[[], str]] = {
            "recipe": recipe_reference,
            "method": lambda: method_reference(name),
            "command": lambda: command_reference(name),
        }
        return makers[what]()

    return _MARK.sub(part, page)


def recipe_reference() -> str:
    """All keys of a recipe, a section for each group of them."""
    places: dict[type[Settings], list[str]] = {}
    _find_places(Recipe, "", places)
    parts = []
    for model, found in places.items():
        if model is MethodChoice:
            continue  # has a section of its own, below
        parts.append(_section(model, "The top of a recipe" if model is Recipe else f"`{found[0]}`", found))
    parts.append(_methods())
    return "\n\n".join(parts)


def method_reference(name: str) -> str:
    """The streams and the settings of one method."""
    method = find_method(name)
    lines = ["| stream | masks are read | views | what it is |", "| --- | --- | --- | --- |"]
    for stream, needs in method.Settings.streams.items():
        views = ", ".join([f"`{view}`" for view in needs.views] + [f"(`{view}`)" for view in needs.optional])
        lines.append(f"| `{stream}` | {'yes' if needs.labels else 'no'} | {views} | {needs.about} |")
    if method.Settings.teachers:
        needed = ", ".join(f"`{role}`" for role in method.Settings.teachers)
        lines += ["", f"Trained nets that it consults, under `inputs`: {needed}."]
    if method.Settings.fitted_inputs:
        needed = ", ".join(f"`{role}`" for role in method.Settings.fitted_inputs)
        lines += ["", f"`fit` stages that it starts from, under `inputs`: {needed}."]
    if method.Settings.fitted_inputs:
        needed = ", ".join(f"`{role}`" for role in method.Settings.fitted_inputs)
        lines += ["", f"What `fit` stages made, under `inputs` as well: {needed}."]
    return "\n".join([*lines, "", _table(method.Settings)])


def command_reference(name: str) -> str:
    """The help of one command, or of the program where no name is given."""
    path = f"tutelage {name}".rstrip()
    context = click.Context(commands()[name] if name else program(), info_name=path, terminal_width=_COMMAND_WIDTH)
    return f"```text\n{context.get_help().rstrip()}\n```"


def commands() -> dict[str, click.Command]:
    """All commands by name."""
    return program().commands


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


def _section(model: type[Settings], title: str, places: list[str]) -> str:
    lines = [f"({_anchor(model)})=", f"### {title}", "", _sentence(model.__doc__)]
    others = [place for place in places[1:] if place]
    if others:
        lines.append("Also at " + ", ".join(f"`{place}`" for place in others) + ".")
    return "\n".join([*lines, "", _table(model)])


def _methods() -> str:
    names = ", ".join(f"[`{name}`](methods/{name}.md)" for name in METHODS)
    parts = [
        "\n".join(
            [
                f"({_anchor(MethodChoice)})=",
                "### `stages.<name>.method`",
                "",
                f"The method and its settings: `method: supervised`, or `method: {{name: pixel_kd, weight: 2}}`. "
                f"`name` is one of {names}.",
            ]
        )
    ]
    nested: dict[type[Settings], list[str]] = {}
    for name in METHODS:
        method = find_method(name)
        head = f"### `stages.<name>.method`, name: `{name}`"
        parts.append("\n".join([head, "", _sentence(method.__doc__), "", method_reference(name)]))
        _find_places(method.Settings, "", nested)
    reachable: dict[type[Settings], list[str]] = {}
    _find_places(Recipe, "", reachable)
    for model, found in nested.items():
        if model not in reachable and found[0]:  # what stands nowhere is a method's own settings
            places = [f"stages.<name>.method.{place}" for place in dict.fromkeys(found)]
            parts.append(_section(model, f"`{places[0]}`", places))
    return "\n\n".join(parts)


def _table(model: type[Settings]) -> str:
    lines = ["| key | value | default | meaning |", "| --- | --- | --- | --- |"]
    for name, field in model.model_fields.items():
        meaning = _sentence(field.description) or {"kind": "Tells it from the others of its section."}.get(name, "")
        cells = (f"`{name}`", _value(field), _default(field), meaning)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) if model.model_fields else "It has no settings."


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
        return "**needed**"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, Settings):
        usual = type(value)().model_dump(mode="json")
        changed = {key: each for key, each in value.model_dump(mode="json").items() if each != usual[key]}
        return f"`{_flow(changed)}`" if changed else "its defaults"
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
    return f"keys-{model.__name__.lower()}"


def _sentence(text: str | None) -> str:
    return " ".join((text or "").split()).replace("``", "`")
