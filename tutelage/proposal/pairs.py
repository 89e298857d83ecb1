"""Pairing of images and masks in common folder layouts.

Masks are in a separate folder (`images/`, `masks/`, with splits inside or above them, or without splits), or beside
their images under another suffix. A pair has equal paths after removing the words for "image" and "mask".
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
    """Image and mask files of one or two folders."""

    root: Path
    """Common parent folder."""
    pairs: tuple[Pair, ...]
    """Images with their masks, sorted by name."""
    unlabeled: tuple[Path, ...]
    """Images without a mask."""
    strays: tuple[Path, ...]
    """Masks without an image."""

    @property
    def images(self) -> tuple[Path, ...]:
        """All images."""
        return tuple(sorted((*(image for image, _ in self.pairs), *self.unlabeled)))


def find(images: Path, masks: Path | None = None) -> FolderContents:
    """Find the images in a folder and their masks: in ``masks``, in the same folder, or in a folder beside it.

    Raises :class:`DataError`: ``missing-folder``, ``empty-folder``, ``unpaired-image``.
    """
    root = images.resolve()
    files = picture_files(root)
    if masks is not None and masks.resolve() != root:
        home = masks.resolve()
        others = picture_files(home)
        files = [path for path in files if not path.is_relative_to(home)]
        if not files:
            raise DataError(
                "folder-empty", f"folder holds only masks, no images: {root}", "give both --images and --masks"
            )
        paired = _best(root, files, home, others)
        if not paired:
            raise DataError(
                "image-unpaired",
                f"no mask in {home} has the name of an image in {root} (first: {files[0].name} and {others[0].name})",
                "give each mask its image's name, optionally with a suffix such as _mask",
            )
        return _found(_common(root, home), files, others, paired)
    inside = [path for path in files if _in_mask_folder(path.relative_to(root).parent)]
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
    """All image files under a folder, sorted. Raises :class:`DataError`: ``missing-folder``, ``empty-folder``."""
    if not folder.is_dir():
        raise DataError("folder-missing", f"folder not found: {folder}", "check the path")
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith("."))
    if not files:
        raise DataError(
            "folder-empty",
            f"no images in folder: {folder}",
            f"check the path; supported extensions: {', '.join(IMAGE_SUFFIXES)}",
        )
    return files


def split_of(path: Path, root: Path) -> str | None:
    """Split (`train`, `val` or `test`) named by a folder between ``root`` and a file, or ``None``."""
    named = [_SPLITS[part.lower()] for part in path.relative_to(root).parts[:-1] if part.lower() in _SPLITS]
    return named[0] if named else None


def group_pattern(names: Sequence[str]) -> tuple[str, int] | None:
    """A regular expression for the sequence, tile or patient in names, and the number of groups, or ``None``.

    Proposed only if it matches every one of the n names and yields 2 to n/2 groups.
    """
    patterns = (r"([^/]+)[_-][A-Za-z]{0,2}\d+$", r"([^/_-]+)[_-][^/]*$", r"([^/]+)/[^/]+$")
    for pattern in patterns:
        found = [re.search(pattern, name) for name in names]
        groups = {match.group(1) for match in found if match}
        if not all(found) or not 2 <= len(groups) <= len(names) / 2:
            continue
        if groups <= {"train", "val", "test", *_IMAGE_FOLDERS, *_SPLITS}:
            continue  # names of splits or of kinds of files
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


def _in_mask_folder(folder: Path) -> bool:
    return any(part.lower() in _MASK_FOLDERS for part in folder.parts)


def _beside(root: Path) -> Path | None:
    """The first folder of masks beside a folder of images, or ``None``."""
    for folder in sorted(root.parent.iterdir()):
        if folder != root and folder.is_dir() and folder.name.lower() in _MASK_FOLDERS:
            return folder
    return None


def _by_ending(files: Sequence[Path]) -> dict[Path, Path]:
    """Mask → image, for masks beside their images under a longer name."""
    known = {path.with_suffix("").as_posix(): path for path in files}
    for image_ending in _IMAGE_ENDINGS:
        for ending in _MASK_ENDINGS[1:]:
            pairs = {}
            for name, path in known.items():
                partner = known.get(name.removesuffix(ending) + image_ending)
                if name.endswith(ending) and partner is not None:
                    pairs[path] = partner
            if len(pairs) * 4 >= len(files):  # a few odd names are not a pattern
                return pairs
    return {}


def _best(images_root: Path, images: Sequence[Path], masks_root: Path, masks: Sequence[Path]) -> dict[Path, Path]:
    """Image → mask with the affixes that match most pairs; if no paths match, by unique file names alone."""
    for by_name in (False, True):
        best: dict[Path, Path] = {}
        for image_affix, mask_affix in _affixes():
            image_by_key = _keys(images, images_root, image_affix, by_name)
            mask_by_key = _keys(masks, masks_root, mask_affix, by_name)
            pairs = {image_by_key[key]: mask_by_key[key] for key in image_by_key.keys() & mask_by_key.keys()}
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
    """Key → file, for files with the affix; keys that occur twice are dropped."""
    beginning, ending = affix
    keys: dict[str, Path] = {}
    counts: Counter[str] = Counter()
    for path in files:
        stem = path.stem
        if not (stem.startswith(beginning) and stem.endswith(ending) and len(stem) > len(beginning + ending)):
            continue
        core = stem[len(beginning) : len(stem) - len(ending)]
        folders = [part for part in path.relative_to(root).parts[:-1] if not by_name and not _is_kind_folder(part)]
        key = PurePosixPath(*folders, core).as_posix()
        keys[key] = path
        counts[key] += 1
    return {key: path for key, path in keys.items() if counts[key] == 1}


def _is_kind_folder(folder: str) -> bool:
    return folder.lower() in _IMAGE_FOLDERS or folder.lower() in _MASK_FOLDERS
