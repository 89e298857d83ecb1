"""File layouts of public data sets, as the official archives unpack them.

A pattern is a path relative to the data set's folder in which ``<field>`` stands for any text without a slash; the
pattern of a mask is filled with the fields of its image's path. A layout is declarative: the images of a split, the
mask of an image, and the sequence, tile or city of an image.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

from tutelage.data.catalogue.facts import fact

_FIELD = re.compile(r"<(\w+)>")


def wildcard(pattern: str) -> str:
    """Convert a pattern to a shell wildcard."""
    return _FIELD.sub("*", pattern)


@cache
def _expression(pattern: str) -> re.Pattern[str]:
    parts = _FIELD.split(pattern)  # text, field, text, field, ..., text
    return re.compile("".join(f"(?P<{part}>[^/]+)" if i % 2 else re.escape(part) for i, part in enumerate(parts)))


def parse(pattern: str, path: str) -> dict[str, str] | None:
    """Fields of a path (with forward slashes) that matches a pattern, else ``None``."""
    found = _expression(pattern).fullmatch(path)
    return found.groupdict() if found else None


def fill(pattern: str, fields: Mapping[str, str]) -> str:
    """Fill a pattern with fields."""
    return _FIELD.sub(lambda name: fields[name.group(1)], pattern)


@dataclass(frozen=True)
class Source:
    """Images of one pattern, with the patterns of their masks."""

    image: str
    masks: tuple[str, ...] = ()
    """Patterns of the mask; the first that exists is used. Empty: no usable masks."""
    other_masks: tuple[str, ...] = ()
    """Official masks of the same image with another encoding than this variant reads."""
    only: tuple[str, frozenset[str]] | None = None
    """A field of the image's pattern and its accepted values; ``None``: all images."""
    lists: tuple[str, ...] = ()
    """Official list files of these images; the first that exists is used. Empty: all images."""
    without: str | None = None
    """If no such list exists: all images that have a mask, except those in this list."""
    needs: str | None = None
    """A required folder."""
    hint: str = "unpack the archive that contains it"
    """Remedy if files are missing."""


@dataclass(frozen=True)
class Layout:
    """One packaging of a data set: its official splits, each made of one or more sources."""

    splits: Mapping[str, tuple[Source, ...]]
    classes: str
    label_map: str
    group: str | None = None
    """Regular expression with one group, searched in the image's name: its sequence, tile or city."""
    folders: tuple[str, ...] = ("",)
    """Possible base folders of the layout, relative to `root`."""
    resize_labels: bool = False


def _splits(make: Callable[[str], Source], *names: str) -> dict[str, tuple[Source, ...]]:
    return {name: (make(name),) for name in names}


def _cityscapes(labels: str, label_map: str) -> Layout:
    def source(split: str, truth: str = "gtFine") -> Source:
        masks = f"{truth}/{split}/<city>/<id>_{truth}_"
        return Source(
            f"leftImg8bit/{split}/<city>/<id>_leftImg8bit.png",
            () if split == "test" else (f"{masks}{labels}.png",),  # the test masks are placeholders
            tuple(f"{masks}{other}.png" for other in ("labelIds", "labelTrainIds", "color") if other != labels),
            hint="variant ids reads *_labelIds.png (as shipped), variant train_ids reads *_labelTrainIds.png",
        )

    return Layout(
        {
            **_splits(source, "train", "val", "test"),
            "trainval": (source("train"), source("val")),
            "train_extra": (source("train_extra", "gtCoarse"),),
        },
        "cityscapes",
        label_map,
        group=r"([^/_]+_[^/_]+)_[^/_]+_leftImg8bit$",
        folders=("", "cityscapes"),
    )


def _gta5() -> Layout:
    def source(*lists: str) -> Source:
        return Source("images/<id>.png", ("labels/<id>.png",), lists=lists)

    splits = {"all": (source(),)}
    splits.update({name: (source(f"split.mat:{name}Ids"),) for name in ("train", "val", "test")})
    # A few label files differ in size from their image.
    return Layout(splits, "cityscapes", "cityscapes_ids", folders=("", "GTA5", "gta5", "gta"), resize_labels=True)


def _synthia() -> Layout:
    source = Source("RGB/<id>.png", ("GT/LABELS/<id>.png",), ("GT/COLOR/<id>.png",))
    return Layout({"all": (source,)}, "cityscapes", "synthia", folders=("", "RAND_CITYSCAPES"))


def _voc(own_first: bool) -> Layout:
    image, own, augmented = "JPEGImages/<id>.jpg", "SegmentationClass/<id>.png", "SegmentationClassAug/<id>.png"
    lists = "ImageSets/Segmentation"
    # The masks of SegmentationClassAug are SBD's, coarser than VOC's own; published implementations differ in which
    # they read for the 1,464 images that have both.
    train_aug = Source(
        image,
        (own, augmented) if own_first else (augmented, own),
        lists=(f"{lists}/train_aug.txt", f"{lists}/trainaug.txt"),
        without=f"{lists}/val.txt",
        needs="SegmentationClassAug",
        hint="put SBD's masks as PNG (the SegmentationClassAug archive) into VOC2012/SegmentationClassAug; "
        "dataset/cls/*.mat are not read",
    )
    return Layout(
        {
            "train_aug": (train_aug,),
            **_splits(lambda name: Source(image, (own,), lists=(f"{lists}/{name}.txt",)), "train", "val", "trainval"),
        },
        "voc",
        "voc",
        folders=("", "VOC2012", "VOCdevkit/VOC2012"),
    )


def _camvid_segnet() -> Layout:
    def source(split: str) -> Source:
        return Source(f"{split}/<id>.png", (f"{split}annot/<id>.png",))

    splits = {**_splits(source, "train", "val", "test"), "trainval": (source("train"), source("val"))}
    return Layout(splits, "camvid", "camvid", r"([^/_]+)_[^/]+$", ("", "CamVid"))


def _camvid_original() -> Layout:
    def source(*lists: str) -> Source:
        return Source(
            "701_StillsRaw_full/<id>.png",
            ("LabeledApproved_full/<id>_L.png",),
            lists=lists,
            hint="put SegNet's train.txt, val.txt and test.txt beside the two folders; the archives contain no lists",
        )

    return Layout(
        {
            **_splits(lambda name: source(f"{name}.txt"), "train", "val", "test"),
            "trainval": (source("train.txt"), source("val.txt")),
            "all": (source(),),
        },
        "camvid",
        "camvid_colours",
        r"([^/_]+)_[^/]+$",
        ("", "CamVid"),
    )


def _camvid_tsic() -> Layout:
    def source(*lists: str) -> Source:
        return Source("CamVid_RGB/<id>.png", ("CamVidGray/<id>_L.png",), lists=lists)

    splits = _splits(lambda name: source(f"camvid_{name}_formmseg.txt"), "trainval", "test")
    return Layout({**splits, "all": (source(),)}, "camvid", "camvid", r"([^/_]+)_[^/]+$", ("", "CamVid-main"))


def _ade20k() -> Layout:
    def source(folder: str) -> Source:
        return Source(f"images/{folder}/<id>.jpg", (f"annotations/{folder}/<id>.png",))

    splits = {
        "train": (source("training"),),
        "val": (source("validation"),),
        "test": (Source("images/testing/<id>.jpg"),),
    }
    return Layout(splits, "ade20k", "ade20k", folders=("", "ADEChallengeData2016"))


def _coco_stuff(classes: str) -> Layout:
    def source(split: str) -> Source:
        masks = f"annotations/{split}2017/<id>"
        return Source(f"images/{split}2017/<id>.jpg", (f"{masks}.png",), (f"{masks}_labelTrainIds.png",))

    return Layout(_splits(source, "train", "val"), classes, classes, folders=("", "coco_stuff164k"))


def _isprs_clips(folder: str, group: str) -> Layout:
    def source(split: str) -> Source:
        return Source(f"img_dir/{split}/<id>.png", (f"ann_dir/{split}/<id>.png",))

    splits = {**_splits(source, "train", "val"), "trainval": (source("train"), source("val"))}
    return Layout(splits, "isprs", "isprs", group, (folder, ""))


def _tiles(kind: str, image: str, masks: tuple[str, ...], parts: Mapping[str, tuple[str, ...]], group: str) -> Layout:
    """Raw tiles; each split consists of the tiles in one or two lists of the catalogue."""

    def source(lists: tuple[str, ...]) -> Source:
        names = frozenset(tile for part in lists for tile in fact(kind, "tiles")[part])
        return Source(image, masks, only=("tile", names))

    return Layout({name: (source(lists),) for name, lists in parts.items()}, "isprs", "isprs_colours", group)


def _potsdam_tiles(folder: str, bands: str) -> tuple[Layout, ...]:
    parts = {"train": ("train",), "val": ("val",), "all": ("train", "val")}
    masks = ("5_Labels_all_noBoundary/top_potsdam_<tile>_label_noBoundary.tif",)
    # The archives contain a folder of their own name, which some tools unpack into another folder of that name.
    return tuple(
        _tiles("potsdam", f"{place}/top_potsdam_<tile>_{bands}.tif", masks, parts, r"top_potsdam_(\d+_\d+)_")
        for place in (folder, f"{folder}/{folder}")
    )


def _vaihingen_tiles(parts: Mapping[str, tuple[str, ...]]) -> tuple[Layout, ...]:
    labels = "ISPRS_semantic_labeling_Vaihingen_ground_truth_eroded_COMPLETE"
    mask = "top_mosaic_09cm_<tile>_noBoundary.tif"
    return tuple(
        _tiles("vaihingen", f"{place}top/top_mosaic_09cm_<tile>.tif", (f"{labels}/{mask}", mask), parts, r"_(area\d+)$")
        for place in ("", "ISPRS_semantic_labeling_Vaihingen/")
    )


def _city_osm_clips(city: str) -> Layout:
    def source(*lists: str) -> Source:
        return Source("img_dir/<id>.png", ("ann_dir/<id>.png",), lists=lists)

    splits = {**_splits(lambda name: source(f"{name}.txt"), "train", "val"), "all": (source(),)}
    return Layout(splits, "city_osm", "city_osm", rf"({city}\d+)_", (f"CITY_{city}", ""))


def _city_osm_images(city: str) -> Layout:
    source = Source(f"{city}<id>_image.png", (f"{city}<id>_labels.png",))
    return Layout({"all": (source,)}, "city_osm", "city_osm_colours", rf"({city}\d+)_", ("", city))


def _city_osm(city: str) -> dict[str, tuple[Layout, ...]]:
    return {"clips": (_city_osm_clips(city),), "images": (_city_osm_images(city),)}


def _loveda(domain: str) -> tuple[Layout, ...]:
    area = domain.capitalize() if domain in ("urban", "rural") else "<area>"

    def official(split: str) -> Source:
        folder = f"{split.capitalize()}/{area}"
        masks = () if split == "test" else (f"{folder}/masks_png/<id>.png",)
        return Source(f"{folder}/images_png/<id>.png", masks)

    def merged(split: str) -> Source:
        masks = () if split == "test" else (f"ann_dir/{split}/<id>.png",)
        only = None
        if domain != "all":  # both areas are in one folder, and their ids do not overlap
            first, last = fact("loveda", "ranges")[f"{split}_{domain}"]
            only = ("id", frozenset(map(str, range(first, last + 1))))
        return Source(f"img_dir/{split}/<id>.png", masks, only=only)

    return tuple(
        Layout(_splits(make, "train", "val", "test"), "loveda", "loveda", folders=("", "LoveDA", "loveDA"))
        for make in (official, merged)
    )


_ANON = "/<sequence>/<id>_rgb_anon.png"
_GROUND_TRUTH = "/<sequence>/<id>_gt_labelTrainIds.png"
_SEQUENCE = r"([^/]+)/[^/]+$"


def _dark_zurich(time: str) -> Layout:
    splits = {
        "train": Source(f"rgb_anon/train/{time}{_ANON}"),
        "val": Source(
            f"rgb_anon/val/night{_ANON}",
            (f"gt/val/night{_GROUND_TRUTH}",),
            ("gt/val/night/<sequence>/<id>_gt_labelIds.png",),
        ),
        "test": Source(f"rgb_anon/test/night{_ANON}"),
        "val_ref": Source(f"rgb_anon/val_ref/day{_ANON}"),
    }
    return Layout(
        {name: (source,) for name, source in splits.items()},
        "cityscapes",
        "cityscapes_train_ids",
        _SEQUENCE,
        ("", "dark_zurich"),
    )


def _acdc(condition: str) -> Layout:
    def source(split: str) -> Source:
        if split.endswith("_ref"):  # the same places in clear weather, without masks
            return Source(f"rgb_anon/{condition}/{split}/<sequence>/<id>_anon.png")
        masks = f"gt/{condition}/{split}"
        return Source(
            f"rgb_anon/{condition}/{split}{_ANON}",
            () if split == "test" else (masks + _GROUND_TRUTH,),
            (f"{masks}/<sequence>/<id>_gt_labelIds.png",),
        )

    names = ("train", "val", "test", "train_ref", "val_ref", "test_ref")
    return Layout(_splits(source, *names), "cityscapes", "cityscapes_train_ids", _SEQUENCE, ("", "acdc", "ACDC"))


def _any(name: str) -> str:
    return "<condition>" if name == "all" else name


# Data set → variant (default first) → its packagings, tried in this order.
KINDS: dict[str, dict[str, tuple[Layout, ...]]] = {
    "cityscapes": {
        "ids": (_cityscapes("labelIds", "cityscapes_ids"),),
        "train_ids": (_cityscapes("labelTrainIds", "cityscapes_train_ids"),),
    },
    "gta5": {"ids": (_gta5(),)},
    "synthia": {"ids": (_synthia(),)},
    "voc_aug": {"aug": (_voc(own_first=False),), "voc": (_voc(own_first=True),)},
    "camvid": {"segnet": (_camvid_segnet(),), "original": (_camvid_original(),), "tsic": (_camvid_tsic(),)},
    "ade20k": {"150": (_ade20k(),)},
    "coco_stuff": {"171": (_coco_stuff("coco_stuff_171"),), "182": (_coco_stuff("coco_stuff_182"),)},
    "potsdam": {
        "irrg": (_isprs_clips("Potsdam_IRRG_DA", r"(\d+_\d+)(?:_\d+){4}$"),),
        "rgb": (_isprs_clips("Potsdam_RGB_DA", r"(\d+_\d+)(?:_\d+){4}$"),),
        "irrg_tiles": _potsdam_tiles("3_Ortho_IRRG", "IRRG"),
        "rgb_tiles": _potsdam_tiles("2_Ortho_RGB", "RGB"),
    },
    "vaihingen": {
        "irrg": (_isprs_clips("Vaihingen_IRRG_DA", r"(area\d+)(?:_\d+){4}$"),),
        "irrg_tiles": _vaihingen_tiles({"train": ("train",), "val": ("val",), "all": ("train", "val")}),
        "irrg_tiles_official": _vaihingen_tiles(
            {
                "train": ("official_train",),
                "test": ("official_test",),
                "all": ("official_train", "official_test"),
            }
        ),
    },
    "city_osm_paris": _city_osm("paris"),
    "city_osm_chicago": _city_osm("chicago"),
    "loveda": {domain: _loveda(domain) for domain in ("all", "urban", "rural")},
    "dark_zurich": {time: (_dark_zurich(_any(time)),) for time in ("night", "twilight", "day", "all")},
    "acdc": {condition: (_acdc(_any(condition)),) for condition in ("all", "fog", "night", "rain", "snow")},
}


def variants(kind: str) -> tuple[str, ...]:
    """The variants of a data set, its default first."""
    return tuple(KINDS[kind])
