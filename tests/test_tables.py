"""Tables as plain text: aligned, not cut, without escape codes, also where a terminal or colours are forced."""

from __future__ import annotations

import pytest

from tutelage.nets.catalogue import rows
from tutelage.tables import aligned, clean_table, model_table


def test_columns_are_aligned_and_nothing_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setenv("FORCE_COLOR", "1")
    long = "x" * 300
    assert aligned([("a", "1.5", long), ("bcd", "10.25", "[red]not markup[/red]\nsecond line")], numbers=[1]) == [
        f"a      1.5  {long}",
        "bcd  10.25  [red]not markup[/red]",
        "            second line",
    ]


def test_models_have_two_lines_each() -> None:
    found = rows()
    lines = model_table(found, "512x1024", 19).splitlines()
    assert len(lines) == 1 + 2 * len(found)
    start = lines[0].index("(multiply-adds")
    assert all(line[start:].startswith("encoder: ") and not line[:start].strip() for line in lines[2::2])


def test_nothing_to_remove() -> None:
    assert clean_table([], really=False) == "nothing to remove"
