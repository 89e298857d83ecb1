"""Reads the report's section on pseudo labels off the records of audits.

The worst images are drawn with current predictions of the exported nets, or with the maps that were written.
"""

# Legend: H W pixels, K classes.

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tutelage.audit.content import Audit, Estimate, LabelGallery, LabelPicture, Labels, Scaling
from tutelage.audit.images import AuditedImages, Truth
from tutelage.audit.label_audit import read_map
from tutelage.audit.metrics import changed
from tutelage.audit.records import percent, warning_text
from tutelage.audit.settings import AuditSettings, StopRule
from tutelage.data.dataset import Dataset
from tutelage.data.labels import IGNORE
from tutelage.data.pseudo_labels import PseudoLabelFolder
from tutelage.data.subsample import evenly
from tutelage.evaluation.inference import predict_labels
from tutelage.evaluation.intervals import Interval
from tutelage.evaluation.levels import level_of
from tutelage.evaluation.protocol import Protocol
from tutelage.nets.segmentor import Segmentor
from tutelage.report.content import Points, Reliability
from tutelage.report.pictures import shrunk

_COMPARED = 64
"""So many images at most are compared between two rounds."""
_MOST_PICTURES = 4

Record = Mapping[str, Any]


@dataclass(frozen=True)
class AuditedNet:
    """The first net of an audited training, to draw its worst predictions."""

    net: Segmentor
    images: AuditedImages
    truth: Truth
    protocol: Protocol
    device: torch.device


def training_audit(
    title: str,
    records: Sequence[Record],
    facts: Record,
    audit: AuditSettings,
    steps: int,
    classes: Sequence[str],
    shown: Callable[[], AuditedNet],
    pictures: int,
) -> Audit:
    """The audit of one training.

    ``facts``: of its artefact; ``shown`` gives the first net; ``pictures``: how many images a gallery has.
    """
    kept_last = facts.get("kept", "last") == "last"
    kept = records[-1]["step"] if kept_last else facts["best_step"]
    record = next((one for one in records if one["step"] == kept), records[-1])
    warnings = [f"{one['net']}: {warning_text(one, classes)}" for one in record["warnings"]]
    others = [str(one["step"]) for one in records if one["warnings"] and one is not record]
    if others:
        warnings.append(f"warnings at other audits too: step {', '.join(others)}")
    count = min(pictures, _MOST_PICTURES)
    return Audit(
        title=title,
        about=_about(record, len(records), kept),
        labels=tuple(_labels(net, figures) for net, figures in record["nets"].items()),
        label_shares=tuple(record["label_shares"] or ()),
        agreement=tuple((pair, one["share"], one["iou"]) for pair, one in record["agreement"].items()),
        courses=_courses(records),
        kept_step=None if kept_last else kept,
        warnings=tuple(warnings),
        stop=_stop(records, audit, steps),
        galleries=tuple(_galleries(record, kept, shown(), count)) if count else (),
    )


def _about(record: Record, audits_made: int, kept: int) -> str:
    weights = ", that of the exported weights" if record["step"] == kept else ""
    parts = [
        f"{audits_made} audits; the tables show that of step {record['step']}{weights}. Audited: {record['images']} "
        f"images of {record['data']}, without masks. Covered: confidence of at least {record['threshold']:g}."
    ]
    if record["val"] is None:
        parts.append(f"Precision and calibration are off: {record['val_note']}.")
    else:
        left_out = f" ({record['val_note']})" if record["val_note"] else ""
        parts.append(f"Precision: {record['val_images']} labelled images of {record['val']}{left_out}.")
    return " ".join(parts)


def _labels(name: str, figures: Record, hints: Sequence[tuple[str, str]] = (), change: float | None = None) -> Labels:
    val = figures.get("val")
    seen = Labels(
        name=name,
        coverage=figures["coverage"],
        confidence=figures["confidence"],
        change=figures.get("change", change),
        shares=tuple(figures["shares"]),
        sure_shares=tuple(figures["sure_shares"]),
        hints=tuple(hints),
    )
    if val is None:
        return seen
    estimate = _estimates(val["over"])
    return Labels(
        **{
            **vars(seen),
            "precision": estimate(val["sure"]),
            "accuracy": estimate(val["every"]),
            "precisions": tuple(map(estimate, val["classes"]["sure"])),
            "precisions_all": tuple(map(estimate, val["classes"]["every"])),
            "scaling": _scaling(val["calibration"]),
        }
    )


def _estimates(over: str) -> Callable[[Record], Estimate]:
    def read(given: Record) -> Estimate:
        reason = "" if given["reliable"] else f"only {given['groups']} {over}"
        bounds = Interval(given["low"], given["high"], over, given["groups"], given["reliable"], reason)
        return Estimate(given["share"], bounds)

    return read


def _scaling(given: Record | None) -> Scaling | None:
    if given is None:
        return None
    before, after = (
        Reliability(one["error"], tuple(one["confidence"]), tuple(one["accuracy"]), tuple(one["count"]))
        for one in (given["before"], given["after"])
    )
    return Scaling(given["temperature"], before, after, given["fitted_on"], given["judged_on"])


def _courses(records: Sequence[Record]) -> dict[str, dict[str, Points]]:
    nets = list(records[-1]["nets"])

    def course(read: Callable[[Record], float | None]) -> Points:
        return tuple((one["step"], value) for one in records if (value := read(one)) is not None)

    def of_net(net: str, read: Callable[[Record], float | None]) -> Points:
        return course(lambda record: read(record["nets"][net]))

    def of_nets(read: Callable[[Record], float | None]) -> dict[str, Points]:
        return {net: of_net(net, read) for net in nets}

    def agreement(pair: str) -> Points:
        return course(lambda record: record["agreement"][pair]["share"])

    def right(figures: Record) -> float | None:
        value: float | None = figures["val"]["sure"]["share"] if "val" in figures else None
        return value

    return {
        "Coverage": of_nets(lambda figures: figures["coverage"]),
        "Change since the audit before": of_nets(lambda figures: figures["change"]),
        "Agreement": {pair: agreement(pair) for pair in records[-1]["agreement"]},
        "Precision of covered pixels": of_nets(right),
    }


def _stop(records: Sequence[Record], audit: AuditSettings, steps: int) -> str:
    """The stop rule, and whether it is met."""
    rule = audit.stop or StopRule()
    condition = f"less than {100 * rule.change:g} % of the pixels of every net change in {rule.rounds} audits in a row"
    condition += ", and precision no longer rises" if records[-1]["val"] is not None else " (precision is not known)"
    first = next((one["step"] for one in records if one["settled"]), None)
    if first is None:
        changes = [figures["change"] for figures in records[-1]["nets"].values() if figures["change"] is not None]
        last = f"; at the last audit {percent(max(changes), 2)} changed" if changes else ""
        return f"Stop rule: the labels have not settled. Settled means: {condition}{last}."
    ended = audit.stop is not None and records[-1]["step"] < steps
    what = f"training ended after step {records[-1]['step']}" if ended else f"training could stop at step {first}"
    return f"Stop rule: the labels have settled, and {what}. Settled means: {condition}."


def _galleries(record: Record, kept: int, shown: AuditedNet, count: int) -> Iterable[LabelGallery]:
    """The images with the lowest confidence of the first net, and those with the lowest precision of sure pixels."""
    first, figures = next(iter(record["nets"].items()))
    images, truth, protocol, device = shown.images, shown.truth, shown.protocol, shown.device
    net: Segmentor = shown.net.to(device)
    level = level_of(record["threshold"])
    later = "" if record["step"] == kept else f" Figures are of step {record['step']}, pictures of the weights kept."

    def picture(title: str, image: NDArray[np.uint8], note: str, of: NDArray[np.uint8] | None = None) -> LabelPicture:
        with net.inferring(protocol.precision):
            label, confidence = predict_labels(net, image, protocol, device, confidence=True)
        assert confidence is not None
        return _picture(title, image, label, confidence, level, note, of)

    yield LabelGallery(
        f"Least sure: {first}",
        f"The lowest mean confidence of {first} on {record['data']}. Hatched: not covered. Dark: not sure.{later}",
        tuple(
            picture(title, images.image(place), f"mean confidence {percent(value)}")
            for place, title, value in figures["worst"][:count]
        ),
    )
    if truth.dataset is not None and figures["val"]["worst"]:
        yield LabelGallery(
            f"Least right where sure: {first}",
            f"The lowest precision of {first} among covered pixels on {record['val']}.{later}",
            tuple(
                picture(
                    title,
                    truth.dataset.image(truth.indices[place]),
                    f"precision {percent(value)}",
                    truth.dataset.label(truth.indices[place]),
                )
                for place, title, value in figures["val"]["worst"][:count]
            ),
        )


def _picture(
    title: str,
    image: NDArray[np.uint8],
    label: NDArray[np.uint8],
    confidence: NDArray[np.uint8],
    level: int,
    note: str,
    truth: NDArray[np.uint8] | None = None,
) -> LabelPicture:
    covered = np.where(confidence >= level, label, np.uint8(IGNORE))
    maps = {"label": covered, "confidence": confidence, **({} if truth is None else {"truth": truth})}
    small, shrunk_maps = shrunk(image, maps)
    return LabelPicture(title, small, shrunk_maps["label"], shrunk_maps["confidence"], note, shrunk_maps.get("truth"))


# Rounds of labelling


@dataclass(frozen=True)
class LabelRound:
    """The labels that one `annotate` stage wrote, and their audit."""

    name: str
    net: str
    record: Record
    dataset: Dataset
    """The images, all of them."""
    names: Sequence[str]
    """Of the images that are labelled."""
    folder: PseudoLabelFolder
    level: int
    """The lowest stored level that counts as covered."""


def label_rounds(rounds: Sequence[LabelRound], classes: Sequence[str], pictures: int) -> Audit:
    """Rounds of labelling side by side."""
    columns, warnings, galleries, about = [], [], [], []
    before: LabelRound | None = None
    for one in rounds:
        record = one.record
        hints = [
            ("Net", one.net),
            ("Images", f"{record['images']} of {record['data']}"),
            ("Policy", record["policy"]),
            ("Covered means", record["covered"]),
            ("Labelled", f"{percent(record['labelled'])} of the pixels"),
        ]
        columns.append(_labels(one.name, record, hints, None if before is None else _change(before, one)))
        warnings += [f"{one.name}: {warning_text(it, classes)}" for it in record["warnings"]]
        if record["val"] is None:
            about.append(f"{one.name}: precision and calibration are off ({record['val_note']}).")
        else:
            left_out = f"; {record['val_note']}" if record["val_note"] else ""
            images = f"{record['val_images']} labelled images of {record['val_data']}"
            about.append(f"{one.name}: precision on {images}{left_out}.")
        galleries.append(_written(one, min(pictures, _MOST_PICTURES)))
        before = one
    return Audit(
        title="Labels that were written",
        about=" ".join(about),
        labels=tuple(columns),
        change_since=f"since the round before, where both label, on at most {_COMPARED} images",
        warnings=tuple(warnings),
        galleries=tuple(gallery for gallery in galleries if gallery.pictures),
    )


def _change(before: LabelRound, now: LabelRound) -> float | None:
    """Share of pixels with another label in a later round, of images that both have labelled."""
    common = [name for name in now.names if name in set(before.names)]
    chosen = evenly(len(common), _COMPARED)
    different = compared = 0
    for index in range(len(common)) if chosen is None else chosen:
        maps = [read_map(one.folder.label(common[index])) for one in (before, now)]
        if maps[0].shape == maps[1].shape:
            counted = changed(maps[0], maps[1])
            different, compared = different + counted[0], compared + counted[1]
    return different / compared if compared else None


def _written(one: LabelRound, count: int) -> LabelGallery:
    pictures = tuple(
        _picture(
            title,
            one.dataset.image(place),
            read_map(one.folder.label(title)),
            read_map(one.folder.confidence(title)),
            one.level,
            f"mean confidence {percent(value)}",
        )
        for place, title, value in one.record["worst"][:count]
    )
    text = f"The lowest mean confidence of the maps that {one.name} wrote. Hatched: not covered. Dark: not sure."
    return LabelGallery(f"Least sure: {one.name}", text, pictures)
