"""Splitting a data set into train, val and test or into few-label partitions, by classes or by groups, as list files.

By classes: greedy iterative stratification. The rarest class is assigned first, each of its images to the part with the
largest remaining demand for that class, where the demand is the part's share of the images and of the pixels. Then
images are swapped until every part shows every class, where that is possible. By group (cities, sites, cameras): every
part gets its share of each group within rounding, as in the published few-label lists of Cityscapes with its cities.
Keeping groups whole is a separate option. The result is a function of the samples' names and the seed, independent of
the order of files on disk.
"""

# Legend: N samples, C classes.

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Literal

import numpy as np

from tutelage.data.dataset import Dataset
from tutelage.data.draws import key
from tutelage.data.lists import list_text
from tutelage.data.statistics import read_statistics
from tutelage.data.stratify import deal, units_of
from tutelage.errors import DataError
from tutelage.runs.atomic import write_text

Size = float | int | str | Fraction
"""A count (an int), or a fraction of the data set (a float, a Fraction, or text such as `1/16`)."""
Stratify = Literal["classes", "group", "none"]
"""``classes``: every part shows every class; ``group``: every part has its share of every group; ``none``: random."""
Partitions = dict[tuple[str, int], tuple[list[int], list[int]]]
"""(name, draw) → indices of the labelled and of the unlabelled samples."""


def split_dataset(
    dataset: Dataset, parts: Mapping[str, Size], seed: int = 0, *, group: bool = False, stratify: Stratify = "classes"
) -> dict[str, list[int]]:
    """Split a data set: part → indices of its samples, sorted by name.

    ``parts`` gives fractions or counts; images that they do not cover are in no part. ``group`` keeps the samples of
    one group together. Raises :class:`DataError`: ``split-size``, ``missing-groups``, ``group-options``.
    """
    counts = _counts(parts, len(dataset))
    if stratify == "group":
        _not_whole(group)
        order, ends = _spread(dataset, key(seed, "split", tuple(parts))), np.cumsum([0, *counts.values()])
        return {name: _by_name(dataset, order[ends[i] : ends[i + 1]]) for i, name in enumerate(counts)}
    units = units_of(dataset, group, stratify == "classes")
    if len(units) < len(parts):
        kind = "group" if group else "image"
        raise DataError(
            "split-size",
            f"{dataset.name}: cannot split {len(units)} {kind}{'s' * (len(units) != 1)} into {len(parts)} parts",
            "set data.<name>.group so that there are more groups, or split without --by-group"
            if group
            else "reduce the number of parts",
        )
    rest = len(dataset) - sum(counts.values())
    sizes = [*counts.values(), *([rest] if rest else [])]
    chosen = deal(units, sizes, len(counts), key(seed, "split", tuple(parts)))
    return {name: units.samples(chosen == place) for place, name in enumerate(counts)}


def few_label_partitions(
    dataset: Dataset,
    sizes: Sequence[Size],
    draws: int = 1,
    seed: int = 0,
    *,
    nested: bool = True,
    stratify: Stratify = "classes",
    by_group: bool = False,
) -> Partitions:
    """Draw few-label partitions: (name of the size, draw) → indices of the labelled and of the unlabelled samples.

    Indices are sorted by sample name. With ``nested``, each smaller labelled set is a subset of every larger one of the
    same draw. Raises :class:`DataError`: ``split-size``, ``missing-groups``, ``group-options``.
    """
    ordered = sorted(sizes, key=lambda size: count_of(size, len(dataset)))
    if stratify == "group":
        _not_whole(by_group)
        return {
            (size_name(size), draw): _cut(dataset, count_of(size, len(dataset)), key(seed, "few", draw, *salt))
            for size in sizes
            for draw in range(draws)
            for salt in [() if nested else (size_name(size),)]
        }
    units = units_of(dataset, by_group, stratify == "classes")
    result: Partitions = {}
    for draw in range(draws):
        inside = np.full(len(units), -1)
        for size in ordered:
            count = count_of(size, len(dataset))
            salt = () if nested else (size_name(size),)
            entropy = key(seed, "few", draw, *salt)
            chosen = deal(units, [count, len(dataset) - count], 1, entropy, inside)
            result[size_name(size), draw] = (units.samples(chosen == 0), units.samples(chosen != 0))
            if nested:
                inside = np.where(chosen == 0, 0, -1)
    return {(size_name(size), draw): result[size_name(size), draw] for size in sizes for draw in range(draws)}


def _spread(dataset: Dataset, entropy: int) -> list[int]:
    """An order of the samples in which every contiguous range has its share of every group, within rounding.

    The samples of each group are shuffled and placed at equal distances; ties are broken by a random order of groups.
    """
    if not any(sample.group for sample in dataset.samples):
        raise DataError(
            "groups-missing",
            f"{dataset.name}: no image has a group",
            r"set data.<name>.group, e.g. '/train/([^/]+)/' for the cities of Cityscapes",
        )
    groups: dict[str, list[int]] = {}
    for index in sorted(range(len(dataset)), key=lambda i: dataset.samples[i].name):
        groups.setdefault(dataset.samples[index].group, []).append(index)
    draw = np.random.Generator(np.random.Philox(key=entropy))
    ties = draw.permutation(len(groups))
    placed: list[tuple[Fraction, int, int]] = []
    for tie, name in zip(ties, sorted(groups), strict=True):
        members = groups[name]
        shuffled = draw.permutation(len(members))
        placed += [
            (Fraction(2 * rank + 1, 2 * len(members)), int(tie), members[place]) for rank, place in enumerate(shuffled)
        ]
    return [index for _, _, index in sorted(placed)]


def _cut(dataset: Dataset, count: int, entropy: int) -> tuple[list[int], list[int]]:
    order = _spread(dataset, entropy)
    return _by_name(dataset, order[:count]), _by_name(dataset, order[count:])


def _by_name(dataset: Dataset, indices: Sequence[int]) -> list[int]:
    return sorted(indices, key=lambda i: dataset.samples[i].name)


def _not_whole(by_group: bool) -> None:
    if by_group:
        raise DataError(
            "option-conflict",
            "--by-group and --stratify group exclude each other",
            "use --by-group (no group in two parts) or --stratify group (every part has some of each group)",
        )


def count_of(size: Size, total: int) -> int:
    """Number of images that a size means, at least one. Raises :class:`DataError` (``split-size``)."""
    value = _parsed(size)
    count = value if isinstance(value, int) else max(round(value * total), 1)
    if not 1 <= count <= total:
        raise DataError(
            "split-size",
            f"size must be in [1, {total}] images, got {size}",
            "give a fraction up to 1, or a number of images of the data set",
        )
    return count


def size_name(size: Size) -> str:
    """Folder name of a size: `1_16` for a sixteenth, `46` for 46 images."""
    value = _parsed(size)
    return str(value) if isinstance(value, int) else f"{value.numerator}_{value.denominator}"


def _parsed(size: Size) -> int | Fraction:
    if isinstance(size, int):
        return size
    try:
        if isinstance(size, str) and size.strip().isdigit():
            return int(size)
        value = Fraction(size) if isinstance(size, (str, Fraction)) else Fraction(size).limit_denominator(10_000)
    except (ValueError, ZeroDivisionError, OverflowError):
        raise DataError(
            "split-size", f"invalid size {size!r}", "write a fraction (0.1, 1/16) or a number of images"
        ) from None
    if not 0 <= value <= 1:
        raise DataError(
            "split-size",
            f"fraction must be in [0, 1], got {size}",
            "write a smaller fraction, or an integer for a number of images",
        )
    return value


def describe_parts(dataset: Dataset, parts: Mapping[str, Collection[int]]) -> list[str]:
    """One line for each part: its numbers of images and groups, and the classes it lacks."""
    classes_NC = read_statistics(dataset).classes
    lines = []
    for name, indices in parts.items():
        groups = {dataset.samples[i].group for i in indices} - {""}
        lacking = _missing(dataset, classes_NC, indices)
        lines.append(
            f"{name}: {len(indices)} image{'s' * (len(indices) != 1)}"
            + (f" of {len(groups)} group{'s' * (len(groups) != 1)}" if groups else "")
            + (f"; missing classes: {', '.join(lacking)}" if lacking else "")
        )
    return lines


def missing_classes(dataset: Dataset, indices: Collection[int]) -> tuple[str, ...]:
    """Classes that occur in the masks of the data set, but not in those of the samples at ``indices``."""
    return _missing(dataset, read_statistics(dataset).classes, indices)


def write_splits(
    dataset: Dataset, parts: Mapping[str, Sequence[int]], folder: Path, root: Path, *, force: bool = False
) -> dict[str, Path]:
    """Write ``folder/<part>.txt`` for every part, with paths relative to ``root``; return the files.

    A part's name may include a subfolder (`1_16/labeled`). Raises :class:`DataError` before anything is written:
    ``list-exists`` for an existing list with other content, unless ``force``; ``split-size`` for a part without images.
    """
    texts = {}
    for name, indices in parts.items():
        if not len(indices):
            raise DataError(
                "split-size", f"{dataset.name}: part {name!r} would have no image", "give the part more images"
            )
        texts[folder / f"{name}.txt"] = list_text((dataset.samples[i] for i in indices), root)
    differing = [path for path, text in texts.items() if path.exists() and not _has_text(path, text)]
    if differing and not force:
        more = f" and {len(differing) - 1} more" if len(differing) > 1 else ""
        raise DataError(
            "output-exists",
            f"list exists with other content: {differing[0]}{more}",
            "write to another folder, or replace it with --force (results on the old list will not be comparable)",
        )
    for path, text in texts.items():
        if not path.exists() or path in differing:
            write_text(path, text)
    return dict(zip(parts, texts, strict=True))


def partition_parts(partitions: Partitions) -> dict[str, list[int]]:
    """Few-label partitions as parts for :func:`write_splits`: `1_16/labeled`, or `1_16/draw0/labeled` for several
    draws."""
    several = any(draw for _, draw in partitions)
    parts = {}
    for (name, draw), (labeled, unlabeled) in partitions.items():
        folder = f"{name}/draw{draw}" if several else name
        parts[f"{folder}/labeled"] = labeled
        if unlabeled:
            parts[f"{folder}/unlabeled"] = unlabeled
    return parts


def _has_text(path: Path, text: str) -> bool:
    try:
        return path.read_bytes() == text.encode()
    except OSError:
        return False


def _counts(parts: Mapping[str, Size], total: int) -> dict[str, int]:
    """Number of images of each part; fractions are rounded so that their total is the rounded total."""
    values = {name: _parsed(size) for name, size in parts.items()}
    result = {name: value if isinstance(value, int) else int(value * total) for name, value in values.items()}
    exact = {name: value * total for name, value in values.items() if isinstance(value, Fraction)}
    missing = round(sum(exact.values())) - sum(result[name] for name in exact)
    # Ties go to the part that comes first.
    for name in sorted(exact, key=lambda name: result[name] - exact[name])[:missing]:
        result[name] += 1
    for name in result:
        if result[name] < 1:
            largest = max(result, key=lambda other: result[other])
            if isinstance(values[name], int) or not values[name] or result[largest] < 2:
                raise DataError(
                    "split-size",
                    f"part {name!r} would have no image of {total}",
                    "give the part at least one image",
                )
            result[name] += 1
            result[largest] -= 1
    if sum(result.values()) > total:
        raise DataError(
            "split-size",
            f"parts need {sum(result.values())} images, but the data set has {total}: "
            + ", ".join(f"{name} {count}" for name, count in result.items()),
            "let fractions add up to at most 1, counts to at most the number of images",
        )
    return result


def _missing(dataset: Dataset, classes_NC: np.ndarray, indices: Collection[int]) -> tuple[str, ...]:
    anywhere, here = classes_NC.sum(0) > 0, classes_NC[list(indices)].sum(0) > 0
    return tuple(name for i, name in enumerate(dataset.classes.names) if anywhere[i] and not here[i])
