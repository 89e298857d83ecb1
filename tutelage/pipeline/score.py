"""Scores trained nets outside a recipe's stages: on a recipe's data, or on folders."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tutelage.data.dataset import Dataset
from tutelage.data.folder import FolderSettings, FolderSplit, open_folder
from tutelage.deploy.model import Model, load_model
from tutelage.errors import RunError
from tutelage.evaluation.class_groups import ClassGroups, check_groups
from tutelage.evaluation.evaluate import evaluate, summary, write_evaluation
from tutelage.evaluation.protocol import Protocol
from tutelage.nets.segmentor import Segmentor
from tutelage.pipeline.builder import Builder
from tutelage.pipeline.display import Display
from tutelage.recipe.loading import LoadedRecipe

Scores = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Way:
    """How nets are scored."""

    protocol: Protocol
    device: str
    subsets: ClassGroups
    """Name → classes, for additional means of IoU."""
    merged: ClassGroups
    """Name → classes to merge, for additional scores."""


def on_recipe(loaded: LoadedRecipe, data: str, nets: Iterable[Path], way: Way, out: Path | None, quiet: bool) -> Scores:
    """Score nets on ``name/split`` of a recipe."""
    dataset = Builder(loaded).dataset(data)
    return {_name(path): _score(path, load_model(path, way.device), dataset, way, out, quiet) for path in nets}


def on_folders(images: Path, masks: Path, nets: Iterable[Path], way: Way, out: Path | None, quiet: bool) -> Scores:
    """Score nets on a folder of images and one of masks, whose values are each net's class ids."""
    result = {}
    for path in nets:
        model = load_model(path, way.device)
        split = FolderSplit(images=str(images.resolve()), masks=str(masks.resolve()))
        settings = FolderSettings(classes=list(model.classes), palette=list(model.palette), splits={"data": split})
        dataset = open_folder(settings, Path.cwd())["data"]
        result[_name(path)] = _score(path, model, dataset, way, out, quiet)
    return result


def _score(path: Path, model: Model, dataset: Dataset, way: Way, out: Path | None, quiet: bool) -> dict[str, Any]:
    if model.classes != dataset.classes.names:
        raise RunError(
            "other-classes",
            f"{path} has the classes {', '.join(model.classes)}; {dataset.name} has {', '.join(dataset.classes.names)}",
            "evaluate on data with the net's classes (data.<name>.bridge maps others onto them)",
        )
    check_groups(way.subsets, way.merged, dataset.classes.names, "")
    net = model.net
    assert isinstance(net, Segmentor)
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with Display(quiet).bar(f"evaluate {_name(path)}", len(dataset)) as progress, net.inferring(way.protocol.precision):
        outcome = evaluate(
            net,
            dataset,
            way.protocol,
            device=model.device,
            boundary=True,
            calibration=True,
            merged_as=way.merged,
            progress=progress,
        )
    content = summary(outcome, dataset, way.protocol, subsets=way.subsets, merged_as=way.merged)
    if out is not None:
        write_evaluation(out / f"{_name(path)}.json", out / f"{_name(path)}.npz", content, outcome)
    return content


def _name(path: Path) -> str:
    """A net's name in tables and files: its stage's folder, or its own file."""
    return path.parent.parent.name if path.is_file() and path.parent.name == "nets" else path.stem
