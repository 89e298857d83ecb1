"""The audit of pseudo labels that an `annotate` stage has written: what is in the files, and how often it is right."""

# Legend: H W pixels, K classes.

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from tutelage.annotate.policies import Policy
from tutelage.annotate.pseudo_labels import Written
from tutelage.data.dataset import Dataset
from tutelage.data.pseudo_labels import MANIFEST
from tutelage.evaluation.audit import LabelledCounts, MapCounts, collapses, level_of
from tutelage.nets.segmentor import Segmentor
from tutelage.pipeline.audit_data import Truth, held_out, label_shares
from tutelage.pipeline.audit_records import (
    collapse_record,
    judged,
    map_figures,
    percent,
    rounded,
    show,
    warning_text,
    worst,
)
from tutelage.pipeline.builder import Builder
from tutelage.pipeline.display import Display
from tutelage.recipe.schema import AnnotateStage
from tutelage.runs.atomic import write_json
from tutelage.runs.store import Artefact


def audit_labels(
    builder: Builder,
    stage: AnnotateStage,
    artefact: Artefact,
    dataset: Dataset,
    written: Written | None,
    policy: Policy,
    net: Segmentor,
    device: torch.device,
    display: Display,
) -> Path:
    """Look at the maps that an `annotate` stage has written, write down what was seen, and say what is wrong.

    All processes must call it, once all maps are there; the first has ``written``, with :func:`sure_levels`.
    """
    classes = len(builder.classes)
    manifest = json.loads((artefact.labels / MANIFEST).read_text(encoding="utf-8"))
    truth = Truth(note="audit.val is null") if stage.audit.val is None else held_out(builder, stage.audit.val, stage)
    val = None
    by_policy = stage.policy != "argmax"
    if truth.dataset is not None:
        # What the policy labels is what counts as sure; without a policy, the threshold says so.
        levels = manifest.get("levels", [0] * classes) if by_policy else sure_levels(stage, classes)
        judge = None
        if policy.surveys:
            threshold_K = np.array(manifest["thresholds"], dtype=np.float64)
            judge = partial(policy.judge, threshold_K=threshold_K)
        counter = LabelledCounts(levels, len(truth.indices), judge)
        show(net, truth, stage.protocol, device, counter)
        val = judged(counter, truth, device)
    if written is None:
        return artefact.label_audit
    counts = MapCounts(written.counts_NC)
    places = {sample.name: place for place, sample in enumerate(dataset.samples)}
    found = collapses(counts, label_shares(builder, builder.recipe.stages[stage.net.partition(".")[0]]))
    record = {
        "data": stage.data,
        "images": len(written.names),
        "policy": stage.policy,
        "covered": "labelled by the policy" if by_policy else f"of confidence {stage.audit.threshold:g} or more",
        "labelled": rounded(counts.labelled),
        **map_figures(counts),
        "worst": [
            [places[name], name, value]
            for _, name, value in worst(counts.confidences, lambda place: written.names[place])
        ],
        "val": val,
        "val_data": truth.title if truth.dataset is not None else None,
        "val_images": len(truth.indices),
        "val_note": truth.note,
        "warnings": [collapse_record(one) for one in found],
    }
    write_json(artefact.label_audit, record)
    precision = "" if val is None else f", precision {percent(val['sure']['share'])} on {truth.title}"
    display.say(f"  audit: {percent(record['coverage'])} of the pixels are {record['covered']}{precision}")
    for one in record["warnings"]:
        display.say(f"  warning: {warning_text(one, builder.classes.names)}")
    return artefact.label_audit


def sure_levels(stage: AnnotateStage, classes: int) -> list[int]:
    """From which stored confidence on a pixel of each class counts as covered: with a policy, whatever it labels."""
    return [level_of(stage.audit.threshold) if stage.policy == "argmax" else 0] * classes


def read_map(path: Path) -> NDArray[np.uint8]:
    """A map of bytes (H, W), as it was written."""
    with Image.open(path) as image:
        return np.asarray(image)
