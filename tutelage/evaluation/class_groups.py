"""Scoring the same predictions in other classes: some of them (subsets), or several merged into one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tutelage.errors import RecipeError, RunError

ClassGroups = Mapping[str, Sequence[str]]
"""Name → names of classes."""


def class_ids(groups: ClassGroups, classes: Sequence[str], what: str) -> dict[str, list[int]]:
    """Ids of the classes of each group.

    Raises :class:`RecipeError`, naming ``what``, for an unknown or duplicate class.
    """
    ids = {name: number for number, name in enumerate(classes)}
    for group, members in groups.items():
        unknown = [name for name in members if name not in ids]
        if unknown:
            raise RecipeError(
                "unknown-class",
                f"{what}.{group}: unknown class: {', '.join(unknown)}",
                f"use one of: {', '.join(classes)}",
            )
        twice = sorted({name for name in members if list(members).count(name) > 1})
        if twice:
            raise RecipeError(
                "duplicate-name", f"{what}.{group}: duplicate class: {', '.join(twice)}", "name each class once"
            )
    return {group: [ids[name] for name in members] for group, members in groups.items()}


def merged_names(groups: ClassGroups, classes: Sequence[str], what: str) -> list[str]:
    """Names of the classes after merging: the groups, then the classes in none, in their order.

    Raises :class:`RecipeError`, naming ``what``, for an unknown class, a class in two groups, and a group with the name
    of a class that is not merged.
    """
    class_ids(groups, classes, what)
    grouped = [one for members in groups.values() for one in members]
    twice = sorted({one for one in grouped if grouped.count(one) > 1})
    if twice:
        raise RecipeError(
            "duplicate-name", f"{what}: class in several groups: {', '.join(twice)}", "name each class in one group"
        )
    rest = [name for name in classes if name not in grouped]
    taken = [name for name in groups if name in rest]
    if taken:
        raise RecipeError(
            "duplicate-name",
            f"{what}.{taken[0]} has the name of a class that is not merged",
            "give the group another name",
        )
    return [*groups, *rest]


def check_groups(subsets: ClassGroups, merged: ClassGroups, classes: Sequence[str], where: str) -> None:
    """Raise :class:`RecipeError`, beginning with ``where``, for invalid groups of classes."""
    class_ids(subsets, classes, f"{where}subsets")
    merged_names(merged, classes, f"{where}merged")


def same_groups(one: ClassGroups, other: ClassGroups) -> bool:
    """Whether both group the same classes under the same names, in any order."""
    return {name: set(members) for name, members in one.items()} == {
        name: set(members) for name, members in other.items()
    }


def class_groups(option: str, given: ClassGroups | Sequence[str]) -> ClassGroups:
    """Groups that are given as ``name=a,b``, as name → classes; ``option`` is named in errors."""
    if isinstance(given, Mapping):
        return given
    groups = {}
    for one in given:
        name, equals, classes = one.partition("=")
        if not (name and equals and classes):
            text = f"invalid class group {option} {one}; expected a name and classes"
            raise RunError("invalid-value", text, f"write {option} vegetation=crop,weed")
        groups[name] = [part.strip() for part in classes.split(",")]
    return groups
