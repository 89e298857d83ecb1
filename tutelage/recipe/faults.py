"""What a validator found, in a user's words: where it stands, which key, what would be right.

A validator counts the members of unions among the keys (``stages.score.evaluate.nets``, ``data.list[str]``); a user
wrote no such key, and of several members that do not fit wants to hear in one sentence.
"""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

from tutelage.recipe.document import COMMAND_LINE, Document, Path_
from tutelage.recipe.references import nearest

_KEY = "[key]"  # how a validator says that a key, not its value, is meant


@dataclass(frozen=True)
class ValidationFinding:
    """One thing that a validator found."""

    path: Path_
    """Where, as the user wrote it."""
    holder: type[BaseModel] | None
    """The settings that the last key belongs to."""
    unfit: bool
    """Whether one member of a union says that the value is nothing for it."""
    kind: str
    """The validator's name for what is wrong."""
    item: Any
    """All that the validator says."""


def findings(error: ValidationError, prefix: Path_, root: type[BaseModel]) -> list[ValidationFinding]:
    """What a validator of ``root``, whose content stands at ``prefix``, found."""
    found = [_located(item, prefix, root) for item in error.errors(include_url=False)]
    # A member of a union that fits in part says more than those that do not fit at all.
    around = {one.path[:length] for one in found for length in range(len(one.path))}
    return [one for one in found if not (one.unfit and one.path in around)]


def worded(found: Sequence[ValidationFinding], document: Document) -> list[str]:
    """A line for each fault."""
    lines = []
    for one in found:
        alternatives = [other for other in found if other.unfit and other.path == one.path] if one.unfit else [one]
        lines.append(f"{document.where(one.path)}: {_sentence(alternatives)}{_instead(one, document)}")
    return list(dict.fromkeys(lines))


def _instead(one: ValidationFinding, document: Document) -> str:
    """What a misspelt override may have meant: it made a net or stage that lacks what every one has."""
    made = one.path[:2]
    if one.kind != "missing" or len(one.path) < 3 or document.lines.get(made) != COMMAND_LINE:
        return ""
    others = [str(path[1]) for path in document.keys if len(path) == 2 and path[0] == made[0]]
    return f"; an override made {made[1]!r}{nearest(str(made[1]), others)}"


def _sentence(alternatives: Sequence[ValidationFinding]) -> str:
    one = next((each for each in alternatives if each.kind == "value_error"), alternatives[0])
    item, key = one.item, ".".join(map(str, one.path)) or "the recipe"
    if one.kind == "value_error":
        return f"{key}: {item['msg'].removeprefix('Value error, ')} (given: {_short(item['input'])})"
    if one.kind == "extra_forbidden":
        known = [] if one.holder is None else list(one.holder.model_fields)
        return f"unknown key {key!r}{nearest(str(one.path[-1]), known)}"
    if one.kind == "missing":
        return f"{key!r} is missing"
    if one.kind == "invalid_key":
        return f"key {key!r} should be a text; put it in quotes"
    if one.kind in ("union_tag_invalid", "union_tag_not_found"):
        tags = re.findall(r"'([^']+)'", str(item.get("ctx", {}).get("expected_tags", "")))
        given = item["input"].get("kind") if isinstance(item["input"], dict) else item["input"]
        return f"{key}.kind is {given!r}{nearest(str(given), tags)}"
    if one.kind == "literal_error" and len(alternatives) == 1:
        return f"{key} is {_short(item['input'])}{nearest(str(item['input']), _literals(one))}"
    subject = f"the name {one.path[-1]!r} in {key}" if item["loc"][-1] == _KEY else key
    wanted = " or ".join(dict.fromkeys(_wanted(each) for each in alternatives)).replace(" or be ", " or ")
    return f"{subject} should {wanted} (given: {_short(item['input'])})"


def _wanted(one: ValidationFinding) -> str:
    if one.kind == "literal_error":
        return "be " + " or ".join(map(repr, _literals(one)))
    if one.kind == "string_pattern_mismatch":
        return f"match {one.item['ctx']['pattern']}"
    message = re.sub(r"^\w+ should ", "", one.item["msg"])
    message = re.sub(r" or (instance of|object to extract fields from).*", "", message)
    return message.replace("a valid dictionary", "a mapping").replace("a valid tuple", "a list")


def _literals(one: ValidationFinding) -> list[str]:
    return re.findall(r"'([^']*)'", one.item["ctx"]["expected"]) or [one.item["ctx"]["expected"]]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _located(item: Any, prefix: Path_, root: type[BaseModel]) -> ValidationFinding:
    """A finding whose path has no names of union members."""
    path: Path_ = prefix
    types_: list[Any] = [root]
    holder: type[BaseModel] | None = root
    unfit = False
    for part in item["loc"]:
        # Of several types the validator names the one that it tried; it does not count None among them.
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
    """Whether a validator calls a union's member so: by its tag (``kind``), or by its type."""
    if _is_model(kind):
        tag = kind.model_fields.get("kind")
        return label in (() if tag is None else typing.get_args(tag.annotation)) or kind.__name__ in label
    name = getattr(typing.get_origin(kind) or kind, "__name__", str(kind))
    return label.removeprefix("constrained-").startswith(name.lower())


def _inside(kind: Any, part: str | int) -> list[Any]:
    """The types that may stand under a key or index of a type."""
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
