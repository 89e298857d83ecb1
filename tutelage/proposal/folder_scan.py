"""Scan of a user's folders: the facts for a first recipe, and the doubts for the user to check."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tutelage.data.fact_cache import gather
from tutelage.data.images import image_size
from tutelage.data.lists import read_list
from tutelage.errors import DataError
from tutelage.proposal.classes import Reading, decide
from tutelage.proposal.encodings import Encoding, scan_masks
from tutelage.proposal.names import find_names, given_names
from tutelage.proposal.pairs import FolderContents, Pair, find, group_pattern, split_of

_MEASURED = 2000  # most images whose size is read
_FEWEST_UNLABELED = 10  # fewest images without mask for an unlabelled stream
_LISTS = {
    "train": ("train.txt", "training.txt", "train_list.txt"),
    "val": ("val.txt", "valid.txt", "validation.txt", "val_list.txt"),
    "test": ("test.txt", "testing.txt", "test_list.txt"),
}


@dataclass(frozen=True)
class Sizes:
    """Height and width of the images: smallest, median and largest of each."""

    least: tuple[int, int]
    median: tuple[int, int]
    most: tuple[int, int]


@dataclass(frozen=True)
class Part:
    """Images and masks of one domain, with existing splits."""

    found: FolderContents
    lists: dict[str, Path]
    """Split → existing list file."""
    splits: dict[str, tuple[Pair, ...]]
    """Split → pairs in folders of that name."""
    group: str | None
    """Regular expression from an image's name to its group."""
    groups: int
    """Number of groups."""


@dataclass(frozen=True)
class FolderScan:
    """Result of a scan."""

    data: Part
    encoding: Encoding
    reading: Reading
    sizes: Sizes
    unlabeled: FolderContents | None
    """Images without masks, or ``None``."""
    target: Part | None
    doubts: tuple[str, ...]
    """Points for the user to check, one line each."""


def look(
    images: Path,
    masks: Path | None = None,
    unlabeled: Path | None = None,
    target: Path | None = None,
    classes: str | None = None,
) -> FolderScan:
    """Scan folders of images and masks, and optionally unlabelled images and images of another domain.

    ``classes`` is `a,b,c` or a file. Raises :class:`DataError`: ``unpaired-image`` for fewer than 3 images with masks,
    and the errors of :func:`find`, :func:`given_names` and :func:`decide`.
    """
    found = find(images, masks)
    if len(found.pairs) < 3:
        raise DataError(
            "image-unpaired",
            f"{len(found.pairs)} images with masks in {images}, expected at least 3",
            "name the folder of masks with --masks, and give each mask its image's name, optionally with a suffix such "
            "as _mask",
        )
    doubts: list[str] = []
    data = _part(found, doubts)
    encoding = scan_masks([mask for _, mask in found.pairs])
    names = given_names(classes) if classes else find_names(_homes(found.root, images, masks))
    reading = decide(encoding, names)
    doubts += reading.doubts
    doubts += [f"unreadable mask: {fault}" for fault in encoding.faults[:5]]
    sizes = _sizes([image for image, _ in found.pairs])
    if sizes.least != sizes.most:
        low, high = (f"{width}x{height}" for height, width in (sizes.least, sizes.most))
        doubts.append(f"image sizes range from {low} to {high}: check that one scale suits all")
    return FolderScan(
        data,
        encoding,
        reading,
        sizes,
        _unlabeled(unlabeled, found, doubts),
        None if target is None else _target(target, encoding, doubts),
        tuple(dict.fromkeys(doubts)),
    )


def _homes(root: Path, *folders: Path | None) -> list[Path]:
    """Folders that may contain a class file: ``folders`` and their parents, up to ``root``."""
    homes = []
    for folder in folders:
        if folder is not None:
            here = folder.resolve()
            homes += [path for path in (here, *here.parents) if path.is_relative_to(root)]
    return [*homes, root]


def _part(found: FolderContents, doubts: list[str]) -> Part:
    lists = _find_lists(found, doubts)
    splits = {} if lists else _folder_splits(found)
    pattern = group_pattern([path.relative_to(found.root).with_suffix("").as_posix() for path, _ in found.pairs])
    if found.strays:
        doubts.append(f"{len(found.strays)} masks have no image; first: {found.strays[0]}")
    return Part(found, lists, splits, *(pattern or (None, 0)))


def _find_lists(found: FolderContents, doubts: list[str]) -> dict[str, Path]:
    """List files of splits that name the images and masks found; all from one folder that has a list for `train`."""
    known = {(image.resolve(), mask.resolve()) for image, mask in found.pairs}
    for folder in (found.root, found.root / "splits", found.root / "lists"):
        lists = {}
        for split, names in _LISTS.items():
            path = next((folder / name for name in names if (folder / name).is_file()), None)
            if path is None:
                continue
            try:
                samples = read_list(path, found.root, lambda name: "")
            except DataError as error:
                doubts.append(f"list {path} is not used: {error.message}")
                continue
            pairs = [(sample.image.resolve(), (sample.label or sample.image).resolve()) for sample in samples]
            if all(pair in known for pair in pairs):
                lists[split] = path
            else:
                doubts.append(f"list {path} is not used: it names pairs that the scan did not find")
        if "train" in lists:
            return lists
    return {}


def _folder_splits(found: FolderContents) -> dict[str, tuple[Pair, ...]]:
    splits: dict[str, list[Pair]] = {}
    for pair in found.pairs:
        split = split_of(pair[0], found.root)
        if split is None:
            return {}
        splits.setdefault(split, []).append(pair)
    usable = "train" in splits and len(splits) > 1
    return {name: tuple(splits[name]) for name in ("train", "val", "test") if name in splits} if usable else {}


def _sizes(images: Sequence[Path]) -> Sizes:
    places = np.linspace(0, len(images) - 1, min(_MEASURED, len(images))).astype(int)

    def size(path: Path) -> tuple[int, int]:
        try:
            return image_size(path)
        except DataError:
            return (0, 0)

    measured = np.array([s for s in gather(size, [images[place] for place in places]) if s != (0, 0)])
    if not len(measured):
        raise DataError(
            "image-unreadable", f"cannot read any image; first: {images[0]}", "check that the files are images"
        )
    least, median, most = measured.min(0), np.median(measured, axis=0).astype(int), measured.max(0)
    return Sizes((int(least[0]), int(least[1])), (int(median[0]), int(median[1])), (int(most[0]), int(most[1])))


def _unlabeled(folder: Path | None, data: FolderContents, doubts: list[str]) -> FolderContents | None:
    if folder is not None:
        found = find(folder, folder)
        return FolderContents(found.root, (), found.images, ())
    if not data.unlabeled:
        return None
    if len(data.unlabeled) < _FEWEST_UNLABELED:
        doubts.append(f"{len(data.unlabeled)} images have no mask and are not used; first: {data.unlabeled[0]}")
        return None
    doubts.append(f"{len(data.unlabeled)} images have no mask and are used as unlabelled images")
    return FolderContents(data.root, (), data.unlabeled, ())


def _target(folder: Path, source: Encoding, doubts: list[str]) -> Part:
    found = find(folder)
    part = _part(found, doubts)
    if not found.pairs:
        doubts.append("target has no masks, so it cannot be evaluated: label a few of its images for a test split")
        return part
    encoding = scan_masks([mask for _, mask in found.pairs])
    strange = [value for value in encoding.main() if value not in source.values]
    if encoding.kind != source.kind or strange:
        doubts.append(
            f"masks of target and source are encoded differently ({encoding.kind} and {source.kind}, new values: "
            f"{', '.join(map(str, strange[:8])) or 'none'}): fix data.target"
        )
    return part
