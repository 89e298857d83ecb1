"""YAML with the line of every key and item, so that an error can name its line.

Plain YAML only: tags (``!!python/object`` and their like), duplicate keys, keys that are not single values and
anchors that contain themselves are errors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tutelage.errors import RecipeError
from tutelage.settings import Place

COMMAND_LINE = -1
_LARGEST = 100_000


@dataclass
class Document:
    """A YAML file as plain Python, with the line of every key and item."""

    name: str
    content: Any
    lines: dict[Place, int] = field(default_factory=dict)
    keys: set[Place] = field(default_factory=set)
    """Every key written in place (not merged in from an anchor)."""

    def where(self, path: Sequence[str | int]) -> str:
        """The place of a path, or of the nearest enclosing one: ``recipe.yaml:12`` or ``command line``."""
        parts = tuple(path)
        while parts and parts not in self.lines:
            parts = parts[:-1]
        line = self.lines.get(parts, 1)
        return "command line" if line == COMMAND_LINE else f"{self.name}:{line}"


def read(path: Path) -> Document:
    """Read a YAML file. Raises :class:`RecipeError` with the file and line of the error."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RecipeError(
            "recipe-missing", f"recipe not found: {path}", "check the path; `tutelage init` writes a new recipe"
        ) from None
    except IsADirectoryError:
        raise RecipeError(
            "not-a-recipe", f"expected a YAML file, got a folder: {path}", "name the recipe file in it"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        text = f"recipe cannot be read: {path} ({error})"
        raise RecipeError("recipe-unreadable", text, "expected a UTF-8 text file") from None
    return parse(text, str(path))


def parse(text: str, name: str) -> Document:
    """Parse YAML text; see :func:`read`."""
    document = Document(name, {})
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if node is not None:
            document.content = _Conversion(name).plain(node, (), document)
    except yaml.YAMLError as error:
        raise _unreadable(error, name) from None
    except RecursionError:
        raise RecipeError("invalid-yaml", f"{name}: nested too deeply for a recipe", "use fewer levels") from None
    return document


def value_of(text: str, name: str) -> Any:
    """``text`` parsed as YAML, or ``text`` itself where it is invalid YAML. Raises as :func:`read`."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        return None if node is None else _Conversion(name).plain(node, (), Document(name, None))
    except yaml.YAMLError:
        return text


def _unreadable(error: yaml.YAMLError, name: str) -> RecipeError:
    mark = getattr(error, "problem_mark", None)
    line = "" if mark is None else f":{mark.line + 1}"
    problem = getattr(error, "problem", None) or str(error).splitlines()[0]
    if problem.startswith("but "):  # the second half of a sentence
        problem = f"{getattr(error, 'context', None) or ''} {problem}".strip()
    text = f"{name}{line}: invalid YAML: {problem}"
    return RecipeError("invalid-yaml", text, "check indentation, colons and quotes there")


class _Conversion:
    """Converts YAML nodes to plain Python and records their lines."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._open: list[yaml.Node] = []
        """The enclosing nodes: an anchor among them contains itself."""
        self._count = 0

    def plain(self, node: yaml.Node, path: Place, document: Document) -> Any:
        """The value of ``node``; its lines and keys are added to ``document``."""
        document.lines.setdefault(path, _line(node))
        self._count += 1
        if node in self._open:
            raise self._fault(node, "an anchor contains itself", "write out the value in place of `*name`")
        if self._count > _LARGEST:
            raise self._fault(node, "too long for a recipe", "use fewer anchors")
        if not node.tag.startswith("tag:yaml.org,2002:") or node.tag.startswith("tag:yaml.org,2002:python"):
            raise self._fault(node, f"YAML tag {node.tag!r} is not allowed", "write a plain value")
        self._open.append(node)
        try:
            if isinstance(node, yaml.MappingNode):
                return self._mapping(node, path, document)
            if isinstance(node, yaml.SequenceNode):
                return [self.plain(item, (*path, index), document) for index, item in enumerate(node.value)]
            return _scalar(node)
        finally:
            self._open.pop()

    def _mapping(self, node: yaml.MappingNode, path: Place, document: Document) -> dict[Any, Any]:
        result: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                for part in value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]:
                    result = {**self._merged(part, path, document), **result}
                continue
            if not isinstance(key_node, yaml.ScalarNode):
                raise self._fault(key_node, "expected a single value as key", "write `name: ...`")
            key = _scalar(key_node)
            place = (*path, key)
            if place in document.keys:
                first = document.lines[place]
                raise self._fault(key_node, f"duplicate key {key!r} (first on line {first})", "keep one of them")
            document.lines[place] = _line(key_node)
            document.keys.add(place)
            result[key] = self.plain(value_node, place, document)
        return result

    def _merged(self, node: yaml.Node, path: Place, document: Document) -> dict[Any, Any]:
        """The mapping that ``<<`` merges in; keys beside it may override its keys."""
        if not isinstance(node, yaml.MappingNode):
            raise self._fault(node, "`<<` merges mappings only", "write `<<: *name` for the &name of a mapping")
        anchored = Document(self.name, None)
        content: dict[Any, Any] = self.plain(node, path, anchored)
        document.lines = {**anchored.lines, **document.lines}
        return content

    def _fault(self, node: yaml.Node, what: str, remedy: str) -> RecipeError:
        return RecipeError("invalid-yaml", f"{self.name}:{_line(node)}: {what}", remedy)


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _scalar(node: yaml.Node) -> Any:
    loader = yaml.SafeLoader("")
    try:
        return loader.construct_object(node, deep=True)
    finally:
        loader.dispose()
