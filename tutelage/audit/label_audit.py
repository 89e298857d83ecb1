"""The audit of pseudo labels that an `annotate` stage has written: what the files hold, and how often it is right."""

# Legend: H W pixels, K classes, N images, C counts of an image.

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from tutelage.audit.images import Truth
from tutelage.audit.metrics import LabelledCounts, MapCounts, collapses
from tutelage.audit.records import (
    collapse_record,
    judged,
    map_figures,
    percent,
    rounded,
    show,
    warning_text,
    worst,
)
from tutelage.evaluation.levels import level_of
from tutelage.evaluation.protocol import Protocol
from tutelage.nets.segmentor import Segmentor


@dataclass(frozen=True)
class WrittenLabels:
    """The maps that an `annotate` stage has written."""

    data: str
    names: Sequence[str]
    """Of the labelled images."""
    places: Sequence[int]
    """Number of each in its data set."""
    counts_NC: NDArray[np.int64]
    """As :func:`~tutelage.audit.metrics.count_maps`, from the levels that count as covered."""


@dataclass(frozen=True)
class Covering:
    """Which pixels count as covered: those that the policy labels, or without a policy those above a threshold."""

    policy: str
    threshold: float

    @property
    def by_policy(self) -> bool:
        """Whether the policy decides."""
        return self.policy != "argmax"

    def levels(self, classes: int) -> list[int]:
        """(K,) the lowest of the 256 stored levels that count as covered."""
        return [0 if self.by_policy else level_of(self.threshold)] * classes

    def __str__(self) -> str:
        return "labelled by the policy" if self.by_policy else f"of confidence {self.threshold:g} or more"


def judge_labels(
    net: Segmentor,
    truth: Truth,
    protocol: Protocol,
    device: torch.device,
    levels_K: Sequence[int],
    judge: Callable[[Tensor], Any] | None,
) -> dict[str, Any] | None:
    """How often a net is right on labelled images; ``None`` without any. All processes must call it.

    ``levels_K``: the lowest stored level of each class that counts as sure; ``judge``: decides in place of levels.
    """
    if truth.dataset is None:
        return None
    counter = LabelledCounts(levels_K, len(truth.indices), judge)
    show(net, truth, protocol, device, counter)
    return judged(counter, truth, device)


def label_record(
    written: WrittenLabels,
    covering: Covering,
    truth: Truth,
    val: dict[str, Any] | None,
    label_shares_K: NDArray[np.float64] | None,
) -> dict[str, Any]:
    """The record of written labels."""
    counts = MapCounts(written.counts_NC)
    found = collapses(counts, label_shares_K)
    return {
        "data": written.data,
        "images": len(written.names),
        "policy": covering.policy,
        "covered": str(covering),
        "labelled": rounded(counts.labelled),
        **map_figures(counts),
        "worst": [
            [written.places[place], name, value]
            for place, name, value in worst(counts.confidences, lambda place: written.names[place])
        ],
        "val": val,
        "val_data": truth.title if truth.dataset is not None else None,
        "val_images": len(truth.indices),
        "val_note": truth.note,
        "warnings": [collapse_record(one) for one in found],
    }


def label_lines(record: dict[str, Any], classes: Sequence[str]) -> list[str]:
    """A record of written labels in a few lines."""
    val = record["val"]
    precision = "" if val is None else f", precision {percent(val['sure']['share'])} on {record['val_data']}"
    warnings = [f"warning: {warning_text(one, classes)}" for one in record["warnings"]]
    return [f"audit: {percent(record['coverage'])} of the pixels are {record['covered']}{precision}", *warnings]


def read_map(path: Path) -> NDArray[np.uint8]:
    """A map of bytes (H, W), as it was written."""
    with Image.open(path) as image:
        return np.asarray(image)
