"""Making one artefact: what each kind of stage does once its inputs are there."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from tutelage.annotate.pseudo_labels import annotate
from tutelage.data.stream import Stream
from tutelage.engine import collectives
from tutelage.engine.contract import Method
from tutelage.engine.log import TrainingLog, read_log
from tutelage.engine.loop import Callbacks, Progress, fit
from tutelage.engine.meter import peak_memory
from tutelage.errors import RunError, TutelageError
from tutelage.evaluation.audit import LabelledCounts
from tutelage.evaluation.evaluate import evaluate, summary, write_evaluation
from tutelage.methods.distillation.cache import Replaying
from tutelage.nets.segmentor import Segmentor
from tutelage.nets.storage import check_classes, load_segmentor, save_segmentor
from tutelage.pipeline import teacher_cache
from tutelage.pipeline.auditing import Auditor
from tutelage.pipeline.builder import Builder
from tutelage.pipeline.choosing import Chooser
from tutelage.pipeline.display import Display
from tutelage.pipeline.fitting import fit_stage, transform_stage
from tutelage.pipeline.keys import cache_content, net_key, seed_of
from tutelage.pipeline.label_audits import audit_labels, sure_levels
from tutelage.pipeline.labelling import policy_of
from tutelage.pipeline.reporting import report_content
from tutelage.pipeline.subsample import evenly
from tutelage.pipeline.teachers import check_teachers
from tutelage.recipe.choice import chosen_on_target, evaluates_on_target
from tutelage.recipe.schema import (
    LABEL_FREE,
    AnnotateStage,
    EvaluateStage,
    FitStage,
    ImportStage,
    ReportStage,
    TrainStage,
    TransformStage,
)
from tutelage.report.page import render
from tutelage.report.words import percent
from tutelage.runs.atomic import write_bytes, write_json, write_text
from tutelage.runs.store import Artefact


def make(builder: Builder, name: str, device: torch.device, display: Display) -> None:
    """Make the artefact of stage ``name``; its inputs are finished, and this process holds its lock."""
    stage, artefact = builder.recipe.stages[name], builder.artefacts[name]
    started = time.monotonic()
    if isinstance(stage, TrainStage):
        train(builder, stage, artefact, device, display)
    elif isinstance(stage, ImportStage):
        _import(builder, stage, artefact)
    elif isinstance(stage, AnnotateStage):
        _annotate(builder, stage, artefact, device, display)
    elif isinstance(stage, FitStage):
        fit_stage(builder, stage, artefact, seed_of(builder, stage), device, display)
    elif isinstance(stage, TransformStage):
        transform_stage(builder, stage, artefact, seed_of(builder, stage), device, display)
    elif isinstance(stage, EvaluateStage):
        _evaluate(builder, stage, artefact, device, display)
    elif isinstance(stage, ReportStage):
        _report(builder, stage, artefact, device, display)
    if collectives.rank() == 0:
        _note_times(artefact, time.monotonic() - started, device)
    collectives.barrier()


def train(builder: Builder, stage: TrainStage, artefact: Artefact, device: torch.device, display: Display) -> None:
    """Train a stage's nets, from where an earlier run was interrupted, and write the chosen weights."""
    seed = seed_of(builder, stage)
    nets, streams = builder.nets(stage, seed), builder.streams(stage, seed)
    method = builder.method(stage, nets, streams)
    for title, text in method.extra_report().items():
        display.say(f"{title}: {text}")
    trackers = builder.recipe.run.trackers if collectives.rank() == 0 else ()
    config = {"method": stage.method.name, "seed": seed, "steps": stage.steps, "key": artefact.key}
    path = artefact.log if collectives.rank() == 0 else None
    log = TrainingLog(path, display.training, trackers, artefact.folder.name, config)
    checkpoints = artefact.checkpoints(stage.keep_checkpoints, display.say)
    auditor = None
    if stage.audit is not None:
        auditor = Auditor(
            builder, stage, stage.audit, method, artefact, device, display, checkpoint_steps=checkpoints.steps
        )

    def begin(step: int) -> None:
        log.begin(step)
        if auditor is not None:
            auditor.begin(step)

    def look(step: int) -> float:
        watching = {} if auditor is None else auditor.watch(step)
        scores = _score_nets(builder, method, stage, device, watching)
        log.record({"step": step, "evaluation": scores})
        return float(next(iter(scores.values()))["miou"])

    def keep_best(step: int) -> None:
        if collectives.rank() == 0:
            _save_nets(builder, method, artefact.best_net)

    rhythm = 0 if stage.evaluate is None else stage.evaluate.every or max(stage.steps // 5, 1)
    chooser = Chooser(builder, stage, method, device, log.record) if stage.keep in LABEL_FREE else None
    # Scores that must not choose are looked at, and that is all.
    silent = chooser is not None or (stage.keep == "last" and evaluates_on_target(builder.recipe, stage))
    seen = None if stage.evaluate is None else look
    callbacks = Callbacks(
        on_evaluate=chooser or (None if silent else seen),
        evaluate_every=rhythm if chooser is None else chooser.every,
        on_monitor=seen if silent else None,
        monitor_every=rhythm,
        on_best=keep_best,
        on_audit=None if auditor is None else auditor.audit,
        audit_every=0 if auditor is None else auditor.every,
        on_begin=begin,
        log_line=log.record,
        message=display.say,
    )
    if collectives.rank() == 0:
        for damaged in _damaged(artefact.best_net(name) for name in method.exported()):
            display.say(f"the best weights so far are damaged ({damaged}); the stage starts from its beginning")
            artefact.clear_checkpoints()
    collectives.barrier()
    if not checkpoints.steps():
        check_teachers(builder, stage, method, device, display)
    if artefact.key in builder.caches:
        _replay_teacher(builder, stage, artefact, method, nets, streams, device, display)
    with log:
        progress = fit(method, streams, stage, seed=seed, device=device, checkpoints=checkpoints, callbacks=callbacks)
    if collectives.rank() == 0:
        _finish_training(builder, stage, artefact, method, progress)


def _replay_teacher(
    builder: Builder,
    stage: TrainStage,
    artefact: Artefact,
    method: Method,
    nets: Mapping[str, Segmentor],
    streams: Mapping[str, Stream],
    device: torch.device,
    display: Display,
) -> None:
    """Give the method what its teacher said of every image, asked now where nobody did."""
    role, stream = teacher_cache.cached_teacher(stage)
    asker, content = teacher_cache.Asker(stage, nets[role], device), cache_content(builder, stage)
    assert content is not None
    cast(Replaying, method).cache = teacher_cache.ready(
        builder.caches[artefact.key], content, asker, streams[stream], display
    )


def _score_nets(
    builder: Builder,
    method: Method,
    stage: TrainStage,
    device: torch.device,
    watching: Mapping[str, LabelledCounts],
) -> dict[str, dict[str, Any]]:
    """mIoU and IoU by class of every net that the method exports, the first of which is compared.

    Who is ``watching`` a net is shown what it says.
    """
    assert stage.evaluate is not None
    dataset = builder.dataset(stage.evaluate.data)
    protocol = stage.evaluate.protocol
    indices = evenly(len(dataset), stage.evaluate.images)
    result = {}
    for name, net in method.exported().items():
        assert isinstance(net, Segmentor)
        with net.inferring(protocol.precision):
            observe: Callable[[Tensor, Tensor], None] = watching.get(name, _nobody)
            outcome = evaluate(net, dataset, protocol, device=device, indices=indices, observe=observe)
        scores = outcome.confusion.scores()
        iou = [None if value != value else round(float(value), 5) for value in scores.iou]
        result[name] = {"miou": scores.miou, "pixel_accuracy": scores.pixel_accuracy, "iou": iou}
    return result


def _nobody(logits: Tensor, label: Tensor) -> None:
    """Watches no evaluation."""


def _save_nets(builder: Builder, method: Method, place: Callable[[str], Path]) -> None:
    for name, net in method.exported().items():
        assert isinstance(net, Segmentor)
        save_segmentor(net, place(name), classes=builder.classes.names, palette=builder.classes.palette)


def _damaged(nets: Iterable[Path]) -> Iterator[str]:
    for path in nets:
        if path.is_file():
            try:
                load_segmentor(path)
            except TutelageError as error:
                yield error.message


def _finish_training(
    builder: Builder, stage: TrainStage, artefact: Artefact, method: Method, progress: Progress
) -> None:
    """Write the chosen weights, declare the artefact finished, let go of its checkpoints."""
    names = list(method.exported())
    best = stage.keep != "last" and progress.best_score is not None
    if best:
        for name in names:
            try:
                write_bytes(artefact.net(name), artefact.best_net(name).read_bytes())
            except FileNotFoundError as error:
                artefact.clear_checkpoints()
                raise RunError(
                    f"the best weights so far are gone: {error.filename}",
                    "run the same command again; the stage starts from its beginning",
                ) from None
    else:
        _save_nets(builder, method, artefact.net)
    facts = {
        "nets": names,
        "steps": progress.step,
        "kept": stage.keep if best else "last",
        "score": progress.best_score,
        "best_step": progress.best_step,
    }
    if chosen_on_target(builder.recipe, stage):
        facts["leak"] = True
    audits = [artefact.audit_log] if stage.audit is not None and artefact.audit_log.is_file() else []
    artefact.finish("train", [*(artefact.net(name) for name in names), *audits], facts)
    artefact.clear_checkpoints()


def _import(builder: Builder, stage: ImportStage, artefact: Artefact) -> None:
    """Keep a copy, so that the artefact does not change with the file."""
    path = builder.base / stage.file
    _, metadata = load_segmentor(path)
    check_classes(metadata, builder.classes.names, "this recipe's task")
    if collectives.rank() == 0:
        write_bytes(artefact.net("student"), path.read_bytes())
        artefact.finish("import", [artefact.net("student")], {"nets": ["student"]})


def _annotate(
    builder: Builder, stage: AnnotateStage, artefact: Artefact, device: torch.device, display: Display
) -> None:
    dataset = builder.dataset(stage.data).without_labels()
    net = _ready(builder.trained_net(stage.net), device)
    producer = net_key(builder, stage.net)
    policy = policy_of(builder, stage, device)
    with display.bar("annotate", len(dataset)) as progress, net.inferring(stage.protocol.precision):
        written = annotate(
            net,
            dataset,
            artefact.labels,
            policy=policy,
            device=device,
            protocol=stage.protocol,
            producer=producer,
            on_unreadable=builder.recipe.run.on_unreadable,
            sure_levels=sure_levels(stage, len(builder.classes)),
            progress=progress,
            say=display.say,
        )
    collectives.barrier()  # the manifest is there for all
    audit = audit_labels(builder, stage, artefact, dataset, written, policy, net, device, display)
    if written is not None:
        facts = {"images": len(written.names), "producer": producer}
        artefact.finish("annotate", {**written.files, audit: ""}, facts)


def _evaluate(
    builder: Builder, stage: EvaluateStage, artefact: Artefact, device: torch.device, display: Display
) -> None:
    dataset = builder.dataset(stage.data)
    files: list[Path] = []
    facts: dict[str, Any] = {}
    for label, reference in stage.named().items():
        net = _ready(builder.trained_net(reference), device)
        with display.bar(f"evaluate {label}", len(dataset)) as progress, net.inferring(stage.protocol.precision):
            outcome = evaluate(
                net,
                dataset,
                stage.protocol,
                device=device,
                boundary=stage.boundary,
                calibration=stage.calibration,
                merged_as=stage.merged,
                progress=progress,
            )
        figures = summary(outcome, dataset, stage.protocol, subsets=stage.subsets, merged_as=stage.merged)
        content = {**figures, "net": net_key(builder, reference)}
        if collectives.rank() == 0:
            write_evaluation(artefact.score(label), artefact.counts(label), content, outcome)
        files += [artefact.score(label), artefact.counts(label)]
        facts[label] = content["miou"]
        interval = content["miou_interval"]
        display.say(
            f"  {label}: mIoU {100 * content['miou']:.2f} [{100 * interval['low']:.2f}, {100 * interval['high']:.2f}] "
            f"on {stage.data} ({len(dataset)} images)"
            + ("" if interval["reliable"] else f"; the interval is not reliable: {interval['reason']}")
        )
        for name, means in content.get("subsets", {}).items():
            display.say(f"    {name}: mIoU {percent(means['miou'], 2)} over {len(means['classes'])} classes")
        if "merged" in content:
            groups = ", ".join(content["merged"]["groups"])
            display.say(f"    with {groups} as one class each: mIoU {percent(content['merged']['miou'], 2)}")
    if collectives.rank() == 0:
        artefact.finish("evaluate", files, {"miou": facts, "protocol": stage.protocol.key()})


def _report(builder: Builder, stage: ReportStage, artefact: Artefact, device: torch.device, display: Display) -> None:
    if collectives.rank() == 0:
        write_text(artefact.report, render(report_content(builder, stage, device)))
        artefact.finish("report", [artefact.report], {})
        display.say(f"  report: {artefact.report}")


def _ready(net: Segmentor, device: torch.device) -> Segmentor:
    moved: Segmentor = net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return moved


def _note_times(artefact: Artefact, seconds: float, device: torch.device) -> None:
    """Write how long it took. Times are no content: they stand outside the files whose checksums are kept."""
    times = {"seconds": round(seconds, 2), "peak_memory_mib": round(peak_memory(device), 1)}
    if artefact.log.is_file():
        records = [record for record in read_log(artefact.log) if "spent_s" in record]
        spent = sum(record["spent_s"] for record in records)
        waited = sum(record["data_wait"] * record["spent_s"] for record in records)
        times["training_seconds"] = round(spent, 2)
        times["data_wait"] = round(waited / spent, 4) if spent else 0.0
    write_json(artefact.times, times)
