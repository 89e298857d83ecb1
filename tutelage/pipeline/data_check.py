"""Checks the data of a recipe, each split by its use, or a folder without a recipe."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from tutelage.data.checks import Finding, check_datasets
from tutelage.data.dataset import Dataset
from tutelage.data.settings import StreamSettings
from tutelage.errors import DataError
from tutelage.pipeline.builder import Builder
from tutelage.pipeline.display import Display
from tutelage.proposal.data_sections import existing_splits, open_pairs
from tutelage.proposal.folder_scan import look
from tutelage.recipe.base import listed
from tutelage.recipe.ladder import expand, untuned
from tutelage.recipe.loading import LoadedRecipe
from tutelage.recipe.schema import Recipe
from tutelage.settings import references


def check(loaded: LoadedRecipe, say: Callable[[str], None] = lambda text: None) -> list[Finding]:
    """Findings in all splits of the recipe's data sets, used or not."""
    builder = Builder(loaded, say)
    datasets: dict[str, Dataset] = {}
    for name in loaded.recipe.data:
        for split in builder.splits(name):
            reference = f"{name}/{split}"
            try:
                datasets[reference] = builder.dataset(reference)
            except DataError as error:
                say(f"{reference}: {error}")
                raise
    recipe = loaded.recipe
    if recipe.ladder is not None:
        recipe = expand(recipe, untuned(recipe.ladder)).recipe
    return _check(datasets, uses(recipe, builder), say, crops(recipe, builder))


def check_folder(folder: Path, say: Callable[[str], None] = lambda text: None) -> list[Finding]:
    """Findings in a folder of images and masks, read as `tutelage init` would; reports how it was read.

    Raises :class:`DataError` where no masks are found.
    """
    try:
        seen = look(folder)
    except DataError as error:
        remedy = "name the folder that holds both images and masks" if "--masks" in error.remedy else error.remedy
        raise DataError(error.code, error.message, remedy) from error
    part, reading = seen.data, seen.reading
    say(f"{folder}: {len(part.found.pairs)} images with masks; classes {', '.join(reading.classes)}")
    for doubt in seen.doubts:
        say(f"look: {doubt}")
    group = {} if part.group is None else {"group": part.group}
    everything = open_pairs(part.found, {"root": str(part.found.root), **reading.settings(), **group})
    splits = existing_splits(part, everything)
    datasets = {f"{folder.name}/{split}": everything.subset(indices) for split, indices in splits.items()}
    return _check(datasets or {folder.name: everything}, {}, say)


def _check(
    datasets: dict[str, Dataset],
    used: dict[str, set[str]],
    say: Callable[[str], None],
    cut: dict[str, tuple[int, int]] | None = None,
) -> list[Finding]:
    with Display().bar("check", sum(map(len, datasets.values()))) as progress:
        return check_datasets(datasets, roles=used, crops=cut, progress=progress, say=say)


def crops(recipe: Recipe, builder: Builder) -> dict[str, tuple[int, int]]:
    """Data reference → height and width of the largest crop that a stream cuts from unscaled images."""
    found: dict[str, tuple[int, int]] = {}
    for stage in recipe.stages.values():
        streams: Mapping[str, StreamSettings] = getattr(stage, "streams", {})
        for settings in streams.values():
            if settings.augment.crop is None or settings.augment.resize is not None:
                continue
            for reference in listed(settings.data):
                if reference not in recipe.stages:
                    name = builder.full_name(reference)
                    height, width = found.get(name, (0, 0))
                    found[name] = max(height, settings.augment.crop[0]), max(width, settings.augment.crop[1])
    return found


def uses(recipe: Recipe, builder: Builder) -> dict[str, set[str]]:
    """Data reference → its uses in the stages."""
    found: dict[str, set[str]] = {}
    for stage in recipe.stages.values():
        for it in references(stage):
            if it.ref.kind == "data" and it.ref.use and it.value not in recipe.stages:
                found.setdefault(builder.full_name(it.value), set()).add(it.ref.use)
    return found
