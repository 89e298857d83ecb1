"""What a pseudo-label audit writes down: figures of :mod:`tutelage.audit.metrics` as JSON-able records.

Shares are in 0..1, rounded to six digits; what does not exist is null.
"""

# Legend: N images, K classes, P pixels for calibration.

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tutelage.audit.images import Truth
from tutelage.audit.metrics import Collapse, Labelled, LabelledCounts, MapCounts, calibration_change, precision_of
from tutelage.engine import collectives
from tutelage.evaluation.evaluate import evaluate
from tutelage.evaluation.intervals import Interval
from tutelage.evaluation.protocol import Protocol
from tutelage.nets.segmentor import Segmentor

WORST = 10
"""How many of the worst images a record names."""

_DIGITS = 6


def map_figures(counts: MapCounts) -> dict[str, Any]:
    """The figures of maps without ground truth."""
    return {
        "coverage": rounded(counts.coverage),
        "confidence": rounded(counts.confidence),
        "shares": listed_shares(counts.shares),
        "sure_shares": listed_shares(counts.sure_shares),
    }


def judged(counter: LabelledCounts, truth: Truth, device: torch.device) -> dict[str, Any]:
    """The figures of a net on labelled images; all processes must call it."""
    counts, logits, label, image = counter.rows()
    rank, world = collectives.rank(), collectives.world()
    places = rank + world * torch.arange(len(counts))
    pixel_places = rank + world * image
    labelled = Labelled(
        in_order(counts, places, device).cpu().numpy(),
        in_order(logits, pixel_places, device).cpu(),
        in_order(label, pixel_places, device).cpu(),
        in_order(pixel_places, pixel_places, device).cpu(),
    )
    precision = precision_of(labelled.counts_NK4, truth.blocks)
    calibration = calibration_change(labelled, truth.blocks)
    return {
        "sure": _interval(precision.sure),
        "every": _interval(precision.every),
        "coverage": rounded(precision.coverage),
        "over": "images" if truth.blocks is None else "groups",
        "classes": {
            "sure": [_interval(one) for one in precision.sure_K],
            "every": [_interval(one) for one in precision.every_K],
        },
        "calibration": None
        if calibration is None
        else {
            "temperature": rounded(calibration.temperature),
            "fitted_on": calibration.images[0],
            "judged_on": calibration.images[1],
            **{
                when: {
                    "error": rounded(scores.error),
                    "negative_log_likelihood": rounded(scores.negative_log_likelihood),
                    "confidence": listed_shares(scores.confidence),
                    "accuracy": listed_shares(scores.accuracy),
                    "count": listed_shares(scores.count),
                }
                for when, scores in (("before", calibration.before), ("after", calibration.after))
            },
        },
        "worst": worst(precision.sure_N, truth.name),
    }


def worst(values_N: NDArray[np.float64], name: Callable[[int], str]) -> list[list[Any]]:
    """Number, name and value of the images with the lowest values."""
    order = [place for place in np.argsort(values_N, kind="stable").tolist() if not np.isnan(values_N[place])]
    return [[place, name(place), rounded(values_N[place])] for place in order[:WORST]]


def collapse_record(collapse: Collapse) -> dict[str, Any]:
    """A collapse as a record holds it."""
    return {"kind": collapse.kind, "classes": list(collapse.classes)}


def lines_of(record: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """A record in a few lines."""
    lines = []
    for net, figures in record["nets"].items():
        parts = [f"coverage {percent(figures['coverage'])}", f"confidence {percent(figures['confidence'])}"]
        if figures["change"] is not None:
            parts.append(f"changed {percent(figures['change'], 2)}")
        if "val" in figures:
            parts.append(f"precision {percent(figures['val']['sure']['share'])}")
        lines.append(f"step {record['step']}: audit of {net}: {', '.join(parts)}")
    if record["agreement"]:
        agreed = ", ".join(f"{pair} {percent(it['share'])}" for pair, it in record["agreement"].items())
        lines.append(f"step {record['step']}: agreement {agreed}")
    return [*lines, *(f"warning: {one['net']}: {warning_text(one, names)}" for one in record["warnings"])]


def warning_text(warning: Mapping[str, Any], names: Sequence[str]) -> str:
    """A recorded collapse in words."""
    which = ", ".join(names[index] for index in warning["classes"])
    return {
        "fallen": f"classes collapse: {which}: less than a tenth of their share in the labels",
        "missing": f"hardly named so far: {which}: less than a tenth of their share in the labels",
        "never sure": f"classes collapse: {which}: never among the covered pixels",
        "one class": f"one class nearly everywhere: {which}",
    }[warning["kind"]]


def rounded(value: float | None) -> float | None:
    """A figure as records hold it; ``None`` where there is none, since JSON has no NaN."""
    return None if value is None or math.isnan(value) else round(float(value), _DIGITS)


def _interval(interval: Interval) -> dict[str, Any]:
    return {
        "share": rounded(interval.estimate),
        "low": rounded(interval.low),
        "high": rounded(interval.high),
        "groups": interval.groups,
        "reliable": interval.reliable,
    }


def listed_shares(values: NDArray[np.float64]) -> list[float | None]:
    """Figures by class as records hold them."""
    return [rounded(value) for value in values.tolist()]


def shares_array(values: Sequence[float | None]) -> NDArray[np.float64]:
    """What :func:`listed_shares` made, as an array."""
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def percent(share: float | None, digits: int = 1) -> str:
    """A share in words."""
    return "unknown" if share is None else f"{100 * share:.{digits}f} %"


def show(net: Segmentor, truth: Truth, protocol: Protocol, device: torch.device, observe: LabelledCounts) -> None:
    """Count a net's predictions on labelled images; all processes must call it."""
    assert truth.dataset is not None
    with net.inferring(protocol.precision):
        evaluate(net, truth.dataset, protocol, device=device, indices=truth.indices, observe=observe)


def in_order(rows: Tensor, places: Tensor, device: torch.device) -> Tensor:
    """The rows of all processes by the place that each belongs to; rows of one place keep their order."""
    gathered = collectives.gather_rows(places.to(device))
    return collectives.gather_rows(rows.to(device))[gathered.argsort(stable=True)]
