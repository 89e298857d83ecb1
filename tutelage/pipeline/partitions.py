"""Writes list files for a recipe's data set: train/val/test, or few-label partitions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tutelage.data.dataset import Dataset
from tutelage.data.published_splits import list_hash, recognise
from tutelage.data.splits import (
    Stratify,
    describe_parts,
    few_label_partitions,
    partition_parts,
    split_dataset,
    write_splits,
)
from tutelage.errors import DataError, RecipeError
from tutelage.pipeline.builder import Builder, named
from tutelage.recipe.loading import LoadedRecipe


def write_partitions(
    loaded: LoadedRecipe,
    data: str,
    out: Path,
    *,
    parts: str,
    few: str | None,
    draws: int,
    seed: int,
    by_group: bool,
    stratify: Stratify,
    force: bool,
    say: Callable[[str], None] = lambda text: None,
) -> list[Path]:
    """Write the lists of ``parts`` (``train=0.7,val=30``), or of ``few`` (``1/16,1/8``), and report their contents.

    The hash of each labelled list is reported, to compare lists between machines. Paths in
    the lists are relative to the data set's root, so that its ``splits`` can name them. Raises :class:`RecipeError` for
    parts that cannot be loaded, and :class:`DataError` for partitions that the data do not allow.
    """
    builder = Builder(loaded, say)
    dataset = builder.dataset(data)
    if any(sample.lost for sample in dataset.samples):
        dataset.require_labels(f"split, data {data}")
    try:
        chosen = _deal(dataset, parts, few, draws, seed, by_group, stratify)
    except DataError as error:
        raise DataError(error.code, error.message, named(error.remedy, data.partition("/")[0])) from error
    for line, (name, indices) in zip(describe_parts(dataset, chosen), chosen.items(), strict=True):
        if name.rpartition("/")[2] == "unlabeled":
            say(line)
            continue
        samples = [dataset.samples[index] for index in indices]
        known = recognise(samples)
        say(f"{line}; sha256 {list_hash(samples)}" + (f": {known.describe()}" if known else ""))
    root = builder.root(data.partition("/")[0])
    return list(write_splits(dataset, chosen, out, root, force=force).values())


def _deal(
    dataset: Dataset,
    parts: str,
    few: str | None,
    draws: int,
    seed: int,
    by_group: bool,
    stratify: Stratify,
) -> dict[str, list[int]]:
    if few is None:
        return split_dataset(dataset, _parts(parts), seed, group=by_group, stratify=stratify)
    sizes = [part.strip() for part in few.split(",")]
    return partition_parts(few_label_partitions(dataset, sizes, draws, seed, stratify=stratify, by_group=by_group))


def _parts(text: str) -> dict[str, str]:
    result = {}
    for pair in text.split(","):
        name, separator, size = pair.partition("=")
        if not separator or not name.strip() or not size.strip():
            raise RecipeError(
                "invalid-value",
                f"invalid part {pair!r}; expected name=size",
                "e.g. train=0.7,val=0.1,test=0.2, or counts",
            )
        result[name.strip()] = size.strip()
    return result
