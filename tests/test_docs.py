"""The manual: what it tells people to type is typed here, and what it points at is there.

A block fenced as ``console`` holds commands for the program, one a line, each beginning with ``$ tutelage``. Those of
a page, and its ``python`` blocks, are run in order, in this process, in a folder that has the files of which the pages
speak. Recipes are made small first. A page that begins from a finished run says so in a comment
(``<!-- project: finished -->``). A block that begins with ``# file: NAME`` becomes that file. What cannot be run here
is fenced as ``sh``; its targets and options are looked up.
"""

from __future__ import annotations

import glob
import os
import re
import shlex
import shutil
import sys
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from docs.reference import KEYS, filled
from tutelage.cli import main, program
from tutelage.data.toycity import generate
from tutelage.methods import METHODS, find_settings
from tutelage.pipeline import costs, teacher_check, training_cost
from tutelage.recipe.loading import parse_recipe
from tutelage.recipe.schema import Recipe
from tutelage.recipe.stages.train import MethodChoice
from tutelage.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted(path for path in (ROOT / "docs").rglob("*.md") if "_build" not in path.parts)]
SIZE = (32, 64)
PARTS = {"train": 8, "val": 3, "test": 3}

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FINISHED = "<!-- project: finished -->"
_PACKAGE = "<!-- project: package -->"  # the page changes the package: tests/test_adding_a_stage.py
_NET = "{encoder: mobilenetv3_small_050, decoder: lraspp, width: 32}"


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, *languages: str) -> list[tuple[str, str]]:
    """The (language, text) of a page's fenced blocks, in order; all, or those of some languages."""
    found = _FENCE.findall(page.read_text(encoding="utf-8"))
    return [(language, text) for language, text in found if not languages or language in languages]


def lines_of(text: str) -> list[list[str]]:
    """The commands of a block as words; comments are left out."""
    split = (shlex.split(line.removeprefix("$ "), comments=True) for line in text.splitlines())
    return [words for words in split if words]


# What is typed


def shrink(recipe: Path) -> None:
    """Make a recipe's nets, crops and batches so small, and its stages so short, that it runs in a second."""
    text = recipe.read_text(encoding="utf-8")
    for pattern, small in (
        (r"^(  \w+: )\{encoder: .*\}$", rf"\g<1>{_NET}"),
        (r"\b(steps|every|batch): (&\w+ )?\d+", r"\g<1>: \g<2>2"),
        (r"crop: \[\d+, \d+\]", "crop: [32, 32]"),
        (r"precision: (&\w+ )?bf16", r"precision: \g<1>fp32"),
    ):
        text = re.sub(pattern, small, text, flags=re.MULTILINE)
    recipe.write_text(text, encoding="utf-8")


def run(words: list[str]) -> None:
    """Give one command as a shell would hand it over."""
    assert words[0] == "tutelage", words
    arguments = []
    for word in words[1:]:
        arguments += sorted(glob.glob(word)) if "*" in word and glob.glob(word) else [word]
    arguments = [re.sub(r"steps=\d+$", "steps=2", word) for word in arguments]
    if arguments[0] == "toycity":  # fewer and smaller pictures
        arguments = [re.sub(r"^\d+x\d+$", f"{SIZE[0]}x{SIZE[1]}", re.sub(r"=\d+", "=4", word)) for word in arguments]
    assert main(arguments) == 0, words
    if arguments[0] == "init":
        shrink(Path(parsed(arguments)["out"]))


def parsed(words: list[str]) -> dict[str, Any]:
    """The parameters of a command line, without running it."""
    return program().commands[words[0]].make_context(words[0], words[1:]).params


@dataclass(frozen=True)
class Projects:
    """Two folders to copy: one with data, and one in which a recipe has been run as well."""

    data: Path
    finished: Path


@pytest.fixture(scope="module")
def projects(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Projects]:
    data, finished = (tmp_path_factory.mktemp(name) / "project" for name in ("data", "finished"))
    data.mkdir()
    generate(data / "city", PARTS, SIZE, "day", 0)
    generate(data / "night", {"train": 4, "test": 3}, SIZE, "dusk", 1)
    for folder, kind, split in (
        ("photos", "images", "train"),
        ("masks", "labels", "train"),
        ("more_photos", "images", "val"),
        ("new_photos", "images", "test"),
    ):
        (data / folder).mkdir()
        for number, path in enumerate(sorted((data / "city" / kind / split).glob("*.png"))):
            shutil.copy(path, data / folder / f"{'abcdefghijkl'[number]}.png")
    for path in sorted((data / "photos").iterdir())[:4]:  # twelve labelled images
        for folder in ("photos", "masks"):
            pixels = np.asarray(Image.open(data / folder / path.name))[:, ::-1]
            Image.fromarray(np.ascontiguousarray(pixels)).save(data / folder / f"{path.stem}_mirrored.png")
    shutil.copytree(data, finished)
    with pytest.MonkeyPatch.context() as patch:
        calm(patch)
        patch.chdir(finished)
        run(shlex.split("tutelage init --images photos --masks masks"))
        run(shlex.split("tutelage run recipe.yaml"))
        yield Projects(data, finished)


def calm(patch: pytest.MonkeyPatch) -> None:
    """Measure costs once instead of for seconds, and try stages in this process instead of one of their own.

    Teachers of two steps know nothing, and are taken all the same.
    """
    patch.setattr(teacher_check, "SMALLEST_SHARE", -1.0)
    patch.setattr(costs, "_PATIENCE_MS", 1.0)
    patch.setattr(costs, "flops", lambda *given: 1)
    patch.setattr(training_cost, "estimate_cost", training_cost.measure)


def pages_with(*languages: str) -> list[Path]:
    """The pages with blocks of these languages, without those that have a test of their own."""
    return [page for page in PAGES if _PACKAGE not in page.read_text(encoding="utf-8") and blocks(page, *languages)]


@pytest.mark.parametrize("page", pages_with("console", "python"), ids=name_of)
def test_what_a_page_tells_to_type_works(
    page: Path, projects: Projects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = page.read_text(encoding="utf-8")
    project = tmp_path / "project"
    shutil.copytree(projects.finished if _FINISHED in text else projects.data, project)
    if any("toycity city" in block for _, block in blocks(page, "console")):
        shutil.rmtree(project / "city")
    calm(monkeypatch)
    monkeypatch.chdir(project)
    monkeypatch.syspath_prepend(str(project))
    for name in METHODS:
        monkeypatch.setitem(METHODS, name, METHODS[name])  # what a page adds is taken away again
    before = set(METHODS)
    known: dict[str, Any] = {"__name__": "page"}
    try:
        for language, block in blocks(page, "console", "python", "yaml"):
            first, _, _ = block.partition("\n")
            if first.startswith("# file: "):
                Path(first.removeprefix("# file: ")).write_text(block, encoding="utf-8")
            elif language == "console":
                for words in lines_of(block):
                    run(words)
            elif language == "python":
                exec(compile(block, name_of(page), "exec"), known)
    finally:
        for name in set(METHODS) - before:
            sys.modules.pop(METHODS.pop(name).partition(":")[0], None)


def test_the_demo_recipe_runs(projects: Projects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tmp_path / "recipes" / "demo" / "demo.yaml"
    recipe.parent.mkdir(parents=True)
    shutil.copy(ROOT / "recipes" / "demo" / "demo.yaml", recipe)
    shrink(recipe)
    text = recipe.read_text(encoding="utf-8")
    text = re.sub(r"splits: \{.*?\}", "splits: {train: 4, val: 2, test: 2}", text)
    recipe.write_text(re.sub(r"size: \[.*?\]", f"size: {list(SIZE)}", text), encoding="utf-8")
    calm(monkeypatch)
    monkeypatch.chdir(tmp_path)
    run(["tutelage", "run", "recipes/demo/demo.yaml"])
    assert (tmp_path / "runs" / "demo" / "report.html").is_file()


@pytest.mark.parametrize("page", pages_with("console"), ids=name_of)
def test_console_blocks_hold_commands_of_ours_alone(page: Path) -> None:
    for _, block in blocks(page, "console"):
        assert all(line.startswith("$ tutelage ") for line in block.splitlines()), block


def test_what_is_not_run_names_targets_and_options_that_exist() -> None:
    targets = set(re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    extras = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    seen = 0
    for page in PAGES:
        for _, block in blocks(page, "sh"):
            for words in lines_of(block):
                seen += 1
                if words[0] == "make":
                    assert {word for word in words[1:] if "=" not in word} <= targets, words
                elif words[0] == "pip":
                    named = re.findall(r"\[(.*?)\]", " ".join(words))
                    assert all(f"\n{extra} = [" in extras for extra in named), words
                elif words[0] == "torchrun":
                    module = words.index("-m")
                    assert words[module + 1] == "tutelage.cli"
                    parsed(words[module + 2 :])
                else:
                    assert words[0] == "tutelage", words
                    parsed(words[1:])
        for target in re.findall(r"`make ([\w-]+)`", page.read_text(encoding="utf-8")):
            assert target in targets, (page, target)
    assert seen


# What is shown

SURROUNDINGS = """
tutelage: 1
name: base
data:
  city: {root: ., classes: [a, b], splits: {train: train.txt, val: val.txt, test: test.txt}}
nets:
  student: {encoder: mobilenetv3_small_050, decoder: lraspp}
  teacher: {encoder: mobilenetv3_small_050, decoder: lraspp}
stages:
  teacher: {method: supervised, nets: {student: teacher}, streams: {labeled: {data: city/train}}}
  distilled: {method: supervised, nets: {student: student}, streams: {labeled: {data: city/train}}}
"""


@pytest.mark.parametrize("page", pages_with("yaml"), ids=name_of)
def test_parts_of_recipes_can_be_meant(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is put into a recipe that has what it refers to."""
    monkeypatch.setitem(METHODS, "entropy_minimisation", METHODS["mean_teacher"])
    for _, block in blocks(page, "yaml"):
        part = yaml.safe_load(block)
        whole = yaml.safe_load(SURROUNDINGS)
        if "tutelage" in part:
            whole = part
        for section, content in part.items():
            whole[section] = {**whole.get(section, {}), **content} if isinstance(content, dict) else content
        parse_recipe(yaml.safe_dump(whole, sort_keys=False), ROOT, name=name_of(page))


def settings_classes() -> set[type[Settings]]:
    """Every settings class that a recipe or a method can hold."""
    found: set[type[Settings]] = set()

    def visit(annotation: Any) -> None:
        if isinstance(annotation, type) and issubclass(annotation, Settings) and annotation not in found:
            found.add(annotation)
            for field in annotation.model_fields.values():
                visit(field.annotation)
        for inner in typing.get_args(annotation):
            visit(inner)

    visit(Recipe)
    for name in METHODS:
        visit(find_settings(name))
    return found


@pytest.mark.parametrize("page", [page for page in PAGES if "<!-- generated: " in page.read_text("utf-8")], ids=name_of)
def test_generated_parts_are_current(page: Path) -> None:
    assert filled(page) == page.read_text(encoding="utf-8"), "out of date; run: python -m docs.reference"


def test_every_key_is_in_the_reference() -> None:
    pages = [KEYS, *(ROOT / "docs" / "methods" / f"{name}.md" for name in METHODS)]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    tables = [set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) for table in text.split("| key | value |")]
    assert len(settings_classes()) > 20
    for kind in settings_classes() - {MethodChoice}:
        assert any(kind.model_fields.keys() <= keys for keys in tables), kind
    assert "typing." not in text


def test_every_command_is_documented() -> None:
    text = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for name, parser in program().commands.items():
        section = text.partition(f"\n## {name}\n")[2].partition("\n## ")[0]
        assert f"<!-- generated: command {name} -->" in section, name
        assert f"| `tutelage {name}` |" in readme, name
        for option in parser.params:
            assert all(word in section for word in option.opts if word.startswith("-")), (name, option)


def test_every_method_has_its_page_and_is_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in METHODS:
        page = (ROOT / "docs" / "methods" / f"{name}.md").read_text(encoding="utf-8")
        assert f"<!-- generated: method {name} -->" in page
        assert f"(docs/methods/{name}.md)" in readme


# What is pointed at


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    plain = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", plain):
        path, _, anchor = target.partition("#")
        where = page.parent / path if path else page
        assert where.is_file(), target
        assert not anchor or anchor in anchors(where), target


def anchors(page: Path) -> set[str]:
    """The anchors of a page: of its headings, as the manual names them, and those that it sets."""
    text = page.read_text(encoding="utf-8")
    headings = (re.sub(r"[^\w\- ]", "", title.lower()) for title in re.findall(r"^#+ (.*)$", text, re.MULTILINE))
    return {title.replace(" ", "-") for title in headings} | set(re.findall(r"^\(([\w-]+)\)=$", text, re.MULTILINE))


def test_the_pages_are_all_in_the_manual() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    entries = set(re.findall(r"^([a-z0-9_/]+)$", index, re.MULTILINE))
    pages = {path.relative_to(ROOT / "docs").with_suffix("").as_posix() for path in PAGES[1:]}
    assert entries == pages - {"index"}


def test_the_tour_is_short() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    tour = text.partition("## A tour")[2].partition("\n## ")[0]
    assert 0 < sum(len(block.splitlines()) for _, block in _FENCE.findall(tour)) <= 20


def test_pictures_are_there_and_small() -> None:
    for page in PAGES:
        for target in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
            assert 0 < (page.parent / target).stat().st_size < 400_000


@pytest.mark.parametrize("page", [*PAGES, ROOT / "docs" / "conf.py", ROOT / "docs" / "reference.py"], ids=name_of)
def test_no_page_names_a_registry_or_an_address(page: Path) -> None:
    """Which index packages come from is the reader's choice; and links to elsewhere die."""
    text = page.read_text(encoding="utf-8").lower()
    hosts = ("pypi.org", "pythonhosted", "download.pytorch", "pytorch.org", "conda.", "huggingface", "://", "www.")
    assert not [host for host in hosts if host in text]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_lines_are_short(page: Path) -> None:
    lines = page.read_text(encoding="utf-8").splitlines()
    assert not [line for line in lines if len(line) > 120 and not line.startswith("|")]


@pytest.mark.slow
def test_the_manual_builds_without_a_warning(tmp_path: Path) -> None:
    sphinx = pytest.importorskip("sphinx.cmd.build")
    places = [os.fspath(ROOT / "docs"), os.fspath(tmp_path / "html")]
    assert sphinx.build_main(["-W", "--keep-going", "-q", "-d", os.fspath(tmp_path / "tree"), *places]) == 0
