"""The base of all settings, and the marks that a setting's type may carry.

Each package defines the settings of its own code in modules that do not import torch; :mod:`tutelage.recipe` combines
them. Defaults, bounds, docstrings, the JSON schema, the reference manual and error messages come from these classes.

A setting that names something carries :class:`Ref` in its type::

    net: Annotated[str, Ref("trained")]
    data: Annotated[str | list[str], Ref("data", masks=True)]

From these marks follow the stages that a stage depends on, existence checks, which masks are opened, the rewriting of
names inside a ladder's rungs, and the input keys. A setting that does not change results carries :data:`NOT_IN_KEY`.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict

WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
"""Endings of weight files: a start weight with one of them is a file, any other a stage."""

Place = tuple[str | int, ...]
"""Path of keys and indices to a value."""

_NOTHING = object()


@dataclass(frozen=True)
class Ref:
    """Marks a setting, or the items of a list or mapping, as names of something."""

    kind: Literal["data", "net", "trained", "fit", "scores", "input", "start", "stream", "file", "class"]
    """`data`: a data set (`name/split`) or a stage that makes one; `net`: a net of the recipe; `trained`: a net of an
    earlier stage (`stage` or `stage.net`); `fit`, `scores`: such a stage; `input`: a trained net or a fit, by its role;
    `start`: a trained net or a weight file; `stream`: another stream of the stage; `file`: a path relative to the
    recipe; `class`: a class of the task."""
    masks: bool = False
    """Whether masks of the data are opened."""
    use: str = ""
    """What the data are used for: `train`, `source`, `target`, `unlabeled`, `val` or `test`."""
    trains: bool = False
    """Whether nets are trained on the data."""
    people: bool = False
    """Whether the masks must be made by people rather than by a net."""
    fits: tuple[str, ...] = ()
    """The kinds of fits that are accepted."""


@dataclass(frozen=True)
class Reference:
    """One name that a settings object holds, and where."""

    place: Place
    ref: Ref
    value: str

    def of(self, ref: Ref) -> Reference:
        """The same name with another mark."""
        return Reference(self.place, ref, self.value)

    @property
    def head(self) -> str:
        """The name without a split or net: ``city`` of ``city/train``, ``teacher`` of ``teacher.ema``."""
        return (
            self.value.partition("/")[0].partition(".")[0] if self.ref.kind != "data" else self.value.partition("/")[0]
        )


@dataclass(frozen=True)
class _NotInKey:
    """See :data:`NOT_IN_KEY`."""


NOT_IN_KEY = _NotInKey()
"""Marks a setting that does not change what a stage makes."""


class Settings(BaseModel):
    """Frozen, typed settings: an unknown key is an error, values are checked when they are read."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    def refined(self, reference: Reference) -> Reference | None:
        """A reference with what only the other settings can tell; ``None`` where the value is not a name after all."""
        return reference

    def written(self, content: dict[str, Any]) -> dict[str, Any]:
        """These settings as a recipe writes them out, given the content of every field; all of it by default."""
        return content


S = TypeVar("S", bound=Settings)


def references(settings: Settings) -> Iterator[Reference]:
    """Every name that ``settings`` hold, in the order of the fields."""
    found: list[Reference] = []

    def collect(reference: Reference) -> str:
        found.append(reference)
        return reference.value

    renamed(settings, collect)
    yield from found


def renamed(settings: S, change: Callable[[Reference], str]) -> S:
    """A copy of ``settings`` with every name replaced by what ``change`` gives."""

    def leaf(value: Any, ref: Ref | None, place: Place) -> Any:
        reference = _reference(settings, value, ref, place)
        return value if reference is None else change(reference)

    def join(model: BaseModel, fields: dict[str, Any]) -> BaseModel:
        # Only what changes is set: which settings were given in the recipe stays known.
        changed = {name: value for name, value in fields.items() if value != getattr(model, name)}
        return model.model_copy(update=changed) if changed else model

    copy: S = _rebuilt(settings, (), leaf, join, lambda marks: True)
    return copy


def key_content(settings: Settings, replace: Callable[[Reference], Any]) -> dict[str, Any]:
    """``settings`` as JSON-like values, every name replaced, without those marked :data:`NOT_IN_KEY`."""

    def leaf(value: Any, ref: Ref | None, place: Place) -> Any:
        reference = _reference(settings, value, ref, place)
        return value if reference is None else replace(reference)

    content: dict[str, Any] = _rebuilt(settings, (), leaf, lambda model, fields: fields, lambda m: NOT_IN_KEY not in m)
    return content


def plain(settings: Settings) -> dict[str, Any]:
    """``settings`` as JSON-like values with every default written out, which read back to the same settings."""

    def join(model: BaseModel, fields: dict[str, Any]) -> dict[str, Any]:
        return model.written(fields) if isinstance(model, Settings) else fields

    content: dict[str, Any] = _lists(_rebuilt(settings, (), lambda value, ref, place: value, join, lambda marks: True))
    return content


def _reference(settings: Settings, value: Any, ref: Ref | None, place: Place) -> Reference | None:
    return None if ref is None or not isinstance(value, str) else settings.refined(Reference(place, ref, value))


def _lists(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _lists(it) for key, it in value.items()}
    return [_lists(it) for it in value] if isinstance(value, list | tuple) else value


_Leaf = Callable[[Any, Ref | None, Place], Any]
_Join = Callable[[BaseModel, dict[str, Any]], Any]


def _rebuilt(model: BaseModel, place: Place, leaf: _Leaf, join: _Join, keep: Callable[[Iterable[Any]], bool]) -> Any:
    """``model`` with its leaves replaced, joined level by level."""
    fields = {}
    for name, field in type(model).model_fields.items():
        if keep(field.metadata):
            value, ref = getattr(model, name), _mark(field.metadata)
            fields[name] = _value(value, field.annotation, ref, (*place, name), leaf, join, keep)
    return join(model, fields)


def _value(
    value: Any,
    annotation: Any,
    ref: Ref | None,
    place: Place,
    leaf: _Leaf,
    join: _Join,
    keep: Callable[[Iterable[Any]], bool],
) -> Any:
    if isinstance(value, BaseModel):
        return _rebuilt(value, place, leaf, join, keep)
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return _value(value, arguments[0], _mark(arguments[1:]) or ref, place, leaf, join, keep)
    if origin in (typing.Union, types.UnionType):
        member = next((it for it in arguments if _fits(value, it)), None)
        return _value(value, member, ref, place, leaf, join, keep)
    if isinstance(value, Mapping):
        inner = arguments[1] if len(arguments) == 2 else None
        return {key: _value(it, inner, ref, (*place, key), leaf, join, keep) for key, it in value.items()}
    if isinstance(value, list | tuple):
        inner = (
            [arguments[0]] * len(value)
            if len(arguments) != len(value) and arguments
            else arguments or (None,) * len(value)
        )
        made = [
            _value(it, kind, ref, (*place, index), leaf, join, keep)
            for index, (it, kind) in enumerate(zip(value, inner, strict=True))
        ]
        return type(value)(made)
    return leaf(value, ref, place)


def _mark(metadata: Iterable[Any]) -> Ref | None:
    return next((it for it in metadata if isinstance(it, Ref)), None)


def _fits(value: Any, annotation: Any) -> bool:
    """Whether ``value`` may be of this member of a union, as far as the shape tells."""
    if typing.get_origin(annotation) is Annotated:
        annotation = typing.get_args(annotation)[0]
    kind = typing.get_origin(annotation) or annotation
    if kind is Literal:
        return value in typing.get_args(annotation)
    if kind in (typing.Union, types.UnionType):
        return any(_fits(value, it) for it in typing.get_args(annotation))
    if kind is type(None):
        return value is None
    if kind is float:
        return isinstance(value, float | int) and not isinstance(value, bool)
    return isinstance(kind, type) and isinstance(value, kind)
