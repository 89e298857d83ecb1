"""Reading a recipe, its errors and its schema need neither torch nor timm: a typo is reported in under a second."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.recipe.texts import WHOLE

HEAVY = ("torch", "timm", "segmentation_models_pytorch", "torchvision")

READ = """
import sys
from pathlib import Path
from tutelage.errors import TutelageError
from tutelage.recipe.loading import json_schema, load_recipe, resolved
try:
    resolved(load_recipe(Path({path!r})).recipe)
except TutelageError:
    pass
json_schema()
"""

COMMAND = """
import sys
from tutelage.cli import main
try:
    main({arguments!r})
except SystemExit:
    pass
"""

REPORT = "\nprint(*sorted(set({heavy!r}) & set(sys.modules)), file=sys.stderr)\n"


def imported(code: str, folder: Path) -> str:
    """The heavy packages that running ``code`` imports."""
    ran = subprocess.run(
        [sys.executable, "-c", code + REPORT.format(heavy=HEAVY)],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    return ran.stderr.splitlines()[-1]


@pytest.mark.parametrize("text", [WHOLE, WHOLE.replace("steps: 10", "stpes: 10"), "a: [", None])
def test_a_recipe_is_read_without_torch(text: str | None, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    assert imported(READ.format(path=str(path)), tmp_path) == ""


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["run", "missing.yaml"], ["check", "missing.yaml"], ["plan", "r.yaml"], ["run", "r.yaml"], ["schema"]],
    ids=" ".join,
)
def test_commands_that_fail_at_the_recipe_do_not_import_torch(arguments: list[str], tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(WHOLE.replace("encoder: resnet10t", "encodr: resnet10t"), encoding="utf-8")
    assert imported(COMMAND.format(arguments=arguments), tmp_path) == ""
