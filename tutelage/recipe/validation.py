"""Converts pydantic's validation errors to errors of a recipe: place in the file, key, expected value.

Pydantic includes the members of unions among the keys (``stages.score.evaluate.nets``, ``data.list[str]``), which no
recipe contains, and reports every member that does not match; here they become one error.
"""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

from tutelage.recipe.base import Fault, nearest
from tutelage.recipe.document import COMMAND_LINE, Document
from tutelage.settings import Place

_KEY = "[key]"  # pydantic's mark of an invalid key (rather than its value)


@dataclass(frozen=True)
class ValidationFinding:
    """One finding of a validator."""

    path: Place
    """The place, as the user wrote it."""
    holder: type[BaseModel] | None
    """The settings that the last key belongs to."""
    unfit: bool
    """Whether one member of a union does not fit the value."""
    kind: str
    """The validator's name for the error."""
    item: Any
    """The validator's record."""


def findings(error: ValidationError, prefix: Place, root: type[BaseModel]) -> list[ValidationFinding]:
    """The findings of a validator of ``root``, whose content stands at ``prefix``."""
    found = [_located(item, prefix, root) for item in error.errors(include_url=False)]
    # A partly matching member of a union gives a better message than one that does not match at all.
    around = {one.path[:length] for one in found for length in range(len(one.path))}
    return [one for one in found if not (one.unfit and one.path in around)]


def faults_of(found: Sequence[ValidationFinding], document: Document) -> list[Fault]:
    """An error for each finding; those of one union are combined."""
    result = []
    for one in found:
        alternatives = [other for other in found if other.unfit and other.path == one.path] if one.unfit else [one]
        code, text = _sentence(alternatives)
        result.append(Fault(one.path, code, f"{text}{_instead(one, document)}"))
    return list(dict.fromkeys(result))


def _instead(one: ValidationFinding, document: Document) -> str:
    """A hint where a misspelt override added a net or stage that lacks required keys."""
    made = one.path[:2]
    if one.kind != "missing" or len(one.path) < 3 or document.lines.get(made) != COMMAND_LINE:
        return ""
    others = [str(path[1]) for path in document.keys if len(path) == 2 and path[0] == made[0]]
    return f"; an override added {made[1]!r}{nearest(str(made[1]), others)}"


def _sentence(alternatives: Sequence[ValidationFinding]) -> tuple[str, str]:
    """Code and text."""
    one = next((each for each in alternatives if each.kind == "value_error"), alternatives[0])
    item, key = one.item, ".".join(map(str, one.path)) or "the recipe"
    if one.kind == "value_error":
        return "invalid-value", f"{key}: {item['msg'].removeprefix('Value error, ')} (got {_short(item['input'])})"
    if one.kind == "extra_forbidden":
        known = [] if one.holder is None else list(one.holder.model_fields)
        inside = _holding(one.holder, str(one.path[-1]))
        hint = f"; it is a key of {inside!r}" if inside else nearest(str(one.path[-1]), known)
        return "unknown-key", f"unknown key {key!r}{hint}"
    if one.kind == "missing":
        return "missing-key", f"missing key {key!r}"
    if one.kind == "invalid_key":
        return "invalid-key", f"key {key!r} must be text; put it in quotes"
    if one.kind == "union_tag_not_found":
        return "missing-key", f"missing key {f'{key}.kind'!r}"
    if one.kind == "union_tag_invalid":
        tags = re.findall(r"'([^']+)'", str(item.get("ctx", {}).get("expected_tags", "")))
        given = item["input"].get("kind") if isinstance(item["input"], dict) else item["input"]
        return "unknown-kind", f"{key}: unknown kind {given!r}{nearest(str(given), tags)}"
    if one.kind == "literal_error" and len(alternatives) == 1:
        hint = nearest(str(item["input"]), _literals(one))
        return "invalid-value", f"{key}: invalid value {_short(item['input'])}{hint}"
    subject = f"the name {one.path[-1]!r} in {key}" if item["loc"][-1] == _KEY else key
    wanted = " or ".join(dict.fromkeys(_wanted(each) for each in alternatives))
    return "invalid-value", f"{subject}: expected {wanted}, got {_short(item['input'])}"


def _holding(holder: type[BaseModel] | None, key: str) -> str:
    """The setting beside ``key`` in which it would be known; empty if there is none."""
    for name, field in ({} if holder is None else holder.model_fields).items():
        if any(_is_model(kind) and key in kind.model_fields for kind in _members(field.annotation)):
            return name
    return ""


def _wanted(one: ValidationFinding) -> str:
    if one.kind == "literal_error":
        return " or ".join(map(repr, _literals(one)))
    if one.kind == "string_pattern_mismatch":
        return f"text that matches {one.item['ctx']['pattern']}"
    message = re.sub(r"^\w+ should (be |have )?", "", one.item["msg"])
    message = re.sub(r" or (instance of|object to extract fields from).*", "", message)
    message = message.replace("a valid dictionary", "a mapping").replace("a valid tuple", "a list")
    return f"a value {message}" if message.startswith(("greater", "less")) else message


def _literals(one: ValidationFinding) -> list[str]:
    return re.findall(r"'([^']*)'", one.item["ctx"]["expected"]) or [one.item["ctx"]["expected"]]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _located(item: Any, prefix: Place, root: type[BaseModel]) -> ValidationFinding:
    """A finding, its path without names of union members."""
    path: Place = prefix
    types_: list[Any] = [root]
    holder: type[BaseModel] | None = root
    unfit = False
    for part in item["loc"]:
        # Of several types pydantic names the one it tried, and never None.
        unfit = len(types_) > 1
        if unfit:
            types_ = [one for one in types_ if _is_called(one, str(part))] or types_
        elif part != _KEY:
            path = (*path, part)
            holder = next((one for one in types_ if _is_model(one)), None)
            types_ = [inner for one in types_ for inner in _inside(one, part)]
    return ValidationFinding(path, holder, unfit, str(item["type"]), item)


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _is_called(kind: Any, label: str) -> bool:
    """Whether pydantic uses this name for a union's member: its tag (``kind``), or its type."""
    if _is_model(kind):
        tag = kind.model_fields.get("kind")
        return label in (() if tag is None else typing.get_args(tag.annotation)) or kind.__name__ in label
    name = getattr(typing.get_origin(kind) or kind, "__name__", str(kind))
    return label.removeprefix("constrained-").startswith(name.lower())


def _inside(kind: Any, part: str | int) -> list[Any]:
    """The types of the value under a key or index of a type."""
    if _is_model(kind):
        field = kind.model_fields.get(str(part))
        return [] if field is None else _members(field.annotation)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is dict:
        return _members(arguments[1])
    if origin is tuple and isinstance(part, int) and Ellipsis not in arguments:
        return _members(arguments[part]) if part < len(arguments) else []
    if origin in (list, tuple):
        return _members(arguments[0])
    return []


def _members(annotation: Any) -> list[Any]:
    """The types that an annotation allows, without None."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _members(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return [member for argument in typing.get_args(annotation) for member in _members(argument)]
    return [] if annotation is type(None) else [annotation]
