"""The images that a pseudo-label audit looks at: those without masks, and labelled ones that training does not use."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tutelage.data.dataset import Dataset
from tutelage.data.subsample import evenly
from tutelage.evaluation.evaluate import blocks_of


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


def spread(datasets: Mapping[str, Dataset], count: int) -> AuditedImages:
    """``count`` images spread evenly over all of several data sets, given by name; their masks are not opened."""
    bare = {name: dataset.without_labels() for name, dataset in datasets.items()}
    everything = [(dataset, index) for dataset in bare.values() for index in range(len(dataset))]
    chosen = evenly(len(everything), count)
    images = everything if chosen is None else [everything[place] for place in chosen]
    return AuditedImages(", ".join(datasets), tuple(images))


def held_out(name: str, dataset: Dataset, used: Collection[Path], images: int | None = None) -> Truth:
    """Evenly spread ``images`` of a labelled data set (null: all), without those that training ``used``."""
    chosen = evenly(len(dataset), images) or range(len(dataset))
    kept = tuple(index for index in chosen if dataset.samples[index].image.resolve() not in used)
    left_out = len(chosen) - len(kept)
    note = "" if not left_out else f"{left_out} of {len(chosen)} images of {name} are left out: training uses them"
    return Truth(name, dataset if kept else None, kept, note)
