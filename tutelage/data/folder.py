"""User data: folders of images and masks, or list files, described in the recipe."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from tutelage.data.dataset import Classes, Dataset, Sample, plain
from tutelage.data.images import IMAGE_SUFFIXES
from tutelage.data.labels import IGNORE, LabelMap, identity, pack
from tutelage.data.lists import read_list, sample, unique
from tutelage.errors import DataError
from tutelage.settings import Ref, Settings

Colour = Annotated[str, Field(pattern=r"^\s*\d{1,3}\s*,\s*\d{1,3}\s*,\s*\d{1,3}\s*$")]


class FolderSplit(Settings):
    """Images and masks of one split: a list file, or folders."""

    list: str | None = None
    """List file with lines `IMAGE LABEL` (or `IMAGE`), relative to `root`."""
    images: str | None = None
    """Folder of images, relative to `root`; searched recursively."""
    masks: str | None = None
    """Folder of masks, relative to `root`. A mask has the name (and subfolder) of its image, with any extension."""

    @model_validator(mode="after")
    def _one_way(self) -> FolderSplit:
        if (self.list is None) == (self.images is None):
            raise ValueError("give either `list` or `images` (with `masks`), not both")
        return self


class FolderSettings(Settings):
    """Your own images and masks."""

    kind: Literal["folder"] = "folder"
    root: Annotated[str, Ref("file")] = "."
    """Base folder of the other paths, relative to the recipe."""
    classes: list[str] | str
    """Class names in the order of their train ids, or a JSON file with `names` (and `palette`, `ignore_index`)."""
    splits: dict[str, FolderSplit | str]
    """Split name → list file, or → `{images: ..., masks: ...}`."""
    ignore: list[int] | None = None
    """Ignored mask values. Null: `ignore_index` of the class file, else 255."""
    ids: dict[int, str] | None = None
    """Mask value → class name, for masks in which value i is not class i. Several values may share a class."""
    colours: dict[Colour, str | None] | None = None
    """RGB masks: `"R,G,B"` → class name, or null to ignore the colour."""
    others: Literal["error", "ignore"] = "error"
    """Treatment of all other mask values: raise an error, or ignore the pixels."""
    mask_suffix: str = ""
    """Suffix of a mask's name after its image's name, e.g. `_mask`."""
    palette: list[tuple[int, int, int]] | None = None
    """RGB colour of each class, for display."""
    group: str | None = None
    """Regular expression with one group, searched in the image's name: its sequence, tile or patient."""
    bridge: dict[str, str | None] = {}
    """Class of this data → class of the task (several may merge), or null to ignore the class."""


def open_folder(settings: FolderSettings, base: Path) -> dict[str, Dataset]:
    """Open the splits of a folder data set; ``base`` is the recipe's folder.

    Raises :class:`DataError` for missing folders, files and masks, and for inconsistent class settings.
    """
    root = (base / settings.root).resolve()
    if not root.is_dir():
        raise DataError(
            "folder-missing",
            f"data folder not found: {root}",
            "fix data.<name>.root (relative to the recipe's folder)",
        )
    classes, ignore = read_classes(settings, root)
    label_map = _label_map(settings, classes, ignore)
    group = grouping(settings.group)
    result = {}
    for name, split in settings.splits.items():
        if isinstance(split, str):
            split = FolderSplit(list=split)
        if split.list is not None:
            samples = read_list(root / split.list, root, group, lost_labels=True)
        else:
            assert split.images is not None
            masks = None if split.masks is None else root / split.masks
            samples = pair(root / split.images, masks, root, group, settings.mask_suffix)
        result[name] = Dataset(name, samples, classes, label_map)
    return result


def read_classes(settings: FolderSettings, root: Path) -> tuple[Classes, list[int]]:
    """Class names with colours, and the ignored mask values. Raises :class:`DataError` (``class-file``)."""
    palette = settings.palette
    ignore = settings.ignore
    if isinstance(settings.classes, str):
        path = root / settings.classes
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            names = [str(name) for name in content["names"]]
        except FileNotFoundError:
            raise DataError(
                "class-file", f"class file not found: {path}", "fix data.<name>.classes, or list the names there"
            ) from None
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                "class-file", f"invalid class file: {path} ({error})", 'write JSON of the form {"names": [...]}'
            ) from None
        palette = palette or content.get("palette")
        if ignore is None and content.get("ignore_index") is not None:
            ignore = [int(content["ignore_index"])]
    else:
        names = settings.classes
    colours = () if palette is None else tuple((int(r), int(g), int(b)) for r, g, b in palette)
    return Classes(tuple(names), colours), [IGNORE] if ignore is None else ignore


def _label_map(settings: FolderSettings, classes: Classes, ignore: list[int]) -> LabelMap:
    others = IGNORE if settings.others == "ignore" else None
    if settings.colours is not None and settings.ids is not None:
        raise DataError(
            "option-conflict",
            "data set has both `ids` and `colours`",
            "remove one: masks are read either by index or by colour",
        )
    if settings.colours is not None:
        table = {}
        for colour, name in settings.colours.items():
            table[pack([int(part) for part in colour.split(",")])] = IGNORE if name is None else _index(name, classes)
        return LabelMap(table, "rgb", others)
    if settings.ids is not None:
        table = {value: _index(name, classes) for value, name in settings.ids.items()}
        return LabelMap({**dict.fromkeys(ignore, IGNORE), **table}, "index", others)
    by_index = identity(len(classes), [value for value in ignore if value >= len(classes)])
    inside = {value: IGNORE for value in ignore if value < len(classes)}
    if inside:
        raise DataError(
            "invalid-value",
            f"ignored mask value {next(iter(inside))} is also a class index ({len(classes)} classes)",
            "map mask values to classes under data.<name>.ids, or remove the value from data.<name>.ignore",
        )
    return LabelMap(by_index.table, "index", others)


def _index(name: str, classes: Classes) -> int:
    known = {plain(known_name): i for i, known_name in enumerate(classes.names)}
    if plain(name) not in known:
        raise DataError(
            "unknown-class",
            f"mask value is mapped to unknown class {name!r}",
            f"use one of: {', '.join(classes.names)}",
        )
    return known[plain(name)]


def grouping(pattern: str | None) -> Callable[[str], str]:
    """A function from an image's name to its group, by a regular expression with one group; ``None``: no groups.

    Raises :class:`DataError` (``group-pattern``).
    """
    if pattern is None:
        return lambda name: ""
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise DataError(
            "group-pattern",
            f"group is not a valid regular expression: {pattern!r} ({error})",
            r"fix it, e.g. '^(\w+)_\d+'",
        ) from None
    if compiled.groups != 1:
        raise DataError(
            "group-pattern",
            f"group must have exactly one capturing group, got {compiled.groups}: {pattern!r}",
            r"put one pair of parentheses around the group's name, e.g. '([^/_]+)_\d+$'",
        )

    def group(name: str) -> str:
        found = compiled.search(name)
        return found.group(1) or "" if found else ""

    return group


def pair(
    images: Path, masks: Path | None, root: Path, group: Callable[[str], str], mask_suffix: str = ""
) -> tuple[Sample, ...]:
    """The images of a folder, sorted by name, each with the mask of the same name.

    Raises :class:`DataError`: ``missing-folder``, ``empty-folder``, ``unpaired-image``, ``duplicate-name``.
    """
    found = list_images(images)
    if not found:
        raise DataError(
            "folder-empty",
            f"no images in folder: {images}",
            f"check the path; supported extensions: {', '.join(IMAGE_SUFFIXES)}",
        )
    if masks is None:
        return unique((sample(path, None, root, group) for path in found), str(images))
    by_name: dict[str, Path] = {}
    for path in list_images(masks):
        by_name.setdefault(path.relative_to(masks).with_suffix("").as_posix(), path)
    result, missing = [], []
    for path in found:
        name = path.relative_to(images).with_suffix("").as_posix() + mask_suffix
        if name in by_name:
            result.append(sample(path, by_name[name], root, group))
        else:
            missing.append(path)
    if missing:
        raise DataError(
            "image-unpaired",
            f"{len(missing)} of {len(found)} images have no mask in {masks}; first: {missing[0]}",
            "give each mask its image's name, or set data.<name>.mask_suffix; to use part of the images, name them in "
            "a list file",
        )
    return unique(result, str(images))


def list_images(folder: Path) -> list[Path]:
    """All image files under a folder, sorted. Raises :class:`DataError` (``missing-folder``)."""
    if not folder.is_dir():
        raise DataError("folder-missing", f"folder not found: {folder}", "check the path in the recipe")
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith("."))
