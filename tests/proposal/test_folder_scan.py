"""One look at folders of any usual shape: pairs, encodings, class names, splits, and what is not certain."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.errors import raises_code
from tutelage.proposal.folder_scan import look

SIZE = (16, 24)


def label(values: Sequence[int], seed: int) -> np.ndarray:
    """A mask of broad stripes in which every value occurs."""
    draw = np.random.default_rng(seed)
    rows = np.resize(draw.permutation(len(values)), SIZE[0])
    return np.asarray(values)[np.sort(rows)][:, None].repeat(SIZE[1], 1)


def write(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


def photo(path: Path, seed: int = 0) -> Path:
    return write(path, np.random.default_rng(seed).integers(0, 255, (*SIZE, 3)).astype(np.uint8))


def pairs(root: Path, image: str, mask: str, values: Sequence[int] = (0, 1, 2), count: int = 4) -> None:
    """Images and masks named by patterns with ``{i}``."""
    for i in range(count):
        photo(root / image.format(i=i), sum(image.encode()) + i)
        write(root / mask.format(i=i), label(values, i).astype(np.uint8))


@pytest.mark.parametrize(
    ("image", "mask", "masks"),
    [
        ("images/a{i}.jpg", "masks/a{i}.png", "masks"),
        ("images/a{i}.jpg", "labels/a{i}.png", None),  # the folder beside it is found
        ("img/a{i}_image.jpg", "gt/a{i}_mask.png", "gt"),
        ("img/image_{i}.jpg", "m/mask_{i}.png", "m"),
        ("pictures/street/a{i}.jpg", "truth/street/a{i}_labelIds.png", "truth"),
        ("pictures/x/a{i}.jpg", "truth/y/a{i}.png", "truth"),  # other folders, but names that occur once
    ],
)
def test_pairs_are_found(tmp_path: Path, image: str, mask: str, masks: str | None) -> None:
    pairs(tmp_path, image, mask)
    seen = look(tmp_path / image.split("/")[0], None if masks is None else tmp_path / masks)
    assert [
        (i.relative_to(tmp_path).as_posix(), m.relative_to(tmp_path).as_posix()) for i, m in seen.data.found.pairs
    ] == [(image.format(i=i), mask.format(i=i)) for i in range(4)]
    assert seen.data.found.strays == ()
    assert seen.sizes.median == SIZE
    assert seen.reading.classes == ["class_0", "class_1", "class_2"]


@pytest.mark.parametrize(("image", "mask"), [("a{i}.jpg", "a{i}_mask.png"), ("images/a{i}.jpg", "masks/a{i}.png")])
def test_one_folder_holds_both(tmp_path: Path, image: str, mask: str) -> None:
    pairs(tmp_path / "all", image, mask)
    found = look(tmp_path / "all").data.found
    assert [p.name for p, _ in found.pairs] == [f"a{i}.jpg" for i in range(4)]
    assert all(m.suffix == ".png" for _, m in found.pairs)


def test_folders_called_train_and_val_are_splits(tmp_path: Path) -> None:
    for split, count in (("train", 5), ("val", 3)):
        pairs(tmp_path, f"images/{split}/{split}{{i}}.jpg", f"masks/{split}/{split}{{i}}.png", count=count)
    data = look(tmp_path / "images", tmp_path / "masks").data
    assert {name: len(chosen) for name, chosen in data.splits.items()} == {"train": 5, "val": 3}


def test_list_files_that_are_there_are_used_and_others_are_said(tmp_path: Path) -> None:
    pairs(tmp_path, "images/a{i}.jpg", "masks/a{i}.png")
    lines = [f"images/a{i}.jpg masks/a{i}.png\n" for i in range(4)]
    (tmp_path / "train.txt").write_text("".join(lines[:3]))
    (tmp_path / "val.txt").write_text(lines[3])
    assert set(look(tmp_path / "images", tmp_path / "masks").data.lists) == {"train", "val"}
    (tmp_path / "val.txt").write_text("images/gone.jpg masks/gone.png\n")
    seen = look(tmp_path / "images", tmp_path / "masks")
    assert set(seen.data.lists) == {"train"}
    assert any("val.txt" in doubt for doubt in seen.doubts)


def test_values_0_and_255_are_foreground_not_ignored(tmp_path: Path) -> None:
    pairs(tmp_path, "images/a{i}.jpg", "masks/a{i}.png", (0, 255))
    seen = look(tmp_path / "images")
    assert seen.reading.settings() == {
        "classes": ["background", "foreground"],
        "ids": {0: "background", 255: "foreground"},
        "ignore": [],
    }
    assert any("0 and 255" in doubt for doubt in seen.doubts)
    named = look(tmp_path / "images", classes="road,crack").reading
    assert named.classes == ["road", "crack"]


def test_255_beside_indices_is_ignored(tmp_path: Path) -> None:
    pairs(tmp_path, "images/a{i}.jpg", "masks/a{i}.png", (0, 1, 255))
    assert look(tmp_path / "images").reading.settings() == {"classes": ["class_0", "class_1"]}


def test_values_with_gaps_become_ids(tmp_path: Path) -> None:
    pairs(tmp_path, "images/a{i}.jpg", "masks/a{i}.png", (7, 11, 26))
    reading = look(tmp_path / "images").reading
    assert reading.ids == {7: "class_7", 11: "class_11", 26: "class_26"}


def test_sixteen_bit_masks(tmp_path: Path) -> None:
    for i in range(4):
        photo(tmp_path / "images" / f"a{i}.jpg")
        write(tmp_path / "masks" / f"a{i}.png", label((0, 300, 65535), i).astype(np.uint16))
    seen = look(tmp_path / "images")
    assert seen.encoding.deep
    assert seen.reading.ids == {0: "class_0", 300: "class_300"}
    assert seen.reading.ignore == [65535]


def test_palette_masks_lend_their_colours(tmp_path: Path) -> None:
    for i in range(4):
        photo(tmp_path / "images" / f"a{i}.jpg")
        mask = Image.fromarray(label((0, 1), i).astype(np.uint8), mode="P")
        mask.putpalette([10, 20, 30, 40, 50, 60])
        (tmp_path / "masks").mkdir(exist_ok=True)
        mask.save(tmp_path / "masks" / f"a{i}.png")
    assert look(tmp_path / "images").reading.palette == [(10, 20, 30), (40, 50, 60)]


@pytest.mark.parametrize("table", ["json", "csv", None])
def test_colours_are_explained_by_a_class_file(tmp_path: Path, table: str | None) -> None:
    colours = {"road": (128, 64, 128), "car": (0, 0, 142), "void": (0, 0, 0)}
    for i in range(4):
        photo(tmp_path / "images" / f"a{i}.jpg")
        write(tmp_path / "masks" / f"a{i}.png", np.array(list(colours.values()), np.uint8)[label((0, 1, 2), i)])
    if table == "json":
        (tmp_path / "classes.json").write_text(json.dumps({"names": list(colours), "palette": list(colours.values())}))
    elif table == "csv":
        rows = [f"{name},{r},{g},{b}\n" for name, (r, g, b) in colours.items()]
        (tmp_path / "class_dict.csv").write_text("name,r,g,b\n" + "".join(rows))
    seen = look(tmp_path / "images")
    assert seen.encoding.kind == "rgb"
    if table is None:
        assert sorted(seen.reading.colours) == ["0,0,0", "0,0,142", "128,64,128"]
        assert any("no class names" in doubt for doubt in seen.doubts)
        return
    assert seen.reading.classes == ["road", "car"]
    assert seen.reading.colours == {"128,64,128": "road", "0,0,142": "car", "0,0,0": None}


def test_smeared_masks_are_said(tmp_path: Path) -> None:
    for i in range(4):
        photo(tmp_path / "images" / f"a{i}.png")
        write(tmp_path / "masks" / f"a{i}.jpg", label((0, 120, 250), i).repeat(8, 0).repeat(8, 1).astype(np.uint8))
    seen = look(tmp_path / "images", tmp_path / "masks")
    assert seen.encoding.lossy
    assert seen.reading.others
    assert any("JPEG" in doubt for doubt in seen.doubts)
    assert len(seen.reading.classes) == 3


def test_images_without_masks_become_unlabelled(tmp_path: Path) -> None:
    pairs(tmp_path, "images/a{i}.jpg", "masks/a{i}.png")
    for i in range(12):
        photo(tmp_path / "images" / f"bare{i}.jpg", i)
    seen = look(tmp_path / "images", tmp_path / "masks")
    assert seen.unlabeled is not None
    assert len(seen.unlabeled.images) == 12
    photo(tmp_path / "more" / "x.jpg")
    given = look(tmp_path / "images", tmp_path / "masks", unlabeled=tmp_path / "more").unlabeled
    assert given is not None
    assert [path.name for path in given.images] == ["x.jpg"]


def test_a_target_with_other_values_is_said(tmp_path: Path) -> None:
    pairs(tmp_path / "day", "images/a{i}.jpg", "masks/a{i}.png")
    pairs(tmp_path / "night", "images/a{i}.jpg", "masks/a{i}.png", (0, 1, 9))
    seen = look(tmp_path / "day" / "images", target=tmp_path / "night")
    assert seen.target is not None
    assert len(seen.target.found.pairs) == 4
    assert any("new values: 9" in doubt for doubt in seen.doubts)


def test_sequences_in_names_become_groups(tmp_path: Path) -> None:
    for scene in ("north", "south"):
        pairs(tmp_path, f"images/{scene}_{{i}}.jpg", f"masks/{scene}_{{i}}.png")
    data = look(tmp_path / "images", tmp_path / "masks").data
    assert data.groups == 2
    assert data.group is not None


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    pairs(tmp_path, "images/a{i}.jpg", "masks/a{i}.png", count=6)
    broken = tmp_path / "masks" / "a2.png"
    broken.write_bytes(broken.read_bytes()[:40])
    assert any("a2.png" in doubt for doubt in look(tmp_path / "images", tmp_path / "masks").doubts)


def plant_nothing(root: Path) -> None:
    (root / "images").mkdir()


def plant_no_masks(root: Path) -> None:
    for i in range(4):
        photo(root / "images" / f"a{i}.jpg")


def plant_other_names(root: Path) -> None:
    pairs(root, "images/a{i}.jpg", "masks/b{i}.png")


@pytest.mark.parametrize(
    ("plant", "masks", "code"),
    [
        (lambda root: None, None, "folder-missing"),
        (plant_nothing, None, "folder-empty"),
        (plant_no_masks, None, "image-unpaired"),
        (plant_other_names, "masks", "image-unpaired"),
    ],
)
def test_errors(tmp_path: Path, plant, masks: str | None, code: str) -> None:  # type: ignore[no-untyped-def]
    plant(tmp_path)
    with raises_code(code) as caught:
        look(tmp_path / "images", None if masks is None else tmp_path / masks)
    assert caught.value.remedy
