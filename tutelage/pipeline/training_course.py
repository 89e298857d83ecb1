"""The course of a training, from its log, facts and times."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tutelage.engine.log import read_log
from tutelage.recipe.stages.train import TrainStage
from tutelage.report.content import Points, Training
from tutelage.runs.store import Artefact


def training_course(name: str, stage: TrainStage, artefact: Artefact, *, on_scored_data: bool, leak: bool) -> Training:
    """The course of a train stage, as far as its files exist.

    ``on_scored_data``: whether ``evaluate`` uses the data that the report scores; ``leak``: whether its weights were
    chosen with labels treated as missing.
    """
    facts = (artefact.manifest() or {}).get("facts", {})
    times = _times(artefact.times)
    records = read_log(artefact.log) if artefact.log.is_file() else []
    kept = str(facts.get("kept", ""))
    return Training(
        stage=name,
        method=stage.method.name,
        steps=int(facts.get("steps", stage.steps)),
        terms=_curves(records, "terms"),
        rates=_curves(records, "rate"),
        base_rate=stage.optimizer.lr,
        validation=_validation(records),
        choice=_curves(records, "choice"),
        kept=kept,
        best_step=facts.get("best_step") if kept not in ("", "last") else None,
        validated_on="" if stage.evaluate is None else stage.evaluate.data,
        chosen_on_scored_data=kept in ("best", "best_on_target") and on_scored_data,
        leak=leak,
        seconds=times.get("training_seconds", times.get("seconds")),
        data_wait=times.get("data_wait"),
        peak_memory_mib=times.get("peak_memory_mib"),
    )


def _times(path: Path) -> dict[str, float]:
    """Seconds that a stage took; empty if not recorded."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def _curves(records: Iterable[Mapping[str, Any]], group: str) -> dict[str, Points]:
    curves: dict[str, list[tuple[float, float]]] = {}
    for record in records:
        for name, value in record.get(group, {}).items():
            curves.setdefault(name, []).append((record["step"], value))
    return {name: tuple(points) for name, points in curves.items()}


def _validation(records: Iterable[Mapping[str, Any]]) -> dict[str, Points]:
    scores = [
        {"step": record["step"], "miou": {name: score["miou"] for name, score in record["evaluation"].items()}}
        for record in records
        if "evaluation" in record
    ]
    return _curves(scores, "miou")
