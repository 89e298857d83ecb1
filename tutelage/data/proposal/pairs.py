"""Finding images and their masks in folders of any of the usual shapes.

Masks lie in a folder of their own (`images/`, `masks/`, with or without the splits inside them or around them), or
beside their images under another ending. A pair is known by what is left of both paths without the words that say
"image" or "mask".
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tutelage.data.images import IMAGE_SUFFIXES
from tutelage.errors import DataError

Pair = tuple[Path, Path]

_IMAGE_FOLDERS = {"image", "images", "img", "imgs", "photo", "photos", "jpegimages", "leftimg8bit", "rgb", "img_dir"}
_MASK_FOLDERS = {
    *("mask", "masks", "label", "labels", "gt", "gtfine", "groundtruth", "ground_truth", "annotation", "annotations"),
    *("ann_dir", "segmentationclass", "segmentation", "seg", "labelids", "targets"),
}
_IMAGE_ENDINGS = ("", "_image", "-image", "_img", "_leftImg8bit", "_rgb", "_photo", "_sat")
_MASK_ENDINGS = (
    *("", "_mask", "-mask", "_masks", "_label", "-label", "_labels", "_gt", "-gt", "_GT", "_L", "_labelIds"),
    *("_gtFine_labelIds", "_gtFine_labelTrainIds", "_labelTrainIds", "_seg", "_segmentation", "_annotation"),
)
_BEGINNINGS = (
    *(("image_", "mask_"), ("img_", "mask_"), ("image", "mask"), ("img", "mask"), ("image_", "label_")),
    *(("image", "label"), ("img", "label"), ("", "mask_"), ("", "label_")),
)
_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}


@dataclass(frozen=True)
class FolderContents:
    """The files under one or two folders."""

    root: Path
    """The folder that holds all of them."""
    pairs: tuple[Pair, ...]
    """Images with their masks, in the order of names."""
    unlabeled: tuple[Path, ...]
    """Images without a mask."""
    strays: tuple[Path, ...]
    """Masks without an image."""

    @property
    def images(self) -> tuple[Path, ...]:
        """All images."""
        return tuple(sorted((*(image for image, _ in self.pairs), *self.unlabeled)))


def find(images: Path, masks: Path | None = None) -> FolderContents:
    """Images under a folder and their masks: under another one, inside the same one, or in one beside it.

    Raises :class:`DataError` for a folder that is missing, holds no image, or whose masks fit no image.
    """
    root = images.resolve()
    files = picture_files(root)
    if masks is not None and masks.resolve() != root:
        home = masks.resolve()
        others = picture_files(home)
        files = [path for path in files if not path.is_relative_to(home)]
        if not files:
            raise DataError(f"folder holds no images beside the masks: {root}", "give --images and --masks")
        paired = _best(root, files, home, others)
        if not paired:
            raise DataError(
                f"no mask in {home} has the name of an image in {root} (first: {files[0].name} and {others[0].name})",
                "a mask is called like its image, also with an ending such as _mask; rename them",
            )
        return _found(_common(root, home), files, others, paired)
    inside = [path for path in files if _says_mask(path.relative_to(root).parent)]
    if inside and len(inside) < len(files):
        pictures = [path for path in files if path not in set(inside)]
        return _found(root, pictures, inside, _best(root, pictures, root, inside))
    beside = _beside(root) if masks is None else None
    if beside is not None:
        others = picture_files(beside)
        return _found(_common(root, beside), files, others, _best(root, files, beside, others))
    endings = _by_ending(files)
    others = sorted(endings)
    return _found(root, [path for path in files if path not in endings], others, {v: k for k, v in endings.items()})


def picture_files(folder: Path) -> list[Path]:
    """All image files under a folder, sorted. Raises :class:`DataError` when there is no folder, or no image in it."""
    if not folder.is_dir():
        raise DataError(f"folder not found: {folder}", "check the path")
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith("."))
    if not files:
        raise DataError(f"folder holds no images: {folder}", f"known endings: {', '.join(IMAGE_SUFFIXES)}")
    return files


def split_of(path: Path, root: Path) -> str | None:
    """The split that a folder on the way from ``root`` to a file names: `train`, `val` or `test`."""
    named = [_SPLITS[part.lower()] for part in path.relative_to(root).parts[:-1] if part.lower() in _SPLITS]
    return named[0] if named else None


def group_pattern(names: Sequence[str]) -> tuple[str, int] | None:
    """A regular expression that finds the sequence, tile or patient in names, and how many there are.

    Proposed only where it is found in every name and makes 2 to n/2 groups.
    """
    patterns = (r"([^/]+)[_-][A-Za-z]{0,2}\d+$", r"([^/_-]+)[_-][^/]*$", r"([^/]+)/[^/]+$")
    for pattern in patterns:
        found = [re.search(pattern, name) for name in names]
        groups = {match.group(1) for match in found if match}
        if not all(found) or not 2 <= len(groups) <= len(names) / 2:
            continue
        if groups <= {"train", "val", "test", *_IMAGE_FOLDERS, *_SPLITS}:
            continue  # folders that say which split it is
        return pattern, len(groups)
    return None


def _found(root: Path, images: Iterable[Path], masks: Iterable[Path], paired: dict[Path, Path]) -> FolderContents:
    taken = set(paired.values())
    return FolderContents(
        root,
        tuple(sorted(paired.items())),
        tuple(path for path in images if path not in paired),
        tuple(path for path in masks if path not in taken),
    )


def _common(first: Path, second: Path) -> Path:
    parents = {second, *second.parents}
    return next(path for path in (first, *first.parents) if path in parents)


def _says_mask(folder: Path) -> bool:
    return any(part.lower() in _MASK_FOLDERS for part in folder.parts)


def _beside(root: Path) -> Path | None:
    """A folder of masks next to a folder of images."""
    for folder in sorted(root.parent.iterdir()):
        if folder != root and folder.is_dir() and folder.name.lower() in _MASK_FOLDERS:
            return folder
    return None


def _by_ending(files: Sequence[Path]) -> dict[Path, Path]:
    """Mask → image, for masks that lie beside their images under a longer name."""
    known = {path.with_suffix("").as_posix(): path for path in files}
    for image_ending in _IMAGE_ENDINGS:
        for ending in _MASK_ENDINGS[1:]:
            pairs = {}
            for name, path in known.items():
                partner = known.get(name.removesuffix(ending) + image_ending)
                if name.endswith(ending) and partner is not None:
                    pairs[path] = partner
            if len(pairs) * 4 >= len(files):  # one odd name is no pattern
                return pairs
    return {}


def _best(images_root: Path, images: Sequence[Path], masks_root: Path, masks: Sequence[Path]) -> dict[Path, Path]:
    """Image → mask under the pair of affixes that finds most; where folders differ, by unique file names alone."""
    for by_name in (False, True):
        best: dict[Path, Path] = {}
        for image_affix, mask_affix in _affixes():
            wanted = _keys(images, images_root, image_affix, by_name)
            given = _keys(masks, masks_root, mask_affix, by_name)
            pairs = {wanted[name]: given[name] for name in wanted.keys() & given.keys()}
            if len(pairs) > len(best):
                best = pairs
        if best:
            return best
    return {}


Affix = tuple[str, str]


def _affixes() -> Iterable[tuple[Affix, Affix]]:
    for image_ending in _IMAGE_ENDINGS:
        for mask_ending in _MASK_ENDINGS:
            yield ("", image_ending), ("", mask_ending)
    for image_beginning, mask_beginning in _BEGINNINGS:
        yield (image_beginning, ""), (mask_beginning, "")


def _keys(files: Sequence[Path], root: Path, affix: Affix, by_name: bool) -> dict[str, Path]:
    """What identifies each file that has the affix; names that occur twice identify nothing."""
    beginning, ending = affix
    keys: dict[str, Path] = {}
    counts: Counter[str] = Counter()
    for path in files:
        stem = path.stem
        if not (stem.startswith(beginning) and stem.endswith(ending) and len(stem) > len(beginning + ending)):
            continue
        core = stem[len(beginning) : len(stem) - len(ending)]
        folders = [part for part in path.relative_to(root).parts[:-1] if not by_name and not _means_kind(part)]
        key = PurePosixPath(*folders, core).as_posix()
        keys[key] = path
        counts[key] += 1
    return {key: path for key, path in keys.items() if counts[key] == 1}


def _means_kind(folder: str) -> bool:
    return folder.lower() in _IMAGE_FOLDERS or folder.lower() in _MASK_FOLDERS
