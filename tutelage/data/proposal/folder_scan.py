"""One look at a user's folders: everything that a first recipe needs to know of them, and what is not certain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tutelage.data.fact_cache import gather
from tutelage.data.images import image_size
from tutelage.data.lists import read_list
from tutelage.data.proposal.classes import Reading, decide
from tutelage.data.proposal.encodings import Encoding, look_at_masks
from tutelage.data.proposal.names import find_names, given_names
from tutelage.data.proposal.pairs import FolderContents, Pair, find, group_pattern, split_of
from tutelage.errors import DataError

_MEASURED = 2000  # images whose size is read
_FEWEST_UNLABELED = 10  # images without mask that are worth a stream of their own
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
    """Images and masks of one domain, with the splits that are there."""

    found: FolderContents
    lists: dict[str, Path]
    """Split → a list file that can be used as it is."""
    splits: dict[str, tuple[Pair, ...]]
    """Split → the pairs in folders that are called so."""
    group: str | None
    """Regular expression from an image's name to its group."""
    groups: int


@dataclass(frozen=True)
class FolderScan:
    """What was seen."""

    data: Part
    encoding: Encoding
    reading: Reading
    sizes: Sizes
    unlabeled: FolderContents | None
    """Images without masks, or ``None``."""
    target: Part | None
    doubts: tuple[str, ...]
    """What a person should look at, a line each."""


def look(
    images: Path,
    masks: Path | None = None,
    unlabeled: Path | None = None,
    target: Path | None = None,
    classes: str | None = None,
) -> FolderScan:
    """Look at folders of images and masks, and at further images without masks or from another domain.

    ``classes`` is `a,b,c` or a file. Raises :class:`DataError` for missing folders and where no mask is found.
    """
    found = find(images, masks)
    if len(found.pairs) < 3:
        raise DataError(
            f"{len(found.pairs)} images with masks under {images}; nothing can be learnt and scored from so few",
            "name the folder of masks with --masks; a mask is called like its image, also with an ending such as _mask",
        )
    doubts: list[str] = []
    data = _part(found, doubts)
    encoding = look_at_masks([mask for _, mask in found.pairs])
    names = given_names(classes) if classes else find_names(_homes(found.root, images, masks))
    reading = decide(encoding, names)
    doubts += reading.doubts
    doubts += [f"a mask cannot be read: {fault}" for fault in encoding.faults[:5]]
    sizes = _sizes([image for image, _ in found.pairs])
    if sizes.least != sizes.most:
        low, high = (f"{width}x{height}" for height, width in (sizes.least, sizes.most))
        doubts.append(f"image sizes vary from {low} to {high}: look whether one scale suits all")
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
    """Where a class file may lie: in the folders that were named and in those above them, up to their common one."""
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
        doubts.append(f"{len(found.strays)} masks have no image; the first: {found.strays[0]}")
    return Part(found, lists, splits, *(pattern or (None, 0)))


def _find_lists(found: FolderContents, doubts: list[str]) -> dict[str, Path]:
    """List files of splits near the data that name its images and masks; all from one folder, with `train` in it."""
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
                doubts.append(f"list {path} is not used: it names other images, or images without masks")
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
        raise DataError(f"no image can be read; the first: {images[0]}", "are these images?")
    least, median, most = measured.min(0), np.median(measured, axis=0).astype(int), measured.max(0)
    return Sizes((int(least[0]), int(least[1])), (int(median[0]), int(median[1])), (int(most[0]), int(most[1])))


def _unlabeled(folder: Path | None, data: FolderContents, doubts: list[str]) -> FolderContents | None:
    if folder is not None:
        found = find(folder, folder)
        return FolderContents(found.root, (), found.images, ())
    if not data.unlabeled:
        return None
    if len(data.unlabeled) < _FEWEST_UNLABELED:
        doubts.append(f"{len(data.unlabeled)} images have no mask and are left out; the first: {data.unlabeled[0]}")
        return None
    doubts.append(f"{len(data.unlabeled)} images have no mask: they are used as unlabelled images")
    return FolderContents(data.root, (), data.unlabeled, ())


def _target(folder: Path, source: Encoding, doubts: list[str]) -> Part:
    found = find(folder)
    part = _part(found, doubts)
    if not found.pairs:
        doubts.append("the target has no masks: nothing can be scored on it; label a few of its images for a test")
        return part
    encoding = look_at_masks([mask for _, mask in found.pairs])
    strange = [value for value in encoding.main() if value not in source.values]
    if encoding.kind != source.kind or strange:
        doubts.append(
            f"masks of the target are not written like those of the source ({encoding.kind} against {source.kind}, "
            f"new values: {', '.join(map(str, strange[:8])) or 'none'}): mend data.target"
        )
    return part
