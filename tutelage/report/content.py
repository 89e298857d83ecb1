"""The content of the report as plain data: numbers, names and small arrays.

The code that draws it does not depend on runs or nets. A missing figure is ``None`` or NaN, and its place on the page
is empty. Shares are in 0..1.
"""

# Legend: K classes, H W pixels of a picture.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tutelage.evaluation.intervals import Figure, Gain, Interval

Figures = tuple[Figure, ...]

Points = tuple[tuple[float, float], ...]
"""A curve: (step, value), sorted by step."""

IGNORE = 255


@dataclass(frozen=True)
class ClassInfo:
    """One class: its name, its colour (RGB) and its number of pixels in the scored truth."""

    name: str
    colour: tuple[int, int, int]
    pixels: int = 0


@dataclass(frozen=True)
class Reliability:
    """A reliability curve: one value per confidence bin, ``None`` for an empty bin."""

    error: Figure
    """Expected calibration error."""
    confidence: Figures
    accuracy: Figures
    count: Figures


@dataclass(frozen=True)
class Quality:
    """The scores of one net."""

    miou: Figure
    interval: Interval | None
    miou_all: Figure
    pixel_accuracy: Figure
    mean_accuracy: Figure
    iou: Figures
    """(K,) by class, as are ``accuracy``, ``precision`` and ``boundary_iou``."""
    accuracy: Figures
    precision: Figures
    absent: int = 0
    """Classes that occur neither in the truth nor in the prediction."""
    boundary_miou: Figure = None
    boundary_iou: Figures = ()
    reliability: Reliability | None = None


@dataclass(frozen=True)
class InferenceCost:
    """The cost of one image."""

    parameters: int
    multiply_adds: Figure = None
    milliseconds: Figure = None


@dataclass(frozen=True)
class ScoredNet:
    """One scored net; ``label``: its name in the recipe."""

    label: str
    quality: Quality
    architecture: str = ""
    key: str = ""
    """The identity of its weights."""
    cost: InferenceCost | None = None
    stage: str = ""
    """The train stage that made it; see :class:`Training`."""


@dataclass(frozen=True)
class Training:
    """The course of one train stage."""

    stage: str
    method: str
    steps: int = 0
    terms: Mapping[str, Points] = field(default_factory=dict)
    rates: Mapping[str, Points] = field(default_factory=dict)
    """Learning rate of each optimizer, relative to its full rate."""
    base_rate: Figure = None
    """The full learning rate of the optimizer ``main``; others may have another."""
    validation: Mapping[str, Points] = field(default_factory=dict)
    """mIoU of each net on the validation data."""
    choice: Mapping[str, Points] = field(default_factory=dict)
    """Label-free figures, for choosing weights without masks."""
    kept: str = ""
    """The weights kept: ``best``, ``last``, or another value of the recipe's `keep`."""
    best_step: int | None = None
    validated_on: str = ""
    chosen_on_scored_data: bool = False
    """Whether the weights were chosen on the data that the report scores: the scores are then biased upwards."""
    leak: bool = False
    """Whether its weights, or those it depends on, were chosen with labels treated as missing."""
    seconds: Figure = None
    data_wait: Figure = None
    peak_memory_mib: Figure = None


@dataclass(frozen=True)
class Identity:
    """Identity of the scores: only scores with equal identities are comparable."""

    protocol: str
    protocol_key: str
    data: str
    fingerprint: str
    images: int
    evaluation_key: str = ""


@dataclass(frozen=True, eq=False)
class GalleryImage:
    """One image, its truth and the nets' predictions, all (H, W) at one small size; 255 in the truth is ignored."""

    name: str
    image: NDArray[np.uint8]
    """(H, W, 3) RGB."""
    truth: NDArray[np.uint8]
    predictions: Mapping[str, NDArray[np.uint8]]
    """Net's label → (H, W) class ids."""
    scores: Mapping[str, Figure] = field(default_factory=dict)
    """Net's label → mIoU over the classes of this image, at full size."""


@dataclass(frozen=True)
class Gallery:
    """Pictures under one title, by their index in :attr:`ReportContent.pictures`."""

    title: str
    text: str
    pictures: tuple[int, ...]


@dataclass(frozen=True)
class GroupedQuality:
    """One net's scores in other classes."""

    miou: Figure = None
    interval: Interval | None = None
    iou: Figures = ()
    """By class of the :class:`Grouping`."""


@dataclass(frozen=True)
class Grouping:
    """Another grouping of classes for the same predictions: a subset, or several merged into one."""

    name: str
    """The subset's name, or the names of the merged groups."""
    classes: tuple[str, ...]
    """The classes of the mean."""
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Merged class → its members; empty for a subset."""
    nets: Mapping[str, GroupedQuality] = field(default_factory=dict)
    """Net's label → its scores."""
    comparison: Gain | None = None


class Section(Protocol):
    """A section of the page, drawn by another package."""

    @property
    def title(self) -> str:
        """Its heading."""

    @property
    def anchor(self) -> str:
        """Its id on the page."""

    @property
    def warnings(self) -> Sequence[str]:
        """Sentences to repeat below the verdict."""

    def html(self, content: ReportContent, budget: int) -> tuple[str, int]:
        """The section as HTML, with pictures of at most ``budget`` characters, and the number used."""


@dataclass(frozen=True, eq=False)
class ReportContent:
    """Everything on the page."""

    title: str
    classes: tuple[ClassInfo, ...]
    nets: tuple[ScoredNet, ...]
    student: str
    """Label of the reported net."""
    identity: Identity
    baseline: str | None = None
    teacher: str | None = None
    comparison: Gain | None = None
    groupings: tuple[Grouping, ...] = ()
    """Means over some of the classes, and scores with merged classes."""
    confusion: NDArray[np.int64] | None = None
    """(K, K) of the student: rows are the truth, columns the prediction."""
    trainings: tuple[Training, ...] = ()
    sections: tuple[Section, ...] = ()
    """Further sections, each drawn by the package that fills it."""
    pictures: tuple[GalleryImage, ...] = ()
    galleries: tuple[Gallery, ...] = ()
    cost_setting: str = ""
    """Setting and machine of the cost measurement, in one sentence."""
    environment: tuple[tuple[str, str], ...] = ()
    recipe: str = ""
    """The resolved recipe (YAML)."""

    def net(self, label: str | None) -> ScoredNet | None:
        """The net with ``label``, or ``None``."""
        return next((net for net in self.nets if net.label == label), None)

    def training(self, stage: str) -> Training | None:
        """The course of train stage ``stage``, or ``None``."""
        return next((training for training in self.trainings if training.stage == stage), None)
