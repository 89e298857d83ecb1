"""Error codes: each code of the source has a row in the manual, and each row a raise in the source."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.errors import raises_code
from tutelage.errors import DataError, TutelageError

ROOT = Path(__file__).resolve().parents[1]
CODE = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


def _trees() -> list[ast.Module]:
    return [ast.parse(path.read_text(encoding="utf-8")) for path in sorted((ROOT / "tutelage").rglob("*.py"))]


def _name(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def error_classes(trees: list[ast.Module]) -> dict[str, ast.ClassDef | None]:
    """TutelageError and its subclasses by name, in all modules."""
    definitions = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    found: dict[str, ast.ClassDef | None] = {"TutelageError": None}
    while True:
        more = {one.name: one for one in definitions if one.name not in found and {*map(_name, one.bases)} & {*found}}
        if not more:
            return found
        found |= more


def _constructions(trees: list[ast.Module]) -> Iterator[ast.Call]:
    """Calls of an error class, and of `super().__init__` inside one."""
    classes = error_classes(trees)
    own = [node for one in classes.values() if one is not None for node in ast.walk(one)]
    for node in (*own, *(node for tree in trees for node in ast.walk(tree))):
        if isinstance(node, ast.Call) and (
            _name(node.func) in classes or (node in own and _name(node.func) == "__init__")
        ):
            yield node


def codes(trees: list[ast.Module]) -> set[str]:
    """Codes where errors are made: literals, either side of a conditional too, before a message.

    Errors of a recipe are made as ``Fault(place, code, text)``; those of its values as tuples (code, text).
    """
    calls = [call.args[0] for call in _constructions(trees) if len(call.args) >= 2]
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.Call) and _name(node.func) == "Fault" and len(node.args) == 3:
            calls.append(node.args[1])
        if isinstance(node, ast.FunctionDef) and node.name == "_sentence":
            calls += [
                each.value.elts[0]
                for each in ast.walk(node)
                if isinstance(each, ast.Return) and isinstance(each.value, ast.Tuple)
            ]
    options = [option for one in calls for option in ((one.body, one.orelse) if isinstance(one, ast.IfExp) else (one,))]
    found = {one.value for one in options if isinstance(one, ast.Constant) and isinstance(one.value, str)}
    return {code for code in found if CODE.fullmatch(code)}


def _rows() -> list[list[str]]:
    text = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in row] for row in rows]


def test_each_code_has_a_row_and_each_row_a_code() -> None:
    documented = [row[0].strip("`") for row in _rows()]
    assert documented == sorted(set(documented))
    found = codes(_trees())
    assert found - set(documented) == set(), "codes without a row in docs/errors.md"
    assert set(documented) - found == set(), "rows of docs/errors.md without a raise"


def test_rows_are_complete() -> None:
    for row in _rows():
        assert len(row) == 4, row
        assert all(row), row


def test_codes_of_all_ways_to_raise_are_found() -> None:
    source = """
class OwnError(DataError):
    def __init__(self, step):
        super().__init__("one-code", f"stopped after {step}", "again")
class DataError(TutelageError): ...
def make(): return OwnError("two-codes", "message")
def either(x): raise errors.TutelageError("three-codes" if x else "four-codes", "message")
def other(): raise ValueError("no-code", "message")
def sentence(): raise DataError("A sentence.", "a remedy")
"""
    assert codes([ast.parse(source)]) == {"one-code", "two-codes", "three-codes", "four-codes"}


def test_an_error_holds_code_message_and_remedy() -> None:
    with raises_code("mask-value", "a.png", "remove it") as error:
        raise DataError("mask-value", "a.png: mask values without a class: 7", "remove it")
    assert error.value.remedy == "remove it"
    assert error.value.message not in error.value.remedy
    with pytest.raises(AssertionError), raises_code("mask-value"):
        raise TutelageError("mask-colours", "mask holds colours: a.png", "map them")
