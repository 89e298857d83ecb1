"""YAML with its lines, and what is refused of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tutelage.errors import RecipeError
from tutelage.recipe.document import COMMAND_LINE, Document, parse, read, value_of


def refused(text: str) -> RecipeError:
    with pytest.raises(RecipeError) as raised:
        parse(text, "r.yaml")
    assert raised.value.remedy
    return raised.value


def test_content_is_plain_python() -> None:
    text = "a: 1\nb: [x, 2.5, null, true, {c: d}]\ne: |\n  two\n  lines\nf: ''\n"
    assert parse(text, "r").content == {"a": 1, "b": ["x", 2.5, None, True, {"c": "d"}], "e": "two\nlines\n", "f": ""}


def test_every_key_and_item_knows_its_line() -> None:
    document = parse("a: 1\n\n# comment\nb:\n  c: x\n  d:\n    - y\n    - {e: z}\n", "r.yaml")
    lines = {("a",): 1, ("b",): 4, ("b", "c"): 5, ("b", "d"): 6, ("b", "d", 0): 7, ("b", "d", 1, "e"): 8}
    assert {path: document.lines[path] for path in lines} == lines
    assert document.where(("b", "d", 1, "e")) == "r.yaml:8"
    assert document.where(("b", "d", 1, "missing", "deeper")) == "r.yaml:8", "the nearest thing around it"
    assert document.where(("nowhere",)) == "r.yaml:1"


def test_what_came_from_the_command_line_says_so() -> None:
    document = Document("r.yaml", {}, {("a",): COMMAND_LINE})
    assert document.where(("a", "b")) == "command line"


@pytest.mark.parametrize("text", ["", "\n\n", "# only a comment\n", "---\n"])
def test_an_empty_file_has_no_keys(text: str) -> None:
    assert not parse(text, "r").content


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: 1\n\tb: 2\n", 2),
        ("a: 1\nb: [1, 2\n", 3),
        ("a: 1\nb: 'x\n", 3),
        ("a: 1\n b: 2\n", 2),
        ("a: 1\nb: *nowhere\n", 2),
        ("a: 1\n---\nb: 2\n", 2),
        ("a: 1\nb: @x\n", 2),
        ("a: 1\nb: =\n", 2),
    ],
)
def test_invalid_yaml_is_refused_with_its_line(text: str, line: int) -> None:
    error = refused(text)
    assert error.code == "invalid-yaml"
    assert error.message.startswith(f"r.yaml:{line}: ")


def test_a_character_that_cannot_be_printed() -> None:
    assert refused("a: \x00\n").code == "invalid-yaml"


@pytest.mark.parametrize(
    "tag", ["!!python/object:os.system", "!!python/name:os.system", "!mine", "!<tag:x.org,2000:y>"]
)
def test_tags_are_refused_and_nothing_is_made_of_them(tag: str) -> None:
    assert refused(f"a: 1\nb: {tag} x\n").message.startswith("r.yaml:2: ")
    assert refused(f"a: 1\n{tag} b: x\n").message.startswith("r.yaml:2: "), "on a key too"
    assert refused(f"{tag}\na: 1\n").code == "invalid-yaml"


@pytest.mark.parametrize(
    ("text", "line", "first"),
    [
        ("a: 1\nb: 2\na: 3\n", 3, 1),
        ("x:\n  a: 1\n  a: 1\n", 3, 2),
        ("x: {a: 1,\n  b: 2, a: 1}\n", 2, 1),
        ("x:\n- a: 1\n  a: 1\n", 3, 2),
        ("1: x\n0x1: y\n", 2, 1),
    ],
)
def test_a_key_that_occurs_twice_is_refused(text: str, line: int, first: int) -> None:
    message = refused(text).message
    assert message.startswith(f"r.yaml:{line}: duplicate key ")
    assert message.endswith(f"(first on line {first})")


@pytest.mark.parametrize("text", ["? [a, b]\n: 1\n", "? {a: b}\n: 1\n", "{[a]: 1}\n"])
def test_a_key_that_is_no_single_value_is_refused(text: str) -> None:
    assert refused(text).message.startswith("r.yaml:1: ")


# Anchors and merges


def test_an_anchor_stands_for_its_value_at_each_place() -> None:
    content = parse("a: &x {b: [1]}\nc: *x\n", "r").content
    assert content == {"a": {"b": [1]}, "c": {"b": [1]}}
    content["c"]["b"].append(2)
    assert content["a"] == {"b": [1]}, "an override of one must not change the other"


def test_merged_keys_give_way_to_written_ones_before_and_after() -> None:
    document = parse("a: &x {b: 1, c: 2, d: 3}\ne:\n  b: 9\n  <<: *x\n  c: 8\n", "r")
    assert document.content["e"] == {"b": 9, "c": 8, "d": 3}
    assert document.lines["e", "b"] == 3
    assert document.lines["e", "c"] == 5
    assert document.lines["e", "d"] == 1, "a fault in it stands where it is written"


def test_of_several_merges_the_first_counts() -> None:
    text = "a: &a {x: 1, y: 1}\nb: &b {y: 2, z: 2}\nc: {<<: [*a, *b], z: 3}\nd: {<<: [*b, *a]}\n"
    content = parse(text, "r").content
    assert content["c"] == {"x": 1, "y": 1, "z": 3}
    assert content["d"] == {"x": 1, "y": 2, "z": 2}


def test_a_merge_of_a_merge() -> None:
    assert parse("a: &a {x: 1}\nb: &b {<<: *a, y: 2}\nc: {<<: *b}\n", "r").content["c"] == {"x": 1, "y": 2}


@pytest.mark.parametrize("value", ["5", "null", "[5]", "[[1]]", "text"])
def test_only_mappings_are_merged(value: str) -> None:
    assert refused(f"a: 1\n<<: {value}\n").message.startswith("r.yaml:2: ")


@pytest.mark.parametrize("text", ["a: &x [*x]\n", "a: &x {b: *x}\n", "a: &x {<<: *x}\n", "&x [a, {b: [*x]}]\n"])
def test_an_anchor_that_holds_itself_is_refused(text: str) -> None:
    assert refused(text).message.startswith("r.yaml:1: ")


def test_anchors_that_blow_up_are_refused() -> None:
    levels = [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9)]
    assert refused("a0: &a0 [x]\n" + "\n".join(levels)).code == "invalid-yaml"


def test_what_is_nested_too_deeply_is_refused() -> None:
    assert refused("[" * 5000).code == "invalid-yaml"


# Files


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"recipe not found: .*nowhere\.yaml"):
        read(tmp_path / "nowhere.yaml")
    with pytest.raises(RecipeError, match="got a folder"):
        read(tmp_path)
    (tmp_path / "latin.yaml").write_bytes("name: grün\n".encode("latin-1"))
    with pytest.raises(RecipeError, match=r"latin\.yaml"):
        read(tmp_path / "latin.yaml")


def test_a_file_with_byte_order_mark_and_windows_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: 1\r\nb: x\r\n")
    assert read(path).content == {"a": 1, "b": "x"}


# Values on the command line


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("x", "x"),
        ("", None),
        ("null", None),
        ("[1, a]", [1, "a"]),
        ("{a: {b: 1}}", {"a": {"b": 1}}),
        ("no YAML: at: all", "no YAML: at: all"),
        ("@x", "@x"),
        ("[1", "[1"),
    ],
)
def test_values(text: str, value: object) -> None:
    assert value_of(text, "command line") == value


@pytest.mark.parametrize("text", ["{a: 1, a: 2}", "!!python/name:os.system x", "&x [*x]"])
def test_values_have_the_checks_of_files(text: str) -> None:
    with pytest.raises(RecipeError, match="command line:1: "):
        value_of(text, "command line")
