"""Rules of the package's structure that no linter knows."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

import pytest

import tutelage
from tutelage.pipeline.stages import RUNNERS, find_runner
from tutelage.recipe.stages import Stage

PACKAGE = Path(tutelage.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))


def named_in(path: Path) -> set[str]:
    """The classes that a module's `isinstance` and `issubclass` calls name."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("isinstance", "issubclass"):
            found |= {it.id for it in ast.walk(node) if isinstance(it, ast.Name)}
    return found


def test_only_the_two_folders_of_stages_know_the_kinds() -> None:
    kinds = {f"{name.partition(':')[2].removesuffix('Runner')}Stage" for name in RUNNERS.values()}
    outside = [path for path in MODULES if path.parent.name != "stages"]
    checking = {str(path.relative_to(PACKAGE)): kinds & named_in(path) for path in outside}
    assert {path: names for path, names in checking.items() if names} == {}


def test_every_kind_of_stage_has_a_runner() -> None:
    kinds = {kind.model_fields["kind"].default for kind in Stage.__origin__.__args__}  # type: ignore[attr-defined]
    assert kinds == set(RUNNERS)
    assert all(find_runner(kind).__module__.startswith("tutelage.pipeline.stages.") for kind in kinds)


def test_no_class_name_is_used_twice() -> None:
    names = Counter(
        node.name
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    assert [name for name, count in names.items() if count > 1] == []


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_module_is_named_after_an_activity(path: Path) -> None:
    allowed = {"formatting", "mixing", "loading", "self_training", "mixed_self_training"}  # nouns of the field
    assert not path.stem.endswith("ing") or path.stem in allowed
