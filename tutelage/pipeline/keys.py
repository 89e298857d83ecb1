"""The content address of every stage: a hash of all that decides what it makes."""

from __future__ import annotations

from typing import Any

from tutelage.methods import find_method
from tutelage.pipeline import teacher_cache
from tutelage.pipeline.builder import Builder
from tutelage.pipeline.choosing import every, protocol_of
from tutelage.recipe.reading import method_settings
from tutelage.recipe.references import WEIGHT_SUFFIXES, listed, roles
from tutelage.recipe.schema import (
    LABEL_FREE,
    AnnotateStage,
    AuditSettings,
    EvaluateStage,
    FitStage,
    ImportStage,
    LabelAudit,
    ReportStage,
    Stage,
    TrainStage,
    TransformStage,
)
from tutelage.runs.atomic import sha256
from tutelage.runs.store import Store, content_key

# What a training stage may be told without changing what it makes.
_IDLE = {"kind", "method", "nets", "inputs", "init", "streams", "evaluate", "seed", "log_every", "checkpoint_every"}
_IDLE |= {"keep_checkpoints", "audit", "choose"}


def assign_artefacts(builder: Builder, store: Store) -> None:
    """Give every stage of the recipe its artefact, in order: a key needs the keys of the stages before."""
    for name, stage in builder.recipe.stages.items():
        artefact = store.artefact(name, content_key(stage_content(builder, stage)))
        builder.artefacts[name] = artefact
        answers = cache_content(builder, stage)
        if answers is not None:
            builder.caches[artefact.key] = store.artefact("teacher_cache", content_key(answers))


def seed_of(builder: Builder, stage: TrainStage | FitStage | TransformStage) -> int:
    """The seed of a stage: its own, or the recipe's."""
    return builder.recipe.seed if stage.seed is None else stage.seed


def stage_content(builder: Builder, stage: Stage) -> dict[str, Any]:
    """Everything that decides what a stage makes, as JSON-like values."""
    content: dict[str, Any] = {"kind": stage.kind, "classes": list(builder.classes.names)}
    if isinstance(stage, TrainStage):
        content.update(_train(builder, stage))
    elif isinstance(stage, ImportStage):
        content["net"] = _source_key(builder, stage.file)
    elif isinstance(stage, AnnotateStage):
        content.update(
            net=net_key(builder, stage.net),
            data=builder.data_key(stage.data),
            protocol=stage.protocol.key(),
            policy=stage.policy,
            **_policy(builder, stage),
        )
        if stage.audit != LabelAudit():
            val = stage.audit.val
            content["audit"] = {
                "val": None if val is None else builder.data_key(val),
                "threshold": stage.audit.threshold,
            }
    elif isinstance(stage, FitStage):
        content.update(_fit(builder, stage))
    elif isinstance(stage, TransformStage):
        content.update(
            data=builder.data_key(stage.data),
            target=builder.data_key(stage.target),
            style=stage.style.model_dump(mode="json"),
            seed=seed_of(builder, stage),
        )
    elif isinstance(stage, EvaluateStage):
        content.update(
            nets={label: net_key(builder, reference) for label, reference in stage.named().items()},
            data=builder.data_key(stage.data),
            protocol=stage.protocol.key(),
            boundary=stage.boundary,
            calibration=stage.calibration,
        )
        # Left out where there are none, so that keys of stages without them stay equal.
        if stage.subsets:
            content["subsets"] = stage.subsets
        if stage.merged:
            content["merged"] = {"groups": stage.merged, "counts": "by image"}
    elif isinstance(stage, ReportStage):
        content.update(stage.model_dump(mode="json"), scores=builder.artefacts[stage.scores].key)
    return content


def cache_content(builder: Builder, stage: Stage) -> dict[str, Any] | None:
    """Everything that decides what a stage's teacher says of its images; ``None``: the stage keeps no such answers."""
    if not isinstance(stage, TrainStage) or teacher_cache.chosen(stage) is None:
        return None
    role, stream = teacher_cache.cached_teacher(stage)
    data = [builder.data_key(reference) for reference in listed(stage.streams[stream].data)]
    return teacher_cache.content(stage, net_key(builder, stage.inputs[role]), data, list(builder.classes.names))


def _train(builder: Builder, stage: TrainStage) -> dict[str, Any]:
    method = find_method(stage.method.name)
    course = {name: value for name, value in stage.model_dump(mode="json").items() if name not in _IDLE}
    streams = {}
    for name, settings in stage.streams.items():
        streams[name] = settings.model_dump(mode="json", exclude={"data"})
        if settings.sampler is None:
            del streams[name]["sampler"]  # as when there were none
        if settings.weights is None:
            del streams[name]["weights"]  # as when there were none
        else:
            streams[name]["weights"] = builder.artefacts[settings.weights].key
        streams[name]["data"] = [builder.data_key(reference) for reference in listed(settings.data)]
    evaluation = None
    if stage.evaluate is not None:
        evaluation = stage.evaluate.model_dump(mode="json", exclude={"data", "protocol"})
        evaluation["data"] = builder.data_key(stage.evaluate.data)
        evaluation["protocol"] = stage.evaluate.protocol.key()
    content = {
        "method": {
            "name": stage.method.name,
            "version": method.version,
            "settings": _method(stage),
        },
        "nets": {role: _net_settings(builder, name) for role, name in roles(builder.recipe, stage).items()},
        "inputs": {role: _input_key(builder, reference) for role, reference in stage.inputs.items()},
        "init": {target: _source_key(builder, source) for target, source in stage.init.items()},
        "streams": streams,
        "evaluate": evaluation,
        "seed": seed_of(builder, stage),
        "course": course,
    }
    if stage.keep in LABEL_FREE:
        content["choose"] = {
            "data": [builder.data_key(reference) for reference in listed(stage.choose.data or [])],
            "images": stage.choose.images,
            "every": every(stage),
            "protocol": protocol_of(stage).key(),
        }
    if stage.audit is not None:  # its records are a part of what the stage makes
        content["audit"] = _audit(builder, stage, stage.audit)
    return content


def _audit(builder: Builder, stage: TrainStage, audit: AuditSettings) -> dict[str, Any]:
    val = stage.evaluate.data if audit.val == "evaluate" and stage.evaluate is not None else audit.val
    return {
        **audit.model_dump(mode="json", include={"images", "threshold", "every", "stop"}),
        "data": [builder.data_key(reference) for reference in listed(audit.data or [])],
        "val": None if val in ("evaluate", None) else builder.data_key(val),
        "protocol": None if audit.protocol is None else audit.protocol.key(),
    }


def _method(stage: TrainStage) -> dict[str, Any]:
    """The settings of a stage's method; a cache that is not used does not show, as when there was none."""
    settings = method_settings(stage).model_dump(mode="json")
    return {key: value for key, value in settings.items() if key != "cache" or value is not None}


def _net_settings(builder: Builder, name: str) -> dict[str, Any]:
    settings = builder.recipe.nets[name]
    content = settings.model_dump(mode="json")
    content["name"] = name  # the first random weights are drawn by it
    if settings.weights is not None and settings.weights.endswith(WEIGHT_SUFFIXES):
        content["weights"] = _source_key(builder, settings.weights)
    return content


def _policy(builder: Builder, stage: AnnotateStage) -> dict[str, Any]:
    rule = stage.rule()
    if len(rule) < 2:  # as when policies had one setting, `level`, or none
        return {"level": next(iter(rule.values()), None)}
    if stage.mixtures is not None:
        rule["mixtures"] = builder.artefacts[stage.mixtures].key
    return {"rule": rule}


def _fit(builder: Builder, stage: FitStage) -> dict[str, Any]:
    return {
        "what": stage.what.model_dump(mode="json"),
        "net": None if stage.net is None else net_key(builder, stage.net),
        "encoder": None if stage.encoder is None else _net_settings(builder, stage.encoder),
        "data": builder.data_key(stage.data),
        "target": None if stage.target is None else builder.data_key(stage.target),
        "entropies": None if stage.entropies is None else builder.artefacts[stage.entropies].key,
        "protocol": stage.protocol.key(),
        "seed": seed_of(builder, stage),
    }


def _input_key(builder: Builder, reference: str) -> str:
    """What identifies what a training is handed: a net, or a fit."""
    if isinstance(builder.recipe.stages.get(reference), FitStage):
        return f"fit:{builder.artefacts[reference].key}"
    return net_key(builder, reference)


def net_key(builder: Builder, reference: str) -> str:
    """What identifies one net of a stage: the stage's key and the net's name."""
    stage, _, net = reference.partition(".")
    return f"{builder.artefacts[stage].key}.{net or 'student'}"


def _source_key(builder: Builder, source: str) -> str:
    if not source.endswith(WEIGHT_SUFFIXES):
        return net_key(builder, source)
    path = builder.base / source
    return sha256(path) if path.is_file() else f"missing:{source}"
