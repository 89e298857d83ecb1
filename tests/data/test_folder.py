"""A user's own folders and lists."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from tests.errors import raises_code
from tutelage.data.folder import FolderSettings, FolderSplit, grouping, list_images, open_folder


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 4)).save(path)


def mask(path: Path, *values: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.array([values], np.uint8)).save(path)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    for name in ("b", "a", "town/c"):
        picture(tmp_path / f"data/images/{name}.jpg")
        mask(tmp_path / f"data/masks/{name}.png", 0, 1, 255)
    (tmp_path / "data/train.txt").write_text("images/b.jpg masks/b.png\n")
    return tmp_path


WHOLE = {"all": {"images": "images", "masks": "masks"}}


def opened(base: Path, **settings):
    settings = {"root": "data", "classes": ["soil", "weed"], "splits": WHOLE, **settings}
    return open_folder(FolderSettings(**settings), base)


def test_folders_and_lists(base: Path) -> None:
    splits = opened(base, splits={**WHOLE, "train": "train.txt", "bare": {"images": "images/town"}})
    assert [sample.name for sample in splits["all"].samples] == ["images/a", "images/b", "images/town/c"]
    assert [sample.label.name for sample in splits["all"].samples] == ["a.png", "b.png", "c.png"]
    assert splits["all"].label(0).tolist() == [[0, 1, 255]]
    assert [sample.name for sample in splits["train"].samples] == ["images/b"]
    assert not splits["bare"].labeled
    assert splits["all"].classes.names == ("soil", "weed")


def test_mask_suffix_and_other_endings(base: Path) -> None:
    picture(base / "data/photos/x.JPG")
    picture(base / "data/photos/y.tiff")
    picture(base / "data/photos/.hidden.png")
    (base / "data/photos/notes.txt").touch()
    mask(base / "data/truth/x_label.tif", 1)
    mask(base / "data/truth/y_label.png", 1)
    splits = opened(base, splits={"all": {"images": "photos", "masks": "truth"}}, mask_suffix="_label")
    assert [sample.label.name for sample in splits["all"].samples] == ["x_label.tif", "y_label.png"]


def test_missing_things_are_named(base: Path) -> None:
    with raises_code("folder-missing", "nowhere"):
        opened(base, root="nowhere")
    with raises_code("folder-missing", "photos"):
        opened(base, splits={"all": {"images": "photos"}})
    (base / "data/empty").mkdir()
    with raises_code("folder-empty", "empty"):
        opened(base, splits={"all": {"images": "empty"}})
    (base / "data/masks/town/c.png").unlink()
    with raises_code("image-unpaired", "1 of 3 images", "masks", "town/c.jpg"):
        opened(base)
    with pytest.raises(ValidationError, match="`list`"):
        FolderSplit(list="a.txt", images="images")
    with pytest.raises(ValidationError, match="`list`"):
        FolderSplit(masks="masks")


def test_class_file(base: Path) -> None:
    content = {"names": ["soil", "weed"], "palette": [[1, 2, 3], [4, 5, 6]], "ignore_index": 9, "num_classes": 2}
    (base / "data/classes.json").write_text(json.dumps(content))
    mask(base / "data/masks/a.png", 0, 1, 9)
    dataset = opened(base, classes="classes.json")["all"]
    assert dataset.classes.palette == ((1, 2, 3), (4, 5, 6))
    assert dataset.label(0).tolist() == [[0, 1, 255]]
    assert opened(base, classes="classes.json", palette=[(7, 7, 7), (8, 8, 8)])["all"].classes.palette[0] == (7, 7, 7)
    for wrong in ("not json", "[]", '{"classes": []}'):
        (base / "data/classes.json").write_text(wrong)
        with raises_code("class-file", "classes.json"):
            opened(base, classes="classes.json")
    with raises_code("class-file", "none.json"):
        opened(base, classes="none.json")


def test_mask_values(base: Path) -> None:
    mask(base / "data/masks/a.png", 3, 7, 8, 200)
    with raises_code("mask-value", "a.png", "3 (1 pixels)"):
        opened(base)["all"].label(0)
    several = opened(base, ids={3: "Soil", 7: "weed", 8: "weed"}, ignore=[200])["all"]
    assert several.label(0).tolist() == [[0, 1, 1, 255]]
    assert opened(base, ids={3: "soil"}, others="ignore")["all"].label(0).tolist() == [[0, 255, 255, 255]]
    with raises_code("unknown-class", "'tree'", "soil, weed"):
        opened(base, ids={3: "tree"})
    with raises_code("invalid-value", "1"):
        opened(base, ignore=[1])
    with raises_code("invalid-value", "70000"):
        opened(base, ids={70_000: "soil"})


def test_colours(base: Path) -> None:
    Image.fromarray(np.array([[[128, 0, 0], [0, 0, 0], [9, 9, 9]]], np.uint8)).save(base / "data/masks/a.png")
    colours = {"128,0,0": "weed", " 0, 0, 0": None, "9,9,9": "soil"}
    assert opened(base, colours=colours)["all"].label(0).tolist() == [[1, 255, 0]]
    with raises_code("mask-colours"):
        opened(base)["all"].label(0)
    with raises_code("mask-value", "9,9,9 (1 pixels)"):
        opened(base, colours={"128,0,0": "weed", "0,0,0": None})["all"].label(0)
    with raises_code("option-conflict", "`ids`", "`colours`"):
        opened(base, colours=colours, ids={0: "soil"})
    with pytest.raises(ValidationError):
        FolderSettings(classes=["a"], splits=WHOLE, colours={"red": "a"})


def test_groups(base: Path) -> None:
    assert [s.group for s in opened(base, group=r"images/(\w+)/")["all"].samples] == ["", "", "town"]
    assert grouping(r"(x)?y")("y") == ""
    for pattern, got in ((r"(a", "'(a'"), (r"a", "got 0"), (r"(a)(b)", "got 2")):
        with raises_code("group-pattern", got):
            grouping(pattern)


def test_two_images_of_one_name(base: Path) -> None:
    picture(base / "data/images/a.png")
    with raises_code("duplicate-name", "'images/a'"):
        opened(base)


def test_list_images_is_sorted(base: Path) -> None:
    assert [path.name for path in list_images(base / "data/images")] == ["a.jpg", "b.jpg", "c.jpg"]
