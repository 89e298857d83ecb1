"""Every public data set on a tiny tree in its official layout and file formats."""

import json
import os
import pickle
import shutil
import sys
import types
from itertools import chain
from pathlib import Path
from typing import get_args

import cv2
import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from tests.errors import raises_code
from tutelage.data.catalogue import (
    KINDS,
    CatalogueSettings,
    class_list,
    class_subsets,
    expected_counts,
    label_map,
    open_catalogue,
    report_counts,
    variants,
)
from tutelage.data.catalogue.facts import fact
from tutelage.data.catalogue.source import Kind
from tutelage.data.dataset import Dataset, plain
from tutelage.data.images import IMAGE_SUFFIXES
from tutelage.data.labels import unpack

SIZE = (4, 6)
SHARED = Path(__file__).parents[2] / "../shared/methods/datasets.json"


def image(path: Path, size: tuple[int, int] = SIZE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    colours = np.random.default_rng(len(str(path))).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(colours).save(path)


def filled(values: list[int], size: tuple[int, int] = SIZE) -> np.ndarray:
    """``values`` in the first pixels, the last of them everywhere else."""
    result = np.full(size, values[-1], dtype=np.int64)
    result.ravel()[: len(values)] = values
    return result


def grey(path: Path, values: list[int], size: tuple[int, int] = SIZE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(filled(values, size).astype(np.uint8)).save(path)


def palette(path: Path, values: list[int], colours: list[tuple[int, int, int]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(filled(values).astype(np.uint8), mode="P")
    picture.putpalette(list(chain.from_iterable(colours)))
    picture.save(path)


def colour(path: Path, values: list[tuple[int, int, int]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.empty((*SIZE, 3), dtype=np.uint8)
    pixels[:] = values[-1]
    pixels.reshape(-1, 3)[: len(values)] = values
    Image.fromarray(pixels).save(path)


def text(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def opened(root: Path, kind: str, **settings):
    return open_catalogue(CatalogueSettings(kind=kind, root=str(root), **settings), Path("/"))


def names(dataset: Dataset) -> list[str]:
    return [sample.image.name for sample in dataset.samples]


def groups(dataset: Dataset) -> list[str]:
    return [sample.group for sample in dataset.samples]


def first_ids(dataset: Dataset, count: int, index: int = 0) -> list[int]:
    return dataset.label(index).ravel()[:count].tolist()


# ---------------------------------------------------------------- the facts


def test_every_kind_has_facts_and_layouts() -> None:
    assert set(get_args(Kind)) == set(KINDS)
    for kind, packagings in KINDS.items():
        assert set(fact(kind, "counts")) == set(packagings) == set(variants(kind))
        for variant, layouts in packagings.items():
            for layout in layouts:
                classes, table = class_list(layout.classes), label_map(layout.label_map)
                ids = {i for i in table.table.values() if i != 255}
                assert ids <= set(range(len(classes)))
                assert len({plain(name) for name in classes.names}) == len(classes)  # bridging compares plain names
                assert set(expected_counts(kind, variant)) <= set(layout.splits)
                assert all(source.image.endswith(IMAGE_SUFFIXES) for s in layout.splits.values() for source in s)


def test_cirkd_classes_of_coco_keep_their_raw_values() -> None:
    classes, table = class_list("coco_stuff_182"), label_map("coco_stuff_182")
    assert len(classes) == 182
    assert all(table.table[i] == i for i in range(182))
    few = class_list("coco_stuff_171")
    for raw, i in label_map("coco_stuff_171").table.items():
        if raw != 255:
            assert classes.names[raw] == few.names[i]
            assert classes.palette[raw] == few.palette[i]


def test_subsets_of_synthia() -> None:
    subsets = class_subsets("synthia")
    assert {name: len(ids) for name, ids in subsets.items()} == {"16": 16, "13": 13}
    left_out = {class_list("cityscapes").names[i] for i in set(subsets["16"]) - set(subsets["13"])}
    assert left_out == {"wall", "fence", "pole"}
    assert class_subsets("camvid") == {}


@pytest.mark.skipif(not SHARED.is_file(), reason="the workshop's shared/methods/datasets.json is not here")
class TestAgainstSpecification:
    NAMES = {
        "synthia": "synthia_rand_cityscapes",
        "voc_aug": "pascal_voc_2012_aug",
        "coco_stuff": "coco_stuff_164k",
        "potsdam": "isprs_potsdam",
        "vaihingen": "isprs_vaihingen",
    }

    @pytest.fixture(params=sorted(KINDS))
    def pair(self, request):
        data_sets = json.loads(SHARED.read_text())["datasets"]
        return request.param, data_sets[self.NAMES.get(request.param, request.param)]

    def test_all_of_it_is_here(self) -> None:
        data_sets = json.loads(SHARED.read_text())["datasets"]
        assert {self.NAMES.get(kind, kind) for kind in KINDS} == set(data_sets)

    def test_classes_and_palette(self, pair) -> None:
        kind, spec = pair
        for layout in chain.from_iterable(KINDS[kind].values()):
            classes = class_list(layout.classes)
            if layout.classes == "coco_stuff_182":
                assert list(classes.names) == [name.strip() for name in spec["raw_182_names"]]
                continue
            assert list(classes.names) == [name.strip() for name in spec["classes"]]
            assert [list(c) for c in classes.palette] == spec["palette_rgb"]
            assert len(classes) == spec["num_classes"]

    def test_tables(self, pair) -> None:
        kind, spec = pair
        for layout in chain.from_iterable(KINDS[kind].values()):
            table = label_map(layout.label_map)
            if table.encoding == "rgb":
                rows = spec.get("raw_label_colours") or spec["colour_label_32_classes_to_11"]
                colours = {unpack(packed): i for packed, i in table.table.items()}
                assert colours == {tuple(row["rgb"]): row["train_id"] for row in rows}
                assert table.others == (0 if "unmatched_colours" in spec else 255 if kind != "camvid" else None)
            elif layout.label_map in ("cityscapes_train_ids", "coco_stuff_182"):
                count = len(class_list(layout.classes))
                assert table.table == {**{i: i for i in range(count)}, 255: 255}
                assert table.others is None
            else:
                counted = {raw: i for raw, i in table.table.items() if i != 255}
                assert counted == {int(raw): i for raw, i in spec["raw_id_to_train_id"].items()}
                assert table.others == (255 if spec.get("raw_ids_all_others", "").startswith("ignore") else None)
                if "void_raw_id" in spec:
                    assert table.table[spec["void_raw_id"]] == 255
                assert not set(spec.get("raw_ids_never_present", [])) & set(table.table)

    def test_counts(self, pair) -> None:
        kind, spec = pair
        counts = dict(spec["counts"])
        ours = {variant: expected_counts(kind, variant) for variant in variants(kind)}
        if kind == "gta5":
            assert ours["ids"] == {"all": counts.pop("all")} | {k.rpartition("_")[2]: n for k, n in counts.items()}
        elif kind in ("potsdam", "vaihingen"):
            clips = spec.get("clips_512_no_overlap") or spec["clips_512_stride_256"]
            assert clips.items() <= ours["irrg"].items()
            assert ours["irrg_tiles"] == {
                "train": counts["train_tiles"],
                "val": counts["val_tiles"],
                "all": counts["tiles"],
            }
            for name, tiles in fact(kind, "tiles").items():
                assert tiles == spec[f"{name}_tiles"]
                assert len(tiles) == counts[f"{name}_tiles"]
        elif kind.startswith("city_osm"):
            assert ours == {"clips": {**spec["clips_512"], "all": counts["clips"]}, "images": {"all": counts["images"]}}
        elif kind == "loveda":
            assert fact(kind, "ranges") == spec["index_ranges"]
            for (first, last), name in ((fact(kind, "ranges")[n], n) for n in spec["index_ranges"]):
                split, _, area = name.partition("_")
                assert last - first + 1 == ours[area][split] == counts[name]
            assert ours["all"].items() <= counts.items()
        elif kind == "dark_zurich":
            assert {f"train_{v}": ours[v]["train"] for v in ("night", "twilight", "day")}.items() <= counts.items()
            assert (ours["night"]["val"], ours["night"]["test"]) == (counts["val_night"], counts["test_night"])
        elif kind == "acdc":
            assert {s: ours["all"][s] for s in ("train", "val", "test")}.items() <= counts.items()
            for condition, numbers in counts["per_condition"].items():
                assert [ours[condition][s] for s in ("train", "val", "test")] == numbers
        else:
            spelling = {"train_extra": "train_extra_coarse"}
            known = {spelling.get(s, s): n for s, n in ours[variants(kind)[0]].items()}
            if kind == "cityscapes":
                assert known.pop("trainval") == counts["train"] + counts["val"]
            assert known.items() <= counts.items()


# ---------------------------------------------------------------- one tree a data set


@pytest.fixture
def cityscapes(tmp_path: Path) -> Path:
    for split, city, frame in (
        ("train", "aachen", "000000_000019"),
        ("train", "aachen", "000001_000019"),
        ("train", "zurich", "000000_000019"),
        ("val", "lindau", "000003_000019"),
        ("test", "berlin", "000000_000019"),
    ):
        image(tmp_path / f"leftImg8bit/{split}/{city}/{city}_{frame}_leftImg8bit.png")
        base = f"{tmp_path}/gtFine/{split}/{city}/{city}_{frame}_gtFine"
        grey(Path(f"{base}_labelIds.png"), [7, 33, 0, 255, 34, 26])
        grey(Path(f"{base}_labelTrainIds.png"), [0, 18, 255, 255, 255, 13])
        grey(Path(f"{base}_instanceIds.png"), [7])
    image(tmp_path / "leftImg8bit/train_extra/bayreuth/bayreuth_000000_000019_leftImg8bit.png")
    grey(tmp_path / "gtCoarse/train_extra/bayreuth/bayreuth_000000_000019_gtCoarse_labelIds.png", [8])
    return tmp_path


def test_cityscapes(cityscapes: Path) -> None:
    splits = opened(cityscapes, "cityscapes")
    assert {name: len(splits[name]) for name in splits} == {
        "train": 3,
        "val": 1,
        "test": 1,
        "trainval": 4,
        "train_extra": 1,
    }
    train = splits["train"]
    assert groups(train) == ["aachen_000000", "aachen_000001", "zurich_000000"]
    assert train.samples[0].name == "leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit"
    assert first_ids(train, 6) == [0, 18, 255, 255, 255, 13]
    assert first_ids(splits["train_extra"], 1) == [1]
    assert train.classes.names[0] == "road"
    assert all(sample.label is None for sample in splits["test"].samples)  # its masks are dummies
    assert report_counts("cityscapes", splits) == [
        "train: 3 images (2975 expected)",
        "val: 1 images (500 expected)",
        "test: 1 images (1525 expected), no masks",
        "trainval: 4 images (3475 expected)",
        "train_extra: 1 images (19998 expected)",
    ]
    assert len(pickle.loads(pickle.dumps(train))) == 3


def test_cityscapes_train_ids(cityscapes: Path) -> None:
    splits = opened(cityscapes, "cityscapes", variant="train_ids")
    assert first_ids(splits["train"], 6) == [0, 18, 255, 255, 255, 13]
    grey(splits["val"].samples[0].label, [0, 19])
    with raises_code("mask-value", "lindau_", "labelTrainIds.png", "19 (23 pixels)"):
        splits["val"].label(0)


def test_a_missing_mask_is_named(cityscapes: Path) -> None:
    lost = cityscapes / "gtFine/train/zurich/zurich_000000_000019_gtFine_labelIds.png"
    lost.unlink()
    splits = opened(cityscapes, "cityscapes")
    assert len(splits["val"]) == 1  # the other splits are not concerned
    train = splits["train"]  # it may be meant as unlabelled data
    with raises_code("mask-missing", "here: 1 of 3 masks") as error:
        train.require_labels("here")
    assert str(lost) in error.value.message
    assert "train_ids" in error.value.message
    assert report_counts("cityscapes", {"train": train}) == ["train: 3 images (2975 expected), 1 without mask"]


def test_images_without_any_masks_are_unlabelled(cityscapes: Path) -> None:
    os.rename(cityscapes / "gtFine", cityscapes / "elsewhere")
    splits = opened(cityscapes, "cityscapes")
    assert not splits["train"].labeled
    assert report_counts("cityscapes", {"train": splits["train"]}) == ["train: 3 images (2975 expected), no masks"]


def test_absent_splits_are_left_out(cityscapes: Path) -> None:
    os.rename(cityscapes / "leftImg8bit/val", cityscapes / "leftImg8bit/hidden")
    splits = opened(cityscapes, "cityscapes")
    assert list(splits) == ["train", "test", "train_extra"]
    assert "val" not in splits
    with raises_code("split-missing", "leftImg8bit/val/"):
        splits["val"]
    with raises_code("split-missing"):
        splits["val"]
    with raises_code("unknown-split", "nonsense"):
        splits["nonsense"]


def test_nothing_found_says_what_was_expected(tmp_path: Path) -> None:
    with raises_code("folder-missing"):
        opened(tmp_path / "nowhere", "acdc")
    for kind in KINDS:
        for variant in variants(kind):
            with raises_code("dataset-layout") as error:
                opened(tmp_path, kind, variant=variant)
            layout = KINDS[kind][variant][0]
            first = next(iter(layout.splits.values()))[0]
            assert first.image in error.value.message
            assert first.image in error.value.remedy


def test_splits_are_opened_when_asked_for(cityscapes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    splits = opened(cityscapes, "cityscapes")
    assert splits["val"] is splits["val"]
    image(cityscapes / "leftImg8bit/train/bochum/bochum_000000_000313_leftImg8bit.png")
    grey(cityscapes / "gtFine/train/bochum/bochum_000000_000313_gtFine_labelIds.png", [7])
    assert len(splits["train"]) == 4


def test_settings_know_their_variants(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=r"'day'.* ids, train_ids"):
        CatalogueSettings(kind="cityscapes", root=".", variant="day")
    assert all(field.description for field in CatalogueSettings.model_fields.values())


def test_group_of_the_user(cityscapes: Path) -> None:
    splits = opened(cityscapes, "cityscapes", group=r"train/([^/]+)/")
    assert groups(splits["train"]) == ["aachen", "aachen", "zurich"]


def test_gta5(tmp_path: Path) -> None:
    colours = [(i, 255 - i, 7) for i in range(35)]
    for number in (1, 2, 3):
        image(tmp_path / f"GTA5/images/{number:05d}.png")
        palette(tmp_path / f"GTA5/labels/{number:05d}.png", [7, 34, 0, 26], colours)
    grey(tmp_path / "GTA5/labels/00003.png", [11], (2, 3))  # smaller than its image
    splits = opened(tmp_path, "gta5")
    assert list(splits) == ["all"]
    assert names(splits["all"]) == ["00001.png", "00002.png", "00003.png"]
    assert first_ids(splits["all"], 4) == [0, 255, 255, 13]
    assert splits["all"].label(2).shape == SIZE
    assert report_counts("gta5", splits) == ["all: 3 images (24966 expected)"]


def test_gta5_official_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in (1, 2, 3):
        image(tmp_path / f"images/{number:05d}.png")
        grey(tmp_path / f"labels/{number:05d}.png", [7])
    (tmp_path / "split.mat").write_bytes(b"MATLAB")
    splits = opened(tmp_path, "gta5")
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with raises_code("package-missing"):
        splits["train"]
    content = {"trainIds": np.array([[3], [1]], np.uint16), "valIds": np.array([[2]], np.uint16)}
    monkeypatch.setitem(sys.modules, "scipy.io", types.SimpleNamespace(loadmat=lambda path: content))
    assert names(splits["train"]) == ["00003.png", "00001.png"]
    assert splits["val"].labeled
    with raises_code("list-unreadable", "split.mat"):
        splits["test"]


def test_synthia(tmp_path: Path) -> None:
    for number in (0, 1):
        image(tmp_path / f"RAND_CITYSCAPES/RGB/{number:07d}.png")
        path = tmp_path / f"RAND_CITYSCAPES/GT/LABELS/{number:07d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        channels = np.zeros((*SIZE, 3), dtype=np.uint16)
        channels[..., 2] = filled([0, 1, 3, 21, 10, 22])  # OpenCV keeps red last
        channels[..., 1] = 40_000  # instance ids do not fit into eight bits
        cv2.imwrite(str(path), channels)
    splits = opened(tmp_path, "synthia")
    assert list(splits) == ["all"]
    assert first_ids(splits["all"], 6) == [255, 10, 0, 3, 11, 255]
    assert splits["all"].classes.names == class_list("cityscapes").names


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    home = tmp_path / "VOCdevkit/VOC2012"
    colours = list(class_list("voc").palette)
    for name in ("2007_000032", "2007_000033", "2008_000008", "2012_004331"):
        image(home / f"JPEGImages/{name}.jpg")
    for name in ("2007_000032", "2007_000033"):
        palette(home / f"SegmentationClass/{name}.png", [0, 1, 255], colours)
    for name in ("2007_000032", "2008_000008", "2007_000033"):
        grey(home / f"SegmentationClassAug/{name}.png", [0, 20, 255])
    text(home / "ImageSets/Segmentation/train.txt", "2007_000032")
    text(home / "ImageSets/Segmentation/val.txt", "2007_000033")
    text(home / "ImageSets/Segmentation/trainval.txt", "2007_000032", "2007_000033")
    return tmp_path


def test_voc(voc: Path) -> None:
    splits = opened(voc, "voc_aug")
    assert names(splits["train"]) == ["2007_000032.jpg"]
    assert names(splits["trainval"]) == ["2007_000032.jpg", "2007_000033.jpg"]
    assert first_ids(splits["val"], 3) == [0, 1, 255]
    # Without a list: every image with a mask, except those of val.
    assert names(splits["train_aug"]) == ["2007_000032.jpg", "2008_000008.jpg"]
    assert first_ids(splits["train_aug"], 3) == [0, 20, 255]
    finer = opened(voc, "voc_aug", variant="voc")["train_aug"]
    assert [first_ids(finer, 3, index) for index in (0, 1)] == [[0, 1, 255], [0, 20, 255]]
    text(voc / "VOCdevkit/VOC2012/ImageSets/Segmentation/trainaug.txt", "2008_000008")
    assert names(opened(voc, "voc_aug")["train_aug"]) == ["2008_000008.jpg"]
    grey(voc / "VOCdevkit/VOC2012/SegmentationClass/2007_000033.png", [21])
    with raises_code("mask-value", "21 (24 pixels)"):
        splits["val"].label(0)


def test_voc_without_sbd(voc: Path) -> None:
    os.rename(voc / "VOCdevkit/VOC2012/SegmentationClassAug", voc / "away")
    splits = opened(voc, "voc_aug")
    assert list(splits) == ["train", "val", "trainval"]
    with raises_code("split-missing", "SegmentationClassAug") as error:
        splits["train_aug"]
    assert ".mat" in error.value.remedy


def test_camvid_segnet(tmp_path: Path) -> None:
    for split, name in (("train", "0001TP_006690"), ("train", "Seq05VD_f00000"), ("val", "0016E5_07959")):
        image(tmp_path / f"CamVid/{split}/{name}.png")
        grey(tmp_path / f"CamVid/{split}annot/{name}.png", [0, 10, 11])
    splits = opened(tmp_path, "camvid")
    assert list(splits) == ["train", "val", "trainval"]
    assert groups(splits["trainval"]) == ["0001TP", "Seq05VD", "0016E5"]
    assert first_ids(splits["train"], 3) == [0, 10, 255]
    grey(tmp_path / "CamVid/valannot/0016E5_07959.png", [12])
    with raises_code("mask-value", "12 (24 pixels)"):
        splits["val"].label(0)


def test_camvid_original(tmp_path: Path) -> None:
    for name in ("0001TP_006690", "0006R0_f00930"):
        image(tmp_path / f"701_StillsRaw_full/{name}.png")
        colour(
            tmp_path / f"LabeledApproved_full/{name}_L.png",
            [(128, 128, 128), (0, 128, 192), (192, 0, 192), (0, 0, 0), (64, 128, 192)],
        )
    splits = opened(tmp_path, "camvid", variant="original")
    assert list(splits) == ["all"]
    assert first_ids(splits["all"], 5) == [0, 10, 10, 255, 8]
    with raises_code("split-missing", "train.txt") as error:
        splits["train"]
    assert "SegNet's" in error.value.remedy
    # The lists of the other packaging name the same images.
    text(tmp_path / "train.txt", "/SegNet/CamVid/train/0006R0_f00930.png /SegNet/CamVid/trainannot/0006R0_f00930.png")
    train = opened(tmp_path, "camvid", variant="original")["train"]
    assert names(train) == ["0006R0_f00930.png"]
    assert first_ids(train, 2) == [0, 10]
    colour(train.samples[0].label, [(1, 2, 3), (0, 0, 0)])
    with raises_code("mask-value", "1,2,3 (1 pixels)"):
        train.label(0)


def test_camvid_tsic(tmp_path: Path) -> None:
    for name in ("0001TP_006690", "0006R0_f00930"):
        image(tmp_path / f"CamVid-main/CamVid_RGB/{name}.png")
        grey(tmp_path / f"CamVid-main/CamVidGray/{name}_L.png", [3, 11])
    text(tmp_path / "CamVid-main/camvid_trainval_formmseg.txt", "0001TP_006690")
    text(tmp_path / "CamVid-main/camvid_test_formmseg.txt", "0006R0_f00930")
    splits = opened(tmp_path, "camvid", variant="tsic")
    assert {name: len(splits[name]) for name in splits} == {"trainval": 1, "test": 1, "all": 2}
    assert first_ids(splits["test"], 2) == [3, 255]
    assert groups(splits["test"]) == ["0006R0"]


def test_ade20k(tmp_path: Path) -> None:
    home = tmp_path / "ADEChallengeData2016"
    for split, name in (("training", "ADE_train_00000001"), ("validation", "ADE_val_00000001")):
        image(home / f"images/{split}/{name}.jpg")
        grey(home / f"annotations/{split}/{name}.png", [0, 1, 8, 150, 255])
    image(home / "images/testing/ADE_test_00000001.jpg")
    splits = opened(tmp_path, "ade20k")
    assert list(splits) == ["train", "val", "test"]
    assert first_ids(splits["val"], 5) == [255, 0, 7, 149, 255]
    assert splits["val"].classes.names[7] == "bed"
    assert not splits["test"].labeled


def test_coco_stuff(tmp_path: Path) -> None:
    for split, number in (("train2017", 9), ("val2017", 139)):
        image(tmp_path / f"images/{split}/{number:012d}.jpg")
        grey(tmp_path / f"annotations/{split}/{number:012d}.png", [0, 12, 181, 255])
        grey(tmp_path / f"annotations/{split}/{number:012d}_labelTrainIds.png", [0, 11, 170, 255])
    assert first_ids(opened(tmp_path, "coco_stuff")["train"], 4) == [0, 11, 170, 255]
    all_values = opened(tmp_path, "coco_stuff", variant="182")["val"]
    assert first_ids(all_values, 4) == [0, 12, 181, 255]
    assert len(all_values.classes) == 182
    grey(tmp_path / "annotations/train2017/000000000009.png", [11])
    with raises_code("mask-value", "000000000009.png", "11 (24 pixels)"):  # a raw value that never occurs
        opened(tmp_path, "coco_stuff")["train"].label(0)


ISPRS = [(0, 0, 0), (255, 255, 255), (0, 0, 255), (0, 255, 255), (0, 255, 0), (255, 255, 0), (255, 0, 0), (254, 0, 0)]


@pytest.mark.parametrize(("variant", "bands"), [(None, "IRRG"), ("rgb", "RGB")])
def test_potsdam_clips(tmp_path: Path, variant: str | None, bands: str) -> None:
    for split, name in (("train", "2_10_0_0_512_512"), ("train", "6_7_512_0_1024_512"), ("val", "2_13_0_0_512_512")):
        image(tmp_path / f"Potsdam_{bands}_DA/img_dir/{split}/{name}.png")
        grey(tmp_path / f"Potsdam_{bands}_DA/ann_dir/{split}/{name}.png", [0, 1, 6])
    splits = opened(tmp_path, "potsdam", variant=variant)
    assert {name: groups(splits[name]) for name in splits} == {
        "train": ["2_10", "6_7"],
        "val": ["2_13"],
        "trainval": ["2_10", "6_7", "2_13"],
    }
    assert first_ids(splits["train"], 3) == [255, 0, 5]
    grey(tmp_path / f"Potsdam_{bands}_DA/ann_dir/val/2_13_0_0_512_512.png", [7])
    with raises_code("mask-value", "7 (24 pixels)"):
        splits["val"].label(0)


@pytest.mark.parametrize("nested", ["", "2_Ortho_RGB/"])
def test_potsdam_tiles(tmp_path: Path, nested: str) -> None:
    for tile in ("2_10", "7_9", "4_15"):
        image(tmp_path / f"2_Ortho_RGB/{nested}top_potsdam_{tile}_RGB.tif")
        colour(tmp_path / f"5_Labels_all_noBoundary/top_potsdam_{tile}_label_noBoundary.tif", ISPRS)
    splits = opened(tmp_path, "potsdam", variant="rgb_tiles")
    assert {name: groups(splits[name]) for name in splits} == {
        "train": ["2_10", "7_9"],
        "val": ["4_15"],
        "all": ["2_10", "4_15", "7_9"],
    }
    assert first_ids(splits["val"], 8) == [255, 0, 1, 2, 3, 4, 5, 255]
    assert report_counts("potsdam", splits)[0] == "train: 2 images (24 expected)"


def test_vaihingen_clips(tmp_path: Path) -> None:
    for split, name in (("train", "area1_0_0_512_512"), ("val", "area13_256_0_768_512")):
        image(tmp_path / f"Vaihingen_IRRG_DA/img_dir/{split}/{name}.png")
        grey(tmp_path / f"Vaihingen_IRRG_DA/ann_dir/{split}/{name}.png", [0, 1, 6])
    splits = opened(tmp_path / "Vaihingen_IRRG_DA", "vaihingen")
    assert groups(splits["trainval"]) == ["area1", "area13"]
    assert first_ids(splits["val"], 3) == [255, 0, 5]


@pytest.mark.parametrize("labels", ["", "ISPRS_semantic_labeling_Vaihingen_ground_truth_eroded_COMPLETE/"])
def test_vaihingen_tiles(tmp_path: Path, labels: str) -> None:
    for area in (1, 2, 9):
        image(tmp_path / f"top/top_mosaic_09cm_area{area}.tif")
        if area != 9:
            colour(tmp_path / f"{labels}top_mosaic_09cm_area{area}_noBoundary.tif", ISPRS)
    splits = opened(tmp_path, "vaihingen", variant="irrg_tiles")
    assert {name: groups(splits[name]) for name in splits} == {
        "train": ["area1"],
        "val": ["area2"],
        "all": ["area1", "area2"],
    }
    assert first_ids(splits["train"], 8) == [255, 0, 1, 2, 3, 4, 5, 255]
    assert groups(opened(tmp_path, "vaihingen", variant="irrg_tiles_official")["test"]) == ["area2"]


@pytest.mark.parametrize("city", ["paris", "chicago"])
def test_city_osm(tmp_path: Path, city: str) -> None:
    for clip in ("1_0_0_512_512", "1_512_0_1024_512", "2_0_0_512_512"):
        image(tmp_path / f"CITY_{city}/img_dir/{city}{clip}.png")
        grey(tmp_path / f"CITY_{city}/ann_dir/{city}{clip}.png", [0, 1, 2])
    text(tmp_path / f"CITY_{city}/train.txt", f"{city}2_0_0_512_512", f"{city}1_0_0_512_512")
    text(tmp_path / f"CITY_{city}/val.txt", f"{city}1_512_0_1024_512")
    splits = opened(tmp_path, f"city_osm_{city}")
    assert {name: groups(splits[name]) for name in splits} == {
        "train": [f"{city}2", f"{city}1"],
        "val": [f"{city}1"],
        "all": [f"{city}1", f"{city}1", f"{city}2"],
    }
    assert first_ids(splits["train"], 3) == [0, 1, 2]
    grey(tmp_path / f"CITY_{city}/ann_dir/{city}1_512_0_1024_512.png", [255])
    with raises_code("mask-value", "255 (24 pixels)"):  # there is no ignored value in these files
        splits["val"].label(0)


def test_city_osm_images(tmp_path: Path) -> None:
    for number in (1, 12):
        image(tmp_path / f"paris{number}_image.png")
        colour(tmp_path / f"paris{number}_labels.png", [(255, 255, 255), (0, 0, 255), (255, 0, 0), (9, 9, 9)])
    splits = opened(tmp_path, "city_osm_paris", variant="images")
    assert groups(splits["all"]) == ["paris12", "paris1"]
    assert first_ids(splits["all"], 4) == [0, 1, 2, 0]


@pytest.fixture(params=["official", "merged"])
def loveda(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    for split, area, number in (
        ("Train", "Rural", 0),
        ("Train", "Urban", 1366),
        ("Val", "Rural", 2522),
        ("Test", "Urban", 5167),
    ):
        if request.param == "official":
            images, masks = f"LoveDA/{split}/{area}/images_png", f"LoveDA/{split}/{area}/masks_png"
        else:
            images, masks = f"img_dir/{split.lower()}", f"ann_dir/{split.lower()}"
        image(tmp_path / images / f"{number}.png")
        if split != "Test":
            grey(tmp_path / masks / f"{number}.png", [0, 1, 7])
    return tmp_path


def test_loveda(loveda: Path) -> None:
    splits = opened(loveda, "loveda")
    assert {name: len(splits[name]) for name in splits} == {"train": 2, "val": 1, "test": 1}
    assert first_ids(splits["train"], 3) == [255, 0, 6]
    assert not splits["test"].labeled
    rural = opened(loveda, "loveda", variant="rural")
    assert [names(rural[split]) for split in ("train", "val")] == [["0.png"], ["2522.png"]]
    urban = opened(loveda, "loveda", variant="urban")
    assert [names(urban[split]) for split in ("train", "test")] == [["1366.png"], ["5167.png"]]


def test_dark_zurich(tmp_path: Path) -> None:
    for place in ("train/night/GOPR0345", "train/day/GOPR0345", "train/twilight/GP010397", "test/night/GOPR0364"):
        image(tmp_path / f"rgb_anon/{place}/{Path(place).name}_frame_000001_rgb_anon.png")
    image(tmp_path / "rgb_anon/val/night/GOPR0356/GOPR0356_frame_000321_rgb_anon.png")
    grey(tmp_path / "gt/val/night/GOPR0356/GOPR0356_frame_000321_gt_labelTrainIds.png", [0, 18, 255])
    image(tmp_path / "rgb_anon/val_ref/day/GOPR0356_ref/GOPR0356_frame_000321_ref_rgb_anon.png")
    splits = opened(tmp_path, "dark_zurich")
    assert {name: groups(splits[name]) for name in splits} == {
        "train": ["GOPR0345"],
        "val": ["GOPR0356"],
        "test": ["GOPR0364"],
        "val_ref": ["GOPR0356_ref"],
    }
    assert splits["train"].samples[0].label is None
    assert first_ids(splits["val"], 3) == [0, 18, 255]
    assert [splits[name].labeled for name in splits] == [False, True, False, False]
    assert len(opened(tmp_path, "dark_zurich", variant="all")["train"]) == 3
    assert groups(opened(tmp_path, "dark_zurich", variant="twilight")["train"]) == ["GP010397"]


def test_acdc(tmp_path: Path) -> None:
    for condition, sequence in (("fog", "GOPR0475"), ("night", "GOPR0351")):
        for split in ("train", "val", "test"):
            name = f"{sequence}_frame_000041"
            image(tmp_path / f"rgb_anon/{condition}/{split}/{sequence}/{name}_rgb_anon.png")
            image(tmp_path / f"rgb_anon/{condition}/{split}_ref/{sequence}/{name}_rgb_ref_anon.png")
            if split != "test":
                grey(tmp_path / f"gt/{condition}/{split}/{sequence}/{name}_gt_labelTrainIds.png", [5, 255])
                grey(tmp_path / f"gt/{condition}/{split}/{sequence}/{name}_gt_labelIds.png", [17, 0])
    splits = opened(tmp_path, "acdc")
    assert list(splits) == ["train", "val", "test", "train_ref", "val_ref", "test_ref"]
    assert groups(splits["train"]) == ["GOPR0475", "GOPR0351"]
    assert first_ids(splits["val"], 2) == [5, 255]
    assert not any(splits[name].labeled for name in ("test", "train_ref", "val_ref", "test_ref"))
    night = opened(tmp_path, "acdc", variant="night")
    assert groups(night["val"]) == ["GOPR0351"]
    assert report_counts("acdc", night)[1] == "val: 1 images (106 expected)"


# ---------------------------------------------------------------- lists of the user


def test_lists_of_pairs_images_and_ids(cityscapes: Path) -> None:
    aachen = "leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit.png"
    truth = "gtFine/train/aachen/aachen_000000_000019_gtFine"
    text(cityscapes / "trikd.txt", f"{aachen} {truth}_labelTrainIds.png")
    text(cityscapes / "cirkd.lst", f"{aachen}\t{truth}_labelIds.png")
    text(cityscapes / "images.txt", aachen)
    text(cityscapes / "lists/ids.txt", "zurich_000000_000019", "aachen_000001_000019_leftImg8bit", "")
    text(cityscapes / "foreign.txt", f"/mnt/proj/data/{aachen} /mnt/proj/data/{truth}_labelTrainIds.png")
    text(cityscapes / "test.lst", "leftImg8bit/test/berlin/berlin_000000_000019_leftImg8bit.png")
    splits = opened(
        cityscapes,
        "cityscapes",
        splits={
            "trikd": "trikd.txt",
            "cirkd": "cirkd.lst",
            "images": "images.txt",
            "ids": "lists/ids.txt",
            "foreign": "foreign.txt",
            "train": "images.txt",
            "test": "test.lst",
        },
    )
    # A list's labelTrainIds are read from labelIds here: the variant alone says what the masks store.
    for name in ("trikd", "cirkd", "images", "foreign", "train"):
        assert names(splits[name]) == ["aachen_000000_000019_leftImg8bit.png"], name
        assert splits[name].samples[0].label == cityscapes / f"{truth}_labelIds.png", name
        assert groups(splits[name]) == ["aachen_000000"]
    assert names(splits["ids"]) == ["zurich_000000_000019_leftImg8bit.png", "aachen_000001_000019_leftImg8bit.png"]
    assert splits["ids"].labeled
    assert not splits["test"].labeled
    assert "ids: 2 images" in report_counts("cityscapes", splits)
    other = opened(cityscapes, "cityscapes", variant="train_ids", splits={"cirkd": "cirkd.lst"})["cirkd"]
    assert other.samples[0].label == cityscapes / f"{truth}_labelTrainIds.png"


def test_lists_of_voc(voc: Path) -> None:
    text(voc / "u2pl.txt", "2008_000008", "2007_000032")
    text(voc / "unimatch.txt", "JPEGImages/2007_000032.jpg SegmentationClass/2007_000032.png")
    text(voc / "cirkd.txt", "/JPEGImages/2008_000008.jpg /SegmentationClassAug/2008_000008.png")
    text(voc / "val_ids.txt", "2007_000033")
    lists = {"labeled": "u2pl.txt", "unimatch": "unimatch.txt", "cirkd": "cirkd.txt", "val": "val_ids.txt"}
    splits = opened(voc, "voc_aug", splits=lists)
    assert [first_ids(splits["labeled"], 2, index) for index in (0, 1)] == [[0, 20], [0, 20]]
    assert first_ids(splits["unimatch"], 2) == [0, 1]
    assert first_ids(splits["cirkd"], 2) == [0, 20]
    assert first_ids(splits["val"], 2) == [0, 1]  # the official val reads VOC's own masks


def test_published_lists_need_no_masks_to_be_opened(cityscapes: Path) -> None:
    """The masks that lists of unlabelled images name are often not there; they are missed where they are read."""
    names_of = ("aachen/aachen_000000_000019", "aachen/aachen_000001_000019")
    text(
        cityscapes / "unlabeled.txt",
        *(f"leftImg8bit/train/{it}_leftImg8bit.png gtFine/train/{it}_gtFine_labelTrainIds.png" for it in names_of),
    )
    for file in (cityscapes / "gtFine/train/aachen").iterdir():
        if "000001_000019" in file.name:
            file.unlink()
    for variant in ("ids", "train_ids"):
        split = opened(cityscapes, "cityscapes", variant=variant, splits={"mine": "unlabeled.txt"})["mine"]
        assert [it.partition("_")[0] for it in names(split)] == ["aachen"] * 2
        assert not split.labeled
        with raises_code("mask-missing", "of 2 masks", "txt:"):
            split.require_labels("here")
        assert not any(sample.lost for sample in split.without_labels().samples)
        assert split.fingerprint  # the key of a training without these masks can be made
    shutil.rmtree(cityscapes / "gtFine")
    split = opened(cityscapes, "cityscapes", splits={"mine": "unlabeled.txt"})["mine"]
    assert [sample.label for sample in split.samples] == [None, None]
    assert all("gtFine" in sample.lost for sample in split.samples)


def test_masks_of_voc_lie_in_another_folder_than_lists_say(voc: Path) -> None:
    """UniMatch's lists name SegmentationClass for SBD's masks, too, which our layout keeps in SegmentationClassAug."""
    voc = voc / "VOCdevkit/VOC2012"
    text(voc / "blended.txt", "JPEGImages/2008_000008.jpg SegmentationClass/2008_000008.png")
    assert not (voc / "SegmentationClass/2008_000008.png").exists()
    split = opened(voc, "voc_aug", splits={"blended": "blended.txt"})["blended"]
    assert split.samples[0].label == voc / "SegmentationClassAug/2008_000008.png"
    (voc / "SegmentationClassAug/2008_000008.png").unlink()
    split = opened(voc, "voc_aug", splits={"blended": "blended.txt"})["blended"]
    assert split.samples[0].lost.endswith("SegmentationClass/2008_000008.png")


def test_faults_in_lists(cityscapes: Path) -> None:
    with raises_code("file-missing", "nowhere.txt"):
        opened(cityscapes, "cityscapes", splits={"mine": "nowhere.txt"})
    text(cityscapes / "mine.txt", "# a comment", "aachen_000009_000019")
    with raises_code("file-missing", "mine.txt:2:", "aachen_000009_000019"):
        opened(cityscapes, "cityscapes", splits={"mine": "mine.txt"})["mine"]
    text(cityscapes / "mine.txt", "leftImg8bit/val/lindau/lindau_000003_000019_leftImg8bit.png pseudo/lindau.png")
    lost = opened(cityscapes, "cityscapes", splits={"mine": "mine.txt"})["mine"]
    with raises_code("mask-missing", "1 of 1 masks", "mine.txt:1:", "pseudo/lindau.png"):
        lost.require_labels("here")
    text(cityscapes / "mine.txt", "lindau_000003_000019", "lindau_000003_000019")
    with raises_code("duplicate-name"):
        opened(cityscapes, "cityscapes", splits={"mine": "mine.txt"})["mine"]


def test_a_list_alone_is_enough(tmp_path: Path) -> None:
    """Images that are laid out in another way can still be used through a list of pairs."""
    image(tmp_path / "photos/a.png")
    grey(tmp_path / "truth/a.png", [7, 0])
    text(tmp_path / "mine.txt", "photos/a.png truth/a.png")
    splits = opened(tmp_path, "cityscapes", splits={"mine": "mine.txt"})
    assert list(splits) == ["mine"]
    assert first_ids(splits["mine"], 2) == [0, 255]
