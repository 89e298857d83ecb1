"""YAML that remembers where everything stood, so that an error can name its line.

Plain YAML only: tags (``!!python/object`` and their like) and keys that occur twice are errors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tutelage.errors import RecipeError

COMMAND_LINE = -1


@dataclass
class Document:
    """A YAML file as plain Python, with the line of every key and item."""

    name: str
    content: Any
    lines: dict[tuple[str | int, ...], int] = field(default_factory=dict)
    keys: set[tuple[str | int, ...]] = field(default_factory=set)
    """Every key that was written out (not merged in from an anchor)."""

    def where(self, path: Sequence[str | int]) -> str:
        """The place of a path, or of the nearest thing around it: ``recipe.yaml:12`` or ``command line``."""
        parts = tuple(path)
        while parts and parts not in self.lines:
            parts = parts[:-1]
        line = self.lines.get(parts, 1)
        return "command line" if line == COMMAND_LINE else f"{self.name}:{line}"


def read(path: Path) -> Document:
    """Read a YAML file. Raises :class:`RecipeError` naming the file and line of what cannot be read."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RecipeError(f"recipe not found: {path}", "check the path; `tutelage init` writes a new one") from None
    except IsADirectoryError:
        raise RecipeError(f"a recipe is a YAML file, this is a folder: {path}", "name the file in it") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"recipe cannot be read: {path} ({error})", "it must be a UTF-8 text file") from None
    return parse(text, str(path))


def parse(text: str, name: str) -> Document:
    """Parse YAML text; see :func:`read`."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise _unreadable(error, name) from None
    document = Document(name, {})
    if node is not None:
        document.content = _plain(node, (), document)
    return document


def _unreadable(error: yaml.YAMLError, name: str) -> RecipeError:
    mark = getattr(error, "problem_mark", None)
    line = "" if mark is None else f":{mark.line + 1}"
    problem = getattr(error, "problem", None) or str(error).splitlines()[0]
    return RecipeError(f"{name}{line}: not valid YAML: {problem}", "check indentation, colons and quotes there")


def _plain(node: yaml.Node, path: tuple[str | int, ...], document: Document) -> Any:
    line = node.start_mark.line + 1
    document.lines.setdefault(path, line)
    if not node.tag.startswith("tag:yaml.org,2002:") or node.tag.startswith("tag:yaml.org,2002:python"):
        raise RecipeError(f"{document.name}:{line}: YAML tag {node.tag!r} is not allowed", "write a plain value")
    if isinstance(node, yaml.MappingNode):
        result: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                for part in [value_node] if isinstance(value_node, yaml.MappingNode) else value_node.value:
                    anchored = Document(document.name, None)
                    result = {**_plain(part, path, anchored), **result}
                    document.lines = {**anchored.lines, **document.lines}
                continue
            key = _scalar(key_node, document)
            place = (*path, key)
            key_line = key_node.start_mark.line + 1
            if place in document.keys:
                raise RecipeError(
                    f"{document.name}:{key_line}: key {key!r} occurs twice (first on line {document.lines[place]})",
                    "keep one of them",
                )
            document.lines[place] = key_line
            document.keys.add(place)
            result[key] = _plain(value_node, place, document)
        return result
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, (*path, index), document) for index, item in enumerate(node.value)]
    return _scalar(node, document)


def _scalar(node: yaml.Node, document: Document) -> Any:
    try:
        return _construct(node)
    except yaml.YAMLError as error:
        raise _unreadable(error, document.name) from None


def _construct(node: yaml.Node) -> Any:
    loader = yaml.SafeLoader("")
    try:
        return loader.construct_object(node, deep=True)
    finally:
        loader.dispose()
