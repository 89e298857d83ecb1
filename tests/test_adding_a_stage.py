"""The manual page "Adding a stage kind": its blocks, applied to a copy of the package, make a stage that works."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tutelage.data.toycity import generate

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "adding_a_stage.md"
BLOCK = re.compile(r"^```\w+\n# (file|edit): (\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def apply(copy: Path) -> None:
    """Write the files of the page's blocks into ``copy``, and make the changes of its ``diff`` blocks."""
    for action, name, text in BLOCK.findall(PAGE.read_text(encoding="utf-8")):
        path = copy / name
        if action == "file":
            path.write_text(text, encoding="utf-8")
            continue
        lines = text.splitlines()
        before = "\n".join(line[1:] for line in lines if line[0] != "+")
        after = "\n".join(line[1:] for line in lines if line[0] != "-")
        content = path.read_text(encoding="utf-8")
        assert content.count(before) == 1, (name, before)
        path.write_text(content.replace(before, after), encoding="utf-8")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a copy of the package, data, and the page's recipe."""
    folder = tmp_path_factory.mktemp("project")
    shutil.copytree(ROOT / "tutelage", folder / "tutelage", ignore=shutil.ignore_patterns("__pycache__"))
    apply(folder)
    generate(folder / "city", {"train": 4, "val": 2, "test": 1}, (32, 64), "day", 0)
    return folder


def tutelage(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.fspath(project), "NO_COLOR": "1", "COLUMNS": "200"}
    command = [sys.executable, "-m", "tutelage", *arguments]
    return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)


def planned(project: Path, *overrides: str) -> dict[str, str]:
    """Stage → `skip` or `runs`: whether an artefact of its key is finished."""
    outcome = tutelage(project, "plan", "--no-smoke", "brightness.yaml", *overrides)
    assert outcome.returncode == 0, outcome.stderr
    return dict(re.findall(r"\b(dark|net|score)\b.*?\b(skip|runs)\b", outcome.stdout))


def test_the_stage_of_the_page_runs(project: Path) -> None:
    outcome = tutelage(project, "run", "brightness.yaml")
    assert outcome.returncode == 0, outcome.stderr
    made = list((project / "runs" / "brightness").glob("dark-*/images/**/*.png"))
    assert len(made) == 4
    assert list((project / "runs" / "brightness").glob("score-*/artefact.json"))
    assert planned(project) == dict.fromkeys(("dark", "net", "score"), "skip")
    assert planned(project, "stages.dark.factor=0.25") == dict.fromkeys(("dark", "net", "score"), "runs")


def test_errors_of_the_stage_are_those_of_the_page(project: Path) -> None:
    outcome = tutelage(project, "check", "brightness.yaml", "stages.dark.factor=1")
    assert outcome.returncode == 1
    assert "error[no-effect]" in outcome.stderr
    recipe = (project / "brightness.yaml").read_text(encoding="utf-8")
    (project / "misspelt.yaml").write_text(recipe.replace("data: city/train, f", "data: citi/train, f"), "utf-8")
    outcome = tutelage(project, "run", "misspelt.yaml")
    assert outcome.returncode == 1
    shown = re.search(r"error\[unknown-data\]: .*", PAGE.read_text(encoding="utf-8"))
    assert shown
    assert shown[0].replace("brightness.yaml", "misspelt.yaml") in outcome.stderr
