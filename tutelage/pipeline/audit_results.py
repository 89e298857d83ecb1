"""What the report says of pseudo labels: read off the audits of the stages that led to the scored nets.

The worst images are shown with what the nets that were handed on say of them now, or with the maps that were written.
"""

# Legend: H W pixels, K classes.

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tutelage.data.labels import IGNORE
from tutelage.data.pseudo_labels import PseudoLabelFolder
from tutelage.engine.log import read_log
from tutelage.evaluation.audit import changed, level_of
from tutelage.evaluation.inference import predict_labels
from tutelage.evaluation.protocol import Protocol
from tutelage.nets.segmentor import Segmentor
from tutelage.pipeline.audit_data import seen_by, truth_of
from tutelage.pipeline.audit_records import percent, warning_text
from tutelage.pipeline.builder import Builder
from tutelage.pipeline.label_audits import read_map
from tutelage.pipeline.subsample import evenly
from tutelage.recipe.references import stages_before
from tutelage.recipe.schema import AnnotateStage, StopRule, TrainStage
from tutelage.report.content import (
    Audit,
    Estimate,
    Interval,
    LabelGallery,
    LabelPicture,
    Labels,
    Points,
    Reliability,
    Scaling,
)
from tutelage.report.pictures import shrunk

_COMPARED = 64
"""So many images at most are compared between two rounds."""
_MOST_PICTURES = 4

Record = Mapping[str, Any]


def audits(builder: Builder, scores: str, pictures: int, device: torch.device) -> tuple[Audit, ...]:
    """The audits of all stages that the nets of the evaluation ``scores`` come from, in the recipe's order.

    ``pictures``: how many images each gallery of a report has.
    """
    known = builder.recipe.stages
    needed = _needed(builder, scores)
    shown = min(pictures, _MOST_PICTURES)
    result = []
    for name in needed:
        stage = known[name]
        if isinstance(stage, TrainStage) and stage.audit is not None:
            audit = _training(builder, name, stage, shown, device)
            if audit is not None:
                result.append(audit)
    rounds = {name: stage for name in needed if isinstance(stage := known[name], AnnotateStage)}
    records = {name: record for name in rounds if (record := _label_record(builder, name)) is not None}
    if records:
        result.append(_rounds(builder, {name: rounds[name] for name in records}, records, shown))
    return tuple(result)


def _needed(builder: Builder, scores: str) -> list[str]:
    """The stages that an evaluation builds upon, directly or not."""
    found: set[str] = set()
    waiting = [scores]
    while waiting:
        for name in stages_before(builder.recipe, waiting.pop()):
            if name not in found:
                found.add(name)
                waiting.append(name)
    return [name for name in builder.recipe.stages if name in found]


# Trainings


def _training(builder: Builder, name: str, stage: TrainStage, shown: int, device: torch.device) -> Audit | None:
    artefact = builder.artefacts[name]
    records = read_log(artefact.audit_log) if artefact.audit_log.is_file() else []
    if not records:
        return None
    facts = artefact.facts()
    kept = facts["best_step"] if facts.get("kept", "last") != "last" else records[-1]["step"]
    record = next((one for one in records if one["step"] == kept), records[-1])
    classes = builder.classes.names
    warnings = [f"{one['net']}: {warning_text(one, classes)}" for one in record["warnings"]]
    others = [str(one["step"]) for one in records if one["warnings"] and one is not record]
    if others:
        warnings.append(f"warned of at other audits too: step {', '.join(others)}")
    return Audit(
        title=name,
        about=_about(record, len(records), kept),
        labels=tuple(_labels(net, figures) for net, figures in record["nets"].items()),
        label_shares=tuple(record["label_shares"] or ()),
        agreement=tuple((pair, one["share"], one["iou"]) for pair, one in record["agreement"].items()),
        courses=_courses(records),
        kept_step=kept if facts.get("kept", "last") != "last" else None,
        warnings=tuple(warnings),
        stop=_stop(records, stage),
        galleries=tuple(_galleries(builder, name, stage, record, kept, shown, device)),
    )


def _about(record: Record, audits_made: int, kept: int) -> str:
    weights = ", that of the weights handed on" if record["step"] == kept else ""
    parts = [
        f"{audits_made} audits; the tables show that of step {record['step']}{weights}. Looked at: {record['images']} "
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


def _stop(records: Sequence[Record], stage: TrainStage) -> str:
    """What the stop rule says."""
    assert stage.audit is not None
    rule = stage.audit.stop or StopRule()
    asked = f"less than {100 * rule.change:g} % of the pixels of every net change in {rule.rounds} audits in a row"
    asked += ", and precision no longer rises" if records[-1]["val"] is not None else " (precision is not known)"
    first = next((one["step"] for one in records if one["settled"]), None)
    if first is None:
        changes = [figures["change"] for figures in records[-1]["nets"].values() if figures["change"] is not None]
        last = f"; at the last audit {percent(max(changes), 2)} changed" if changes else ""
        return f"Stop rule: the labels have not settled. Settled means: {asked}{last}."
    ended = stage.audit.stop is not None and records[-1]["step"] < stage.steps
    what = f"training ended after step {records[-1]['step']}" if ended else f"training could stop at step {first}"
    return f"Stop rule: the labels have settled, and {what}. Settled means: {asked}."


def _galleries(
    builder: Builder, name: str, stage: TrainStage, record: Record, kept: int, shown: int, device: torch.device
) -> Iterable[LabelGallery]:
    """The images of which the first net is least sure, and those on which it is sure of most nonsense."""
    assert stage.audit is not None
    if not shown:
        return
    first, figures = next(iter(record["nets"].items()))
    seen, truth = seen_by(builder, stage, stage.audit), truth_of(builder, stage, stage.audit)
    protocol = stage.audit.protocol or (Protocol() if stage.evaluate is None else stage.evaluate.protocol)
    net: Segmentor = builder.trained_net(f"{name}.{first}").to(device)
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
            picture(title, seen.image(place), f"mean confidence {percent(value)}")
            for place, title, value in figures["worst"][:shown]
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
                for place, title, value in figures["val"]["worst"][:shown]
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


def _label_record(builder: Builder, name: str) -> dict[str, Any] | None:
    """The audit of an annotate stage; ``None`` for one that was made before there were audits."""
    try:
        return dict(json.loads(builder.artefacts[name].label_audit.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None


def _rounds(builder: Builder, stages: Mapping[str, AnnotateStage], records: Mapping[str, Record], shown: int) -> Audit:
    classes = builder.classes.names
    columns, warnings, galleries, about = [], [], [], []
    before = None
    for name, stage in stages.items():
        record = records[name]
        change: float | None = None if before is None else _change(builder, before, name)
        hints = [
            ("Net", stage.net),
            ("Images", f"{record['images']} of {record['data']}"),
            ("Policy", record["policy"]),
            ("Covered means", record["covered"]),
            ("Labelled", f"{percent(record['labelled'])} of the pixels"),
        ]
        columns.append(_labels(name, record, hints, change))
        warnings += [f"{name}: {warning_text(one, classes)}" for one in record["warnings"]]
        if record["val"] is None:
            about.append(f"{name}: precision and calibration are off ({record['val_note']}).")
        else:
            left_out = f"; {record['val_note']}" if record["val_note"] else ""
            about.append(
                f"{name}: precision on {record['val_images']} labelled images of {record['val_data']}{left_out}."
            )
        galleries.append(_written(builder, name, stage, record, shown))
        before = name
    return Audit(
        title="Labels that were written",
        about=" ".join(about),
        labels=tuple(columns),
        change_since=f"since the round before, where both label, on at most {_COMPARED} images",
        warnings=tuple(warnings),
        galleries=tuple(gallery for gallery in galleries if gallery.pictures),
    )


def _change(builder: Builder, before: str, now: str) -> float | None:
    """Share of pixels with another label in a later round, of images that both have labelled."""
    folders = [PseudoLabelFolder(builder.artefacts[name].labels) for name in (before, now)]
    stages = builder.recipe.stages
    names = []
    for name in (before, now):
        assert isinstance(stages[name], AnnotateStage)
        names.append([sample.name for sample in builder.dataset(name).samples])  # without those that it could not read
    common = [name for name in names[1] if name in set(names[0])]
    chosen = evenly(len(common), _COMPARED)
    different = compared = 0
    for index in range(len(common)) if chosen is None else chosen:
        maps = [read_map(folder.label(common[index])) for folder in folders]
        if maps[0].shape == maps[1].shape:
            counted = changed(maps[0], maps[1])
            different, compared = different + counted[0], compared + counted[1]
    return different / compared if compared else None


def _written(builder: Builder, name: str, stage: AnnotateStage, record: Record, shown: int) -> LabelGallery:
    dataset = builder.dataset(stage.data)
    folder = PseudoLabelFolder(builder.artefacts[name].labels)
    level = level_of(stage.audit.threshold) if stage.policy == "argmax" else 0
    pictures = tuple(
        _picture(
            title,
            dataset.image(place),
            read_map(folder.label(title)),
            read_map(folder.confidence(title)),
            level,
            f"mean confidence {percent(value)}",
        )
        for place, title, value in record["worst"][:shown]
    )
    text = f"The lowest mean confidence of the maps that {name} wrote. Hatched: not covered. Dark: not sure."
    return LabelGallery(f"Least sure: {name}", text, pictures)
