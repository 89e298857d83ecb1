"""A recipe that is kept in another folder: its paths lead to the same files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from tutelage.recipe.references import WEIGHT_SUFFIXES
from tutelage.recipe.schema import Course, Recipe, Rung, TrainStage


def moved(recipe: Recipe, base: Path, place: Path) -> Recipe:
    """The recipe of the folder ``base`` as it must be written in the folder ``place``."""

    def path(text: str) -> str:
        if Path(text).is_absolute():
            return text
        try:
            return Path(os.path.relpath(base / text, place)).as_posix()
        except ValueError:  # another drive
            return str(base / text)

    def weights(text: str) -> str:
        return path(text) if text.endswith(WEIGHT_SUFFIXES) else text

    def started(course: Course) -> Course:
        return course.model_copy(update={"init": {target: weights(it) for target, it in course.init.items()}})

    def started_rung(rung: Rung) -> Rung:
        """Of a rung, whose training and stages are plain values."""

        def inside(content: dict[str, Any]) -> dict[str, Any]:
            init = content.get("init")
            if not isinstance(init, dict):
                return content
            return {**content, "init": {target: weights(str(it)) for target, it in init.items()}}

        own = {name: inside(stage) for name, stage in rung.stages.items()}
        return rung.model_copy(update={"training": inside(rung.training), "stages": own})

    stages = {name: started(stage) if isinstance(stage, TrainStage) else stage for name, stage in recipe.stages.items()}
    ladder = recipe.ladder
    if ladder is not None:
        rungs = {name: started_rung(rung) for name, rung in ladder.rungs.items()}
        ladder = ladder.model_copy(update={"training": started(ladder.training), "rungs": rungs})
    nets = {
        name: net if net.weights is None else net.model_copy(update={"weights": weights(net.weights)})
        for name, net in recipe.nets.items()
    }
    data = {name: entry.model_copy(update={"root": path(entry.root)}) for name, entry in recipe.data.items()}
    return recipe.model_copy(update={"data": data, "nets": nets, "stages": stages, "ladder": ladder})
