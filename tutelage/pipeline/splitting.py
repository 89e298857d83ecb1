"""Making list files from a recipe's data set: train/val/test, or few-label partitions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tutelage.data.splits import describe_parts, few_label_partitions, partition_parts, split_dataset, write_splits
from tutelage.errors import RecipeError
from tutelage.pipeline.builder import Builder
from tutelage.recipe.reading import Read


def write_partitions(
    read: Read,
    data: str,
    out: Path,
    *,
    parts: str,
    few: str | None,
    draws: int,
    seed: int,
    by_group: bool,
    stratify: bool,
    force: bool,
    say: Callable[[str], None] = lambda text: None,
) -> list[Path]:
    """Write the lists of ``parts`` (``train=0.7,val=30``), or of ``few`` (``1/16,1/8``), and say what they hold.

    Paths in the lists are relative to the data set's root, so that its ``splits`` can name them. Raises
    :class:`RecipeError` for parts that cannot be read, and :class:`DataError` for what the data do not allow.
    """
    builder = Builder(read, say)
    dataset = builder.dataset(data)
    if few is not None:
        sizes = [part.strip() for part in few.split(",")]
        chosen = partition_parts(
            few_label_partitions(dataset, sizes, draws, seed, stratify=stratify, by_group=by_group)
        )
    else:
        chosen = split_dataset(dataset, _parts(parts), seed, group=by_group, stratify=stratify)
    for line in describe_parts(dataset, chosen):
        say(line)
    root = builder.root(data.partition("/")[0])
    return list(write_splits(dataset, chosen, out, root, force=force).values())


def _parts(text: str) -> dict[str, str]:
    result = {}
    for pair in text.split(","):
        name, separator, size = pair.partition("=")
        if not separator or not name.strip() or not size.strip():
            raise RecipeError(f"part {pair!r} is no name=size", "e.g. train=0.7,val=0.1,test=0.2, or counts")
        result[name.strip()] = size.strip()
    return result
