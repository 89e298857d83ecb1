"""The list of planted faults is up to date: each can be planted, and the tests that must notice it exist."""

from __future__ import annotations

from collections import Counter

from tests.mutants import MUTANTS, faults


def test_each_fault_can_be_planted_in_exactly_one_place() -> None:
    assert faults(MUTANTS) == []


def test_no_fault_is_listed_twice() -> None:
    several = [one for one, count in Counter((one.file, one.old, one.new) for one in MUTANTS).items() if count > 1]
    assert several == []
