"""Checking the data of a recipe: every split that it names, with the part that it plays."""

from __future__ import annotations

from collections.abc import Callable

from tutelage.data.checks import Finding, check_datasets
from tutelage.data.dataset import Dataset
from tutelage.errors import DataError
from tutelage.pipeline.builder import Builder, listed
from tutelage.pipeline.display import Display
from tutelage.recipe.reading import Read
from tutelage.recipe.schema import AnnotateStage, EvaluateStage, Recipe, TrainStage


def check(read: Read, say: Callable[[str], None] = lambda text: None) -> list[Finding]:
    """What is found in all data that the recipe's stages use, and in every other split of its data sets."""
    builder = Builder(read, say)
    datasets: dict[str, Dataset] = {}
    for name in read.recipe.data:
        for split in builder.splits(name):
            reference = f"{name}/{split}"
            try:
                datasets[reference] = builder.dataset(reference)
            except DataError as error:
                datasets.pop(reference, None)
                say(f"{reference}: {error}")
                raise
    used = roles(read.recipe, builder)
    display = Display()
    with display.bar("check", sum(map(len, datasets.values()))) as progress:
        return check_datasets(datasets, roles=used, progress=progress, say=say)


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
        elif isinstance(stage, EvaluateStage):
            note(stage.data, "test")
    return found
