"""Where in a stage stand the names of other stages, so that all code that follows or rewrites them agrees.

A place is a path of keys, `*` for any: `inputs.*`, `streams.*.data`. What stands there is a text or a list of texts,
each the name of a stage (`stage`, `stage.net`) or of something else (a data set, a file), which is nobody's business
here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

REFERENCES: Mapping[str, tuple[str, ...]] = {
    "train": (
        "inputs.*",
        "init.*",
        "streams.*.data",
        "streams.*.weights",
        "evaluate.data",
        "choose.data",
        "audit.data",
    ),
    "annotate": ("net", "data", "mixtures"),
    "fit": ("net", "data", "target", "entropies"),
    "transform": ("data", "target"),
}
"""Kind of stage → where it names other stages; kinds that are not here name none that a training could build upon."""


def rewritten(kind: str, content: Mapping[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    """A stage's ``content`` (plain values) with every reference changed."""
    result = dict(content)
    for place in REFERENCES.get(kind, ()):
        result = _at(result, place.split("."), change)
    return result


def named_in(kind: str, content: Mapping[str, Any]) -> list[str]:
    """All references of a stage's ``content`` (plain values), each once."""
    found: dict[str, None] = {}
    for place in REFERENCES.get(kind, ()):
        found.update(dict.fromkeys(_texts(content, place.split("."))))
    return list(found)


def _at(value: Any, place: Sequence[str], change: Callable[[str], str]) -> Any:
    if not place:
        if isinstance(value, str):
            return change(value)
        return [_at(each, (), change) for each in value] if isinstance(value, list) else value
    if not isinstance(value, Mapping):
        return value
    return {key: _at(inner, place[1:], change) if place[0] in ("*", key) else inner for key, inner in value.items()}


def _texts(value: Any, place: Sequence[str]) -> Iterator[str]:
    if place:
        for key, inner in value.items() if isinstance(value, Mapping) else ():
            if place[0] in ("*", key):
                yield from _texts(inner, place[1:])
    elif isinstance(value, str):
        yield value
    elif isinstance(value, list):
        yield from (each for each in value if isinstance(each, str))
