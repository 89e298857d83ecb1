"""The content of the report's section on pseudo labels, as plain data. Shares are in 0..1; None: there is no figure."""

# Legend: K classes, H W pixels of a picture.

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tutelage.evaluation.intervals import Figure, Interval
from tutelage.report.content import Figures, Points, Reliability


@dataclass(frozen=True)
class Estimate:
    """A share with its 95 % interval."""

    share: Figure = None
    interval: Interval | None = None


@dataclass(frozen=True)
class Scaling:
    """Calibration before and after temperature scaling, on images that the temperature was not fitted on."""

    temperature: Figure
    before: Reliability
    after: Reliability
    fitted_on: int
    judged_on: int


@dataclass(frozen=True)
class Labels:
    """What was seen of one net's pseudo labels, or of one round of them."""

    name: str
    coverage: Figure = None
    confidence: Figure = None
    """Mean over all pixels."""
    change: Figure = None
    """Share of pixels with another label than at the look before."""
    shares: Figures = ()
    """(K,) of the pixels with a label."""
    sure_shares: Figures = ()
    """(K,) of the covered pixels."""
    precision: Estimate | None = None
    """Share of the covered pixels that are right, on labelled images that training does not use."""
    accuracy: Estimate | None = None
    """The same of all pixels."""
    precisions: tuple[Estimate, ...] = ()
    """(K,) of the covered pixels that are called each class."""
    precisions_all: tuple[Estimate, ...] = ()
    """(K,) of all pixels that are called each class."""
    scaling: Scaling | None = None
    hints: tuple[tuple[str, str], ...] = ()
    """What else is known of it: name and text."""


@dataclass(frozen=True, eq=False)
class LabelPicture:
    """One image with its pseudo label and confidence, all (H, W) at one small size."""

    name: str
    image: NDArray[np.uint8]
    """(H, W, 3) RGB."""
    label: NDArray[np.uint8]
    """255: not covered."""
    confidence: NDArray[np.uint8]
    """0..255."""
    note: str = ""
    truth: NDArray[np.uint8] | None = None


@dataclass(frozen=True)
class LabelGallery:
    """The worst pseudo labels in some respect."""

    title: str
    text: str
    pictures: tuple[LabelPicture, ...]


@dataclass(frozen=True)
class Audit:
    """The audit of pseudo labels while one stage trained, or of several rounds of them side by side."""

    title: str
    about: str
    """What was looked at, in sentences."""
    labels: tuple[Labels, ...]
    label_shares: Figures = ()
    """(K,) share of each class in the labels that training uses."""
    change_since: str = "since the audit before"
    agreement: tuple[tuple[str, Figure, Figure], ...] = ()
    """Pair of nets, share of equal labels, mean IoU."""
    courses: Mapping[str, Mapping[str, Points]] = field(default_factory=dict)
    """Title → net → share by step."""
    kept_step: int | None = None
    """The step whose weights were exported."""
    warnings: tuple[str, ...] = ()
    stop: str = ""
    """The stop rule, and whether it is met."""
    galleries: tuple[LabelGallery, ...] = ()
