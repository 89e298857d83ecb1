"""Checking the data of a recipe, every split with the part that it plays; or a folder that has no recipe yet."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tutelage.data.checks import Finding, check_datasets
from tutelage.data.dataset import Dataset
from tutelage.data.proposal import look
from tutelage.errors import DataError
from tutelage.pipeline.builder import Builder
from tutelage.pipeline.display import Display
from tutelage.pipeline.proposal_data import existing_splits, open_pairs
from tutelage.recipe.ladder import expand, untuned
from tutelage.recipe.reading import LoadedRecipe
from tutelage.recipe.references import listed
from tutelage.recipe.schema import AnnotateStage, EvaluateStage, FitStage, Recipe, TrainStage, TransformStage


def check(read: LoadedRecipe, say: Callable[[str], None] = lambda text: None) -> list[Finding]:
    """What is found in all data that the recipe's stages use, and in every other split of its data sets."""
    builder = Builder(read, say)
    datasets: dict[str, Dataset] = {}
    for name in read.recipe.data:
        for split in builder.splits(name):
            reference = f"{name}/{split}"
            try:
                datasets[reference] = builder.dataset(reference)
            except DataError as error:
                say(f"{reference}: {error}")
                raise
    recipe = read.recipe
    if recipe.ladder is not None:
        recipe = expand(recipe, untuned(recipe.ladder)).recipe
    return _check(datasets, roles(recipe, builder), say, crops(recipe, builder))


def check_folder(folder: Path, say: Callable[[str], None] = lambda text: None) -> list[Finding]:
    """What is found in a folder of images and masks, read as `tutelage init` would read it; it says how.

    Raises :class:`DataError` where no masks are found.
    """
    try:
        seen = look(folder)
    except DataError as error:
        remedy = "name the folder that holds both images and masks" if "--masks" in error.remedy else error.remedy
        raise DataError(error.message, remedy) from error
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
    """Data reference → height and width of the largest crop that a stream cuts out of its images as they are."""
    found: dict[str, tuple[int, int]] = {}
    for stage in recipe.stages.values():
        for settings in stage.streams.values() if isinstance(stage, TrainStage) else ():
            if settings.augment.crop is None or settings.augment.resize is not None:
                continue
            for reference in listed(settings.data):
                if reference not in recipe.stages:
                    name = builder.full_name(reference)
                    height, width = found.get(name, (0, 0))
                    found[name] = max(height, settings.augment.crop[0]), max(width, settings.augment.crop[1])
    return found


def roles(recipe: Recipe, builder: Builder) -> dict[str, set[str]]:
    """Data reference → what the stages use it for."""
    found: dict[str, set[str]] = {}

    def note(reference: str, role: str) -> None:
        if reference not in recipe.stages:
            found.setdefault(builder.full_name(reference), set()).add(role)

    for stage in recipe.stages.values():
        if isinstance(stage, TrainStage):
            for stream, settings in stage.streams.items():
                role = {"labeled": "train", "source": "source", "target": "target"}.get(stream, "unlabeled")
                for reference in listed(settings.data):
                    note(reference, role)
            if stage.evaluate is not None:
                note(stage.evaluate.data, "val")
        elif isinstance(stage, AnnotateStage):
            note(stage.data, "unlabeled")
        elif isinstance(stage, FitStage):
            note(stage.data, "source" if stage.target is not None else "train" if stage.masked() else "unlabeled")
            if stage.target is not None:
                note(stage.target, "target")
        elif isinstance(stage, TransformStage):
            note(stage.data, "source")
            note(stage.target, "target")
        elif isinstance(stage, EvaluateStage):
            note(stage.data, "test")
    return found
