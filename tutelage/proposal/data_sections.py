"""The data section of a proposed recipe: what a look at folders found, with list files for its splits."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tutelage.data.checks import poisons
from tutelage.data.dataset import Dataset
from tutelage.data.folder import FolderSettings, open_folder
from tutelage.data.lists import read_list, sample, write_list
from tutelage.data.splits import missing_classes, split_dataset, write_splits
from tutelage.proposal.folder_scan import FolderScan, Part
from tutelage.proposal.pairs import FolderContents, Pair, picture_files

_SHARES = {"train": 0.7, "val": 0.15, "test": 0.15}
_OF_TRAIN = {"train": 0.85, "val": 0.15}
_TARGET_SHARES = {"train": 0.6, "test": 0.4}
_FEWEST_GROUPS = 6  # below, whole groups make lopsided splits
_NEAR = 2  # folders to go up for a relative path

Indices = dict[str, list[int]]


@dataclass
class DataSection:
    """One data set of the recipe: keys of a folder data set, but for its splits."""

    name: str
    comment: str
    settings: dict[str, Any]
    splits: dict[str, str | dict[str, str]]


@dataclass
class Lists:
    """Where list files are written; what a person should look at is gathered here, too."""

    recipe_folder: Path
    folder: Path
    force: bool
    doubts: list[str] = field(default_factory=list)

    def relative(self, path: Path) -> str:
        """A path as the recipe names it: relative to the recipe where it is near, so that both can move together."""
        near = Path(os.path.relpath(path, self.recipe_folder))
        return (near if near.parts.count("..") <= _NEAR else path).as_posix()

    def write(self, dataset: Dataset, parts: Mapping[str, Sequence[int]], root: Path) -> dict[str, str]:
        """Write a list for every part; returns their paths as they stand under `splits`: relative to the root."""
        written = write_splits(dataset, parts, self.folder, root, force=self.force)
        return {name: Path(os.path.relpath(path, root)).as_posix() for name, path in written.items()}


def source_entry(seen: FolderScan, name: str, lists: Lists) -> DataSection:
    """The labelled data, with train, val and test where there are enough images."""
    part = seen.data
    settings = _settings(seen, part, lists)
    dataset = open_pairs(part.found, settings)
    lists.doubts += [f"{finding.message} (see `tutelage check`)" for finding in poisons(dataset)]
    have = existing_splits(part, dataset)
    if not have:
        made = _split(dataset, _SHARES, part, lists)
        comment = "new splits that show every class where possible (seed 0)"
    elif "val" not in have and len(have["train"]) > 1:
        inner = _split(dataset.subset(have["train"]), _OF_TRAIN, part, lists)
        made = {split: [have["train"][i] for i in chosen] for split, chosen in inner.items()}
        comment = "your own splits; val was taken out of your train"
    else:
        made = {}
        comment = "your own splits"
    every = {**have, **made}
    if "test" not in every:
        lists.doubts.append("there is no test split: scores are on val, which also chooses the weights")
    for split, indices in every.items():
        lacking = missing_classes(dataset, indices)
        if lacking:
            lists.doubts.append(f"no mask of {split} shows {', '.join(lacking)}")
    splits = _named(part, lists, dataset, every, made, "")
    return DataSection(name, comment, settings, splits)


def unlabeled_entry(seen: FolderScan, found: FolderContents, lists: Lists) -> DataSection:
    """Images without masks."""
    settings = {"root": lists.relative(found.root), "classes": seen.reading.classes}
    comment = f"{len(found.images)} images without masks"
    return DataSection("unlabeled", comment, settings, {"all": _pictures(seen, found, "unlabeled", lists)})


def target_entry(seen: FolderScan, part: Part, lists: Lists) -> DataSection:
    """The other domain: its images for training, and masks for a score where there are some."""
    settings = _settings(seen, part, lists)
    found = part.found
    if not found.pairs:
        splits: dict[str, str | dict[str, str]] = {"all": _pictures(seen, found, "target_train", lists)}
        return DataSection("target", "the other domain, without masks", settings, splits)
    comment = "the other domain: training sees the images of train, never a mask; the masks of test give the score"
    dataset = open_pairs(found, settings)
    have = existing_splits(part, dataset)
    if "train" in have and "test" in have:
        return DataSection("target", comment, settings, _named(part, lists, dataset, have, {}, "target_"))
    if found.unlabeled:
        bare = FolderContents(found.root, (), found.unlabeled, ())
        test = lists.write(dataset, {"target_test": range(len(dataset))}, found.root)
        train = _pictures(seen, bare, "target_train", lists)
        return DataSection("target", comment, settings, {"train": train, "test": test["target_test"]})
    made = _split(dataset, _TARGET_SHARES, part, lists)
    return DataSection("target", comment, settings, _named(part, lists, dataset, made, made, "target_"))


def _settings(seen: FolderScan, part: Part, lists: Lists) -> dict[str, Any]:
    settings = {"root": lists.relative(part.found.root), **seen.reading.settings()}
    return settings if part.group is None else {**settings, "group": part.group}


def open_pairs(found: FolderContents, settings: Mapping[str, Any]) -> Dataset:
    """All pairs, opened with the very settings that the recipe will have."""
    samples = [sample(image, mask, found.root, lambda name: "") for image, mask in found.pairs]
    with TemporaryDirectory() as folder:
        path = Path(folder) / "all.txt"
        write_list(path, samples, found.root)
        chosen = FolderSettings.model_validate({**settings, "root": str(found.root), "splits": {"all": str(path)}})
        return open_folder(chosen, found.root)["all"]


def existing_splits(part: Part, dataset: Dataset) -> Indices:
    """Indices of the splits that are there, by lists or by folders."""
    place = {item.image.resolve(): index for index, item in enumerate(dataset.samples)}
    pairs: dict[str, list[Pair] | tuple[Pair, ...]] = dict(part.splits)
    for name, path in part.lists.items():
        samples = read_list(path, part.found.root, lambda name: "")
        pairs[name] = [(item.image, item.image) for item in samples]
    return {name: [place[image.resolve()] for image, _ in chosen] for name, chosen in pairs.items()}


def _named(
    part: Part, lists: Lists, dataset: Dataset, every: Indices, made: Indices, prefix: str
) -> dict[str, str | dict[str, str]]:
    """The splits as the recipe names them: lists that are there, and written ones for everything else."""
    root = part.found.root
    kept = {n: os.path.relpath(path, root) for n, path in part.lists.items() if n in every and n not in made}
    wanted = {f"{prefix}{name}": indices for name, indices in every.items() if name not in kept}
    written = lists.write(dataset, wanted, root)
    paths = {**{name: Path(path).as_posix() for name, path in kept.items()}}
    paths.update({name.removeprefix(prefix): path for name, path in written.items()})
    return {name: paths[name] for name in ("train", "val", "test") if name in paths}


def _split(dataset: Dataset, shares: Mapping[str, float], part: Part, lists: Lists) -> Indices:
    """New splits, by groups where there are enough of them."""
    sizes = Counter(item.group for item in dataset.samples)
    if part.group is None or len(sizes) < 2:
        return split_dataset(dataset, shares)
    seen = f"file names look like {len(sizes)} groups ({', '.join(sorted(sizes)[:3])}, ...)"
    if len(sizes) >= _FEWEST_GROUPS and max(sizes.values()) <= len(dataset) / 2:
        lists.doubts.append(f"{seen}, which the splits keep whole; if that is chance, take `group` out and split again")
        return split_dataset(dataset, shares, group=True)
    lists.doubts.append(
        f"{seen}, too few for splits of whole groups; if they are sequences or tiles, the scores are too good"
    )
    return split_dataset(dataset, shares)


def _pictures(seen: FolderScan, found: FolderContents, name: str, lists: Lists) -> str | dict[str, str]:
    """Images without masks as a split: their folder where it holds nothing else, or a list."""
    if tuple(picture_files(found.root)) == tuple(sorted(found.images)):
        return {"images": "."}
    samples = tuple(sample(path, None, found.root, lambda name: "") for path in found.images)
    bare = replace(open_pairs(seen.data.found, _settings(seen, seen.data, lists)), name=name, samples=samples)
    return lists.write(bare, {name: range(len(samples))}, found.root)[name]


def checked_name(name: str, taken: set[str]) -> str:
    """A folder's name as a recipe may call a data set."""
    letters = "".join(letter if letter.isascii() and (letter.isalnum() or letter in "_-") else "_" for letter in name)
    letters = letters.strip("_-") or "photos"
    if not letters[0].isalpha():
        letters = f"data_{letters}"
    return letters if letters not in taken else f"{letters}_data"
