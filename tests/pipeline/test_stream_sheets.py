"""Contact sheets: what is on them is what the nets get, and only pseudo labels must be there before."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tutelage.data.augmentation import Geometry
from tutelage.data.batch import Geometries
from tutelage.engine.settings import MethodSettings, StreamSpec
from tutelage.errors import DataError, RunError
from tutelage.methods import METHODS
from tutelage.pipeline import contact_sheet, stream_sheets
from tutelage.pipeline.builder import Builder
from tutelage.pipeline.contact_sheet import SampleBlock, SheetCell
from tutelage.pipeline.stream_sheets import describe_geometry, show
from tutelage.recipe.loading import LoadedRecipe, parse_recipe
from tutelage.runs.store import Store

RECIPE = """
tutelage: 1
name: shown
out: {out}
data:
  city: {{kind: folder, root: {root}, classes: [road, car, sky], splits: {{train: train.txt, rest: rest.txt}}}}
nets:
  student: {{encoder: mobilenetv3_small_050, decoder: lraspp}}
stages:
  first:
    method: supervised
    streams:
      labeled:
        data: city/train
        batch: 2
        augment: {{crop: [32, 48], scale: [0.5, 2.0], flip: 0.5}}
        views: {{weak: {{colour: {{brightness: 0.5, blur: 0.5}}}}}}
    steps: 1
  maps: {{kind: annotate, net: first, data: city/rest}}
  second:
    method: {method}
    streams:
      labeled: {{data: city/train, augment: {{crop: [32, 32]}}}}
      unlabeled: {{data: maps, augment: {{crop: [32, 32]}}{views}}}
    steps: 1
"""


class ConsistencySettings(MethodSettings):
    """As much of a method as :func:`show` reads: two views of one geometry, one of its own."""

    implementation = f"{__name__}:Consistency"
    streams = {
        "labeled": StreamSpec(labels=True, views=("weak",)),
        "unlabeled": StreamSpec(labels=True, views=("weak", "strong", "small")),
    }


class Consistency:
    """Never made."""

    Settings = ConsistencySettings
    version = 1


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LoadedRecipe:
    monkeypatch.setitem(METHODS, "consistency", f"{__name__}:ConsistencySettings")
    root = tmp_path / "city"
    draw = np.random.default_rng(0)
    for split, count in (("train", 3), ("rest", 2)):
        lines = []
        for number in range(count):
            name = f"{split} ü{number}"
            root.mkdir(exist_ok=True)
            Image.fromarray(draw.integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(root / f"{name}.jpg")
            label = np.repeat(np.array([0, 1, 2, 255], dtype=np.uint8), 10)[:, None].repeat(60, axis=1)
            Image.fromarray(label).save(root / f"{name}.png")
            lines.append(f"{name}.jpg\t{name}.png\n")
        (root / f"{split}.txt").write_text("".join(lines), encoding="utf-8")
    views = ", views: {strong: {colour: {grey: 1}}, small: {augment: {crop: [16, 16]}}}"
    text = RECIPE.format(out=tmp_path / "runs", root=root, method="consistency", views=views)
    return parse_recipe(text, tmp_path)


def annotated(read: LoadedRecipe) -> None:
    """Make the artefact of the stage `maps` by hand."""
    from tutelage.data.pseudo_labels import PseudoLabelFolder

    builder = Builder(read)
    store = Store(Path(read.recipe.out_folder()))
    builder.assign(store, until=["maps"])
    artefact = builder.artefacts["maps"]
    folder = PseudoLabelFolder(artefact.labels)
    names = [sample.name for sample in builder.dataset("city/rest").samples]
    for name in names:
        folder.write(name, np.full((40, 60), 1, dtype=np.uint8), np.full((40, 60), 128, dtype=np.uint8))
    artefact.begin("")
    artefact.finish("annotate", folder.finish(builder.classes.names, {}, names), {})


def test_streams_of_labels_that_are_not_there_are_left_out(read: LoadedRecipe, tmp_path: Path) -> None:
    said: list[str] = []
    files = show(read, tmp_path / "out", count=2, say=said.append)
    assert [path.name for path in files] == ["first-labeled.png", "second-labeled.png"]
    assert len(said) == 1
    assert "second" in said[0]
    assert "unlabeled" in said[0]
    assert "'maps'" in said[0]
    with Image.open(files[0]) as image:
        assert image.mode == "RGB"
        assert min(image.size) > 300


def test_pseudo_labels_and_several_views(read: LoadedRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    annotated(read)
    drawn = recorded(monkeypatch)
    said: list[str] = []
    files = show(read, tmp_path / "out", stages=["second"], count=3, say=said.append)
    assert [path.name for path in files] == ["second-labeled.png", "second-unlabeled.png"]
    assert not said
    shared, own = drawn[1][0].groups
    titles = [[cell.title for cell in group.cells] for group in (shared, own)]
    assert titles[0] == ["weak", "strong", "label: 1 class", "confidence: mean 0.50, white is 1"]
    assert titles[1][0] == "small"
    strong = shared.cells[1].image_HW3.astype(int)
    assert np.ptp(strong, axis=2).max() <= 1  # grey, as its view says
    assert own.cells[0].image_HW3.shape == (16, 16, 3)
    assert drawn[1][2].title.startswith("#2 ")


def recorded(monkeypatch: pytest.MonkeyPatch) -> list[list[SampleBlock]]:
    drawn: list[list[SampleBlock]] = []

    def draw_sheet(
        title: str, subtitle: str, blocks: list[SampleBlock], legend: list[contact_sheet.Swatch]
    ) -> Image.Image:
        drawn.append(blocks)
        return contact_sheet.draw_sheet(title, subtitle, blocks, legend)

    monkeypatch.setattr(stream_sheets, "draw_sheet", draw_sheet)
    return drawn


def test_the_sheet_shows_what_training_gets(
    read: LoadedRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = recorded(monkeypatch)
    show(read, tmp_path / "out", stages=["first"], count=4, position=2)
    builder = Builder(read)
    stream = builder.runner("first").streams()["labeled"]
    views = [batch["weak"] for batch in stream.batches(1, 3, 1, 0, 1, torch.device("cpu"))]
    images = torch.cat([view.image for view in views])
    labels = torch.cat([view.label for view in views])
    valid = torch.cat([view.valid for view in views])
    assert not valid.all()
    for number, block in enumerate(drawn[0]):
        image, label = block.groups[0].cells
        expected = images[number].permute(1, 2, 0).mul(255).round().to(torch.uint8).numpy()
        np.testing.assert_array_equal(image.image_HW3, expected)
        np.testing.assert_array_equal(label.padded_HW, ~valid[number].numpy())
        assert label.ignored_HW is not None
        np.testing.assert_array_equal(label.ignored_HW, ((labels[number] == 255) & valid[number]).numpy())
        known = labels[number].numpy() < 3
        colours = np.array(builder.classes.palette, dtype=np.uint8)[labels[number].numpy()[known]]
        np.testing.assert_array_equal(label.image_HW3[known], colours)


def test_names_and_numbers_that_mean_nothing(read: LoadedRecipe, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is not a train stage"):
        show(read, tmp_path, stages=["maps"])
    with pytest.raises(RunError, match="is not in the recipe"):
        show(read, tmp_path, stages=["third"])
    with pytest.raises(RunError) as refused:
        show(read, tmp_path, count=0)
    assert refused.value.code == "invalid-range"
    (tmp_path / "city" / "train ü1.jpg").write_bytes(b"no image")
    with pytest.raises(DataError, match="train ü1"):
        show(read, tmp_path, stages=["first"])


@pytest.mark.parametrize("flip", [False, True])
def test_a_geometry_in_words(flip: bool) -> None:
    record = Geometry.crop((40, 60), (80, 120), (10, 20), (32, 48), flip)
    scale, part = describe_geometry(Geometries.stack([record]))
    assert scale == f"scale 2.00{', flipped' if flip else ''}, 48x32 pixels"
    assert part == "of 60x40: x 10 to 34, y 5 to 21"
    padded = Geometry.crop((40, 60), (20, 60), (0, 0), (32, 80), flip)
    scale, part = describe_geometry(Geometries.stack([padded]))
    assert scale.startswith("scale 1.00 across, 0.50 down")
    assert part == "of 60x40: x 0 to 60, y 0 to 40"


def test_hatchings_and_long_names() -> None:
    plain = np.full((8, 8, 3), 90, dtype=np.uint8)
    nowhere, everywhere = np.zeros((8, 8), dtype=bool), np.ones((8, 8), dtype=bool)
    cells = [
        SheetCell("ignored", plain, nowhere, everywhere, smooth=False),
        SheetCell("padded map", plain, everywhere, everywhere, smooth=False),
        SheetCell("padded photograph", plain, everywhere),
    ]
    colours = [
        set(map(tuple, np.asarray(contact_sheet._rendered(cell))[2:-2, 2:-2].reshape(-1, 3).tolist())) for cell in cells
    ]
    assert all(len(found) == 2 for found in colours)
    assert (90, 90, 90) in colours[2]
    assert not colours[0] & colours[1]
    font = contact_sheet.ImageFont.load_default(14)
    short = contact_sheet._fitted("a very long name " * 20 + "7.jpg", font, 200)
    assert short.endswith("7.jpg")
    assert font.getlength(short) <= 200
