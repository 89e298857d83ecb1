"""The files around the package agree with each other: Makefile, hooks, workflow, version, metadata."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

import tutelage

ROOT = Path(__file__).resolve().parents[1]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_hooks_are_the_commands_of_make_lint() -> None:
    recipe = re.search(r"^lint:.*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)
    assert recipe is not None
    commands = [line.strip().replace("$(BIN)", ".venv/bin") for line in recipe[1].splitlines()]
    (local,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    assert [hook["entry"] for hook in local["hooks"]] == commands


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_help_lists_every_target() -> None:
    targets = re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)
    assert targets is not None
    ran = subprocess.run(["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    rows = [line.split(maxsplit=2) for line in ran.stdout.splitlines()]
    assert sorted(target for _, target, _ in rows) == sorted(targets[1].split())


def test_the_workflow_tests_every_supported_python() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text(encoding="utf-8"))
    (job,) = workflow["jobs"].values()
    versions = job["strategy"]["matrix"]["python"]
    assert f'requires-python = ">={versions[0]}"' in PROJECT
    assert versions == ["3.10", "3.11", "3.12", "3.13"]
    assert any("make test" in step.get("run", "") for step in job["steps"])


def test_the_citation_names_the_version_and_licence() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == tutelage.__version__
    assert f'license = "{citation["license"]}"' in PROJECT


def test_every_dependency_has_a_pin() -> None:
    dependencies = re.search(r"^dependencies = \[\n(.*?)^\]", PROJECT, re.MULTILINE | re.DOTALL)
    assert dependencies is not None
    names = re.findall(r'"([a-zA-Z0-9-]+)>=[0-9.]+,<[0-9.]+"', dependencies[1])
    assert len(names) == len(dependencies[1].splitlines())
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    assert [name for name in names if f"\n{name}==" not in lock] == []


def test_links_of_the_guide_lead_to_files() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    targets = [*re.findall(r"\]\(([^)]+)\)", text), *re.findall(r"^\[.*\]: (.*)$", text, re.MULTILINE)]
    missing = [target for target in targets if not (ROOT / target).exists()]
    assert len(targets) > 4
    assert set(missing) <= {"docs/adding_a_stage.md"}
