"""Names of classes in subsets and groups: what is refused, and what they are called afterwards."""

from __future__ import annotations

import pytest

from tests.errors import raises_code
from tutelage.evaluation.class_groups import class_ids, merged_names, same_groups

NAMES = ("soil", "crop", "weed", "stone")


def test_groups_come_before_the_rest() -> None:
    assert class_ids({"plants": ["weed", "crop"]}, NAMES, "subsets") == {"plants": [2, 1]}
    assert merged_names({"plants": ["weed", "crop"]}, NAMES, "merged") == ["plants", "soil", "stone"]
    assert merged_names({"crop": ["weed", "crop"]}, NAMES, "merged") == ["crop", "soil", "stone"]


@pytest.mark.parametrize(
    ("groups", "code", "facts"),
    [
        ({"plants": ["crop", "tree"]}, "unknown-class", ["merged.plants", "tree"]),
        ({"plants": ["crop", "crop"]}, "duplicate-name", ["merged.plants", "crop"]),
        ({"one": ["crop", "weed"], "other": ["weed"]}, "duplicate-name", ["weed"]),
        ({"soil": ["crop", "weed"]}, "duplicate-name", ["merged.soil"]),
    ],
)
def test_what_cannot_be_merged(groups: dict[str, list[str]], code: str, facts: list[str]) -> None:
    with raises_code(code, *facts):
        merged_names(groups, NAMES, "merged")


def test_the_order_of_a_group_does_not_matter() -> None:
    assert same_groups({"a": ["x", "y"], "b": ["z"]}, {"b": ["z"], "a": ["y", "x"]})
    assert not same_groups({"a": ["x", "y"]}, {"a": ["x"]})
    assert not same_groups({"a": ["x"]}, {"b": ["x"]})
