"""Which images a pseudo-label audit looks at: those without masks, and labelled ones that training does not use."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tutelage.data.dataset import Dataset
from tutelage.data.statistics import read_statistics
from tutelage.evaluation.evaluate import blocks_of
from tutelage.methods import find_settings
from tutelage.pipeline.builder import Builder
from tutelage.pipeline.subsample import evenly
from tutelage.recipe.references import WEIGHT_SUFFIXES, listed
from tutelage.recipe.schema import (
    AnnotateStage,
    AuditSettings,
    ChoiceSettings,
    FitStage,
    Stage,
    TrainStage,
    TransformStage,
)


@dataclass(frozen=True)
class AuditedImages:
    """The images that are looked at without their masks."""

    title: str
    images: tuple[tuple[Dataset, int], ...]

    def name(self, place: int) -> str:
        """The name of an image."""
        dataset, index = self.images[place]
        return dataset.samples[index].name

    def image(self, place: int) -> NDArray[np.uint8]:
        """(H, W, 3) RGB. Raises :class:`DataError` when it cannot be read."""
        dataset, index = self.images[place]
        return dataset.image(index)


@dataclass(frozen=True)
class Truth:
    """The labelled images that say how often the labels are right, or why there are none."""

    title: str = ""
    dataset: Dataset | None = None
    indices: tuple[int, ...] = ()
    note: str = ""
    """Why there are none, or what was left out."""

    @property
    def blocks(self) -> list[str] | None:
        """The group of each image, where there are several."""
        assert self.dataset is not None
        return blocks_of([self.dataset.samples[index].group for index in self.indices])

    def name(self, place: int) -> str:
        """The name of an image."""
        assert self.dataset is not None
        return self.dataset.samples[self.indices[place]].name


def seen_by(builder: Builder, stage: TrainStage, audit: AuditSettings | ChoiceSettings) -> AuditedImages:
    """The images that a training's audit, or the choice of its weights, looks at."""
    needs = find_settings(stage.method.name).streams
    given = listed(audit.data or [])
    if not given:
        streams = [name for name in stage.streams if not needs[name].labels] or list(stage.streams)
        given = [reference for name in streams for reference in listed(stage.streams[name].data)]
    references = list(dict.fromkeys(given))
    datasets = [builder.dataset(reference).without_labels() for reference in references]
    everything = [(dataset, index) for dataset in datasets for index in range(len(dataset))]
    chosen = evenly(len(everything), audit.images)
    images = everything if chosen is None else [everything[place] for place in chosen]
    return AuditedImages(", ".join(references), tuple(images))


def truth_of(builder: Builder, stage: TrainStage, audit: AuditSettings) -> Truth:
    """The labelled images of a training's audit: those of ``val`` that no stage before or in this training uses."""
    if audit.val is None:
        return Truth(note="audit.val is null")
    if audit.val == "evaluate" and stage.evaluate is None:
        return Truth(note="the stage has no `evaluate`; audit.val can name labelled images that training does not use")
    during = stage.evaluate
    val = audit.val if audit.val != "evaluate" or during is None else during.data
    if val in builder.recipe.stages:
        return Truth(note=f"`evaluate` scores against pseudo labels ({val}), which are no truth")
    same = during is not None and builder.full_name(val) == builder.full_name(during.data)
    return held_out(builder, val, stage, during.images if same and during is not None else None)


def held_out(builder: Builder, val: str, stage: Stage, images: int | None = None) -> Truth:
    """The images of ``val`` (evenly spread ``images`` of them) that ``stage`` and those before it do not train on."""
    dataset = builder.dataset(val)
    used = _used(builder, stage)
    chosen = evenly(len(dataset), images) or range(len(dataset))
    kept = tuple(index for index in chosen if dataset.samples[index].image.resolve() not in used)
    left_out = len(chosen) - len(kept)
    note = "" if not left_out else f"{left_out} of {len(chosen)} images of {val} are left out: training uses them"
    return Truth(val, dataset if kept else None, kept, note)


def _used(builder: Builder, stage: Stage) -> set[Path]:
    """The images that a training, and those that it builds upon, show to a net, with masks or without."""
    stages = builder.recipe.stages
    if isinstance(stage, AnnotateStage):
        return _used(builder, stages[stage.net.partition(".")[0]])
    if isinstance(stage, FitStage | TransformStage):
        shown = {stage.data} if stage.target is None else {stage.data, stage.target}
        used = {sample.image.resolve() for reference in shown for sample in builder.dataset(reference).samples}
        nets = [] if isinstance(stage, TransformStage) or stage.net is None else [stage.net.partition(".")[0]]
        return used.union(*(_used(builder, stages[name]) for name in (*shown, *nets) if name in stages))
    if not isinstance(stage, TrainStage):
        return set()
    data = [reference for stream in stage.streams.values() for reference in listed(stream.data)]
    used = {sample.image.resolve() for reference in data for sample in builder.dataset(reference).samples}
    before = [*stage.inputs.values(), *data, *(it for it in stage.init.values() if not it.endswith(WEIGHT_SUFFIXES))]
    for reference in before:
        earlier = stages.get(reference.partition(".")[0])
        if earlier is not None:
            used |= _used(builder, earlier)
    return used


def label_shares(builder: Builder, stage: Stage) -> NDArray[np.float64] | None:
    """(K,) share of each class among the labelled pixels that a training uses; ``None`` without any."""
    if not isinstance(stage, TrainStage):
        return None
    needs = find_settings(stage.method.name).streams
    data = [it for name, stream in stage.streams.items() if needs[name].labels for it in listed(stream.data)]
    total = np.zeros(len(builder.classes), dtype=np.float64)
    for reference in dict.fromkeys(data):
        total += read_statistics(builder.dataset(reference)).class_pixels()[: len(total)]
    return total / total.sum() if total.sum() else None
