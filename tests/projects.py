"""A tiny project on the disk, and the command line run on it in this process."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tutelage.cli import main
from tutelage.runs.atomic import PARTIAL

SIZE = (48, 64)
CLASSES = ("road", "car", "sky", "tree", "sign")
SPLITS = {"train": range(4), "val": range(4, 6)}

DATA = """\
data:
  city:
    root: data
    classes: [road, car, sky, tree, sign]
    splits: {train: train.txt, val: val.txt}
"""

RECIPE = f"""\
tutelage: 1
name: tiny
out: runs
{DATA}nets:
  small: {{encoder: mobilenetv3_small_050, decoder: lraspp, width: 32}}
stages:
  student:
    method: supervised
    nets: {{student: small}}
    streams:
      labeled: {{data: city/train, batch: 2}}
    steps: 2
  score: {{kind: evaluate, nets: [student], data: city/val}}
"""


@dataclass(frozen=True)
class Ran:
    """How a command ended and what it said."""

    status: int
    out: str
    err: str


class Project:
    """A folder with ``data`` (six images with masks) and ``recipe.yaml``; the working folder of its commands."""

    def __init__(self, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.root = root
        self.data = root / "data"
        self.recipe = root / "recipe.yaml"
        self._capsys = capsys

    def image(self, number: int) -> Path:
        """Image ``number``, from 0; the first is a JPEG."""
        return self.data / "images" / image_name(number)

    def mask(self, number: int) -> Path:
        """The mask of image ``number``."""
        return self.data / "masks" / f"i{number}.png"

    def edit(self, *changes: tuple[str, str]) -> None:
        """Replace (old, new) in the recipe, each once."""
        text = self.recipe.read_text(encoding="utf-8")
        for old, new in changes:
            assert old in text, old
            text = text.replace(old, new, 1)
        self.recipe.write_text(text, encoding="utf-8")

    def tutelage(self, *arguments: str) -> Ran:
        """Give a command. What it said is printed again, for the reader of a failing test."""
        self._capsys.readouterr()
        status = main(arguments)
        said = self._capsys.readouterr()
        sys.stdout.write(said.out)
        sys.stderr.write(said.err)
        return Ran(status, said.out, said.err)

    def finished(self) -> set[str]:
        """The folders of finished artefacts, under whatever run folder."""
        return {path.parent.name for path in self.root.rglob("artefact.json")}

    def partial(self) -> list[Path]:
        """Files that an interrupted write left behind."""
        return [path for path in self.root.rglob(f"*{PARTIAL}*") if path.is_file()]


def made(out: str) -> list[str]:
    """The stages that a run said it makes."""
    return [line.split(":")[0] for line in out.splitlines() if " → runs/" in line]


def image_name(number: int) -> str:
    """The first image is a JPEG, the others are PNG files."""
    return f"i{number}.{'jpg' if number == 0 else 'png'}"


def write_project(root: Path, recipe: str = RECIPE, classes: int = len(CLASSES)) -> None:
    """Write data and recipe into ``root``; the content is the same each time."""
    draw = np.random.default_rng(0)
    for folder in ("images", "masks"):
        (root / "data" / folder).mkdir(parents=True)
    for number in range(sum(map(len, SPLITS.values()))):
        coarse = draw.integers(0, classes, (SIZE[0] // 8, SIZE[1] // 8))
        label = np.kron(coarse, np.ones((8, 8))).astype(np.uint8)
        image = 40 * label[..., None] + draw.integers(0, 60, (*SIZE, 3))
        Image.fromarray(image.astype(np.uint8)).save(root / "data" / "images" / image_name(number), quality=90)
        Image.fromarray(label).save(root / "data" / "masks" / f"i{number}.png")
    for split, numbers in SPLITS.items():
        write_list(root / "data" / f"{split}.txt", numbers)
    (root / "recipe.yaml").write_text(recipe, encoding="utf-8")


def write_list(path: Path, numbers: Sequence[int]) -> None:
    """A list file of images with their masks."""
    lines = [f"images/{image_name(number)} masks/i{number}.png\n" for number in numbers]
    path.write_text("".join(lines), encoding="utf-8")
