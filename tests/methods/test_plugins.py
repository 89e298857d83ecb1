"""Methods outside the package: by ``--plugin``, ``plugins=`` or an installed entry point, never by a recipe alone."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import tutelage
from tests.errors import raises_code
from tests.projects import Project
from tutelage.methods import METHODS, find_settings, load_plugins

METHOD = '''
from tutelage.methods.settings.supervised import SupervisedSettings
from tutelage.methods.supervised import Supervised

class OwnSettings(SupervisedSettings):
    """A method of its own."""

    implementation = "own_plugin:Own"

class Own(Supervised):
    Settings = OwnSettings

METHODS = {"own": "own_plugin:OwnSettings"}
'''


@pytest.fixture
def plugin(project: Project, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    """A project whose recipe names a method of ``own_plugin.py`` beside it."""
    (project.root / "own_plugin.py").write_text(METHOD, encoding="utf-8")
    project.edit(("method: supervised", "method: own"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    known = dict(METHODS)
    yield project
    METHODS.clear()
    METHODS.update(known)
    sys.modules.pop("own_plugin", None)


def test_a_recipe_alone_imports_nothing(plugin: Project) -> None:
    ran = plugin.tutelage("plan", "recipe.yaml", "--no-smoke")
    assert ran.status == 1
    assert "unknown method 'own'" in ran.err
    assert "own_plugin" not in sys.modules


def test_a_plugin_on_the_command_line(plugin: Project) -> None:
    planned = plugin.tutelage("plan", "recipe.yaml", "--plugin", "own_plugin")
    assert planned.status == 0, planned.err
    assert "s a step" in planned.out
    assert "no estimate" not in planned.out
    assert plugin.tutelage("run", "recipe.yaml", "--quiet", "--plugin", "own_plugin").status == 0
    assert '"own"' in plugin.tutelage("schema", "--plugin", "own_plugin").out


def test_a_plugin_in_python(plugin: Project) -> None:
    assert [row.runs for row in tutelage.plan("recipe.yaml", plugins=("own_plugin",))] == [True, True]
    assert METHODS["own"] == "own_plugin:OwnSettings"


def test_an_installed_entry_point(plugin: Project) -> None:
    info = plugin.root / "own_plugin-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: own-plugin\nVersion: 1\n", encoding="utf-8")
    points = "[tutelage.methods]\nown = own_plugin:OwnSettings\nsupervised = own_plugin:OwnSettings\n"
    (info / "entry_points.txt").write_text(points, encoding="utf-8")
    program = (
        "import sys; sys.path.append('.')\n"
        "from tutelage.cli import main\n"
        "from tutelage.methods import METHODS\n"
        "assert 'own_plugin' not in sys.modules\n"
        "assert METHODS['supervised'].startswith('tutelage.')\n"
        "sys.exit(main(['plan', 'recipe.yaml', '--no-smoke']))\n"
    )
    ran = subprocess.run([sys.executable, "-c", program], cwd=plugin.root, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "does not define METHODS"),
        ("METHODS = {'own': 3}", "does not define METHODS"),
        ("METHODS = {'supervised': 'own_plugin:OwnSettings'}", "a method that exists: supervised"),
    ],
)
def test_invalid_plugins(content: str, words: str, plugin: Project) -> None:
    Path("own_plugin.py").write_text(content, encoding="utf-8")
    with raises_code("plugin-invalid", words):
        load_plugins(["own_plugin"])


def test_a_plugin_that_cannot_be_imported(plugin: Project) -> None:
    with raises_code("plugin-missing", "'nowhere_plugin'"):
        load_plugins(["nowhere_plugin"])
    Path("own_plugin.py").write_text("METHODS = {'own': 'own_plugin:Nothing'}", encoding="utf-8")
    load_plugins(["own_plugin"])
    with raises_code("plugin-invalid", "own_plugin:Nothing"):
        find_settings("own")


def test_a_plugin_with_a_fault_of_its_own_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "zero_plugin.py").write_text("1 / 0\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    with raises_code("plugin-invalid", "zero_plugin"):
        load_plugins(["zero_plugin"])
