"""The `train` stage: trains nets with a method, with checkpoints and audits, and keeps chosen weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from tutelage.audit.auditor import Auditor
from tutelage.audit.content import Audit
from tutelage.audit.images import AuditedImages, Truth, spread
from tutelage.audit.metrics import LabelledCounts
from tutelage.audit.report_content import AuditedNet, training_audit
from tutelage.audit.settings import AuditSettings
from tutelage.data.dataset import Dataset
from tutelage.data.draws import key as draw_key
from tutelage.data.settings import StreamSettings
from tutelage.data.statistics import read_statistics
from tutelage.data.stream import LoaderSettings, Stream
from tutelage.data.subsample import evenly
from tutelage.data.weights import with_weights
from tutelage.engine import collectives
from tutelage.engine.contract import Method, TaskInfo
from tutelage.engine.log import TrainingLog, read_log
from tutelage.engine.loop import Callbacks, Progress, fit
from tutelage.errors import RunError, TutelageError
from tutelage.evaluation.evaluate import evaluate
from tutelage.evaluation.protocol import Protocol
from tutelage.methods import find_method
from tutelage.methods.distillation.cache import Replaying
from tutelage.nets.segmentor import Segmentor
from tutelage.nets.settings import NetSettings
from tutelage.nets.storage import load_segmentor, save_segmentor
from tutelage.nets.weights import fill
from tutelage.pipeline import teacher_cache
from tutelage.pipeline.audited_data import held_out_images, label_shares, streamed
from tutelage.pipeline.label_free_choice import LabelFreeChoice
from tutelage.pipeline.runner import StageRunner, Workplace
from tutelage.pipeline.teacher_check import check_teachers
from tutelage.pipeline.training_cost import TrainingCost, training_cost
from tutelage.pipeline.training_course import training_course
from tutelage.recipe.base import listed
from tutelage.recipe.leaks import chosen_on_target, evaluates_on_target
from tutelage.recipe.references import original
from tutelage.recipe.stages.train import LABEL_FREE, TrainStage, starts_from_file
from tutelage.report.content import Training
from tutelage.runs.atomic import write_bytes


class TrainRunner(StageRunner[TrainStage]):
    """Trains a stage's nets, resuming after an interruption, and writes the chosen weights."""

    def key(self) -> dict[str, Any]:
        roles = self.stage.nets_by_role(self.builder.recipe)
        return {
            "method": {
                "version": find_method(self.stage.method.name).version,
                "settings": self.stage.method_settings().model_dump(mode="json"),
            },
            "nets": {role: self.builder.net_content(net) for role, net in roles.items()},
        }

    def shared_content(self) -> dict[str, dict[str, Any]]:
        """The cached outputs of the teacher, which do not depend on the student."""
        stage, builder = self.stage, self.builder
        if teacher_cache.chosen(stage) is None:
            return {}
        role, stream = teacher_cache.cached_teacher(stage)
        data = [builder.data_key(reference) for reference in listed(stage.streams[stream].data)]
        teacher = builder.net_key(stage.inputs[role])
        return {teacher_cache.KIND: teacher_cache.content(stage, teacher, data, len(builder.classes))}

    # What is trained

    def nets(self, stand_ins: bool = False) -> dict[str, Segmentor]:
        """The nets by role: new ones, initialised as in ``init``, and trained inputs.

        With ``stand_ins`` (a trial of a stage whose inputs are not made yet) untrained nets replace the inputs.
        """
        stage, builder = self.stage, self.builder
        roles = stage.nets_by_role(builder.recipe)
        result = {role: builder.new_net(name, self.seed) for role, name in roles.items()}
        for target, source in stage.init.items():
            role, _, part = target.partition(".")
            of_stage = not starts_from_file(source)
            path = builder.net_path(source, stand_ins) if of_stage else builder.base / source
            if path is None:
                continue
            tensors = builder.start_tensors(path, role, encoder_only=bool(part), of_stage=of_stage)
            report = fill(result[role], tensors, str(path))
            builder.say(f"net {role} starts from {path.name}: {report}")
        for role, reference in stage.inputs.items():
            if role not in stage.spec.fitted_inputs:
                result[role] = builder.stand_in_net(reference) if stand_ins else builder.trained_net(reference)
        return result

    def streams(self, stand_ins: bool = False, names: Sequence[str] | None = None) -> dict[str, Stream]:
        """The streams, or those in ``names``; with ``stand_ins`` without weights that are not made yet."""
        run, specs = self.builder.recipe.run, self.stage.spec.streams
        loader = LoaderSettings(run.workers, run.ahead, run.cache, run.cache_folder, run.on_unreadable)
        return {
            name: Stream(
                name=name,
                datasets=_pooled(self._datasets(settings, stand_ins)),
                seed=self.seed,
                batch=settings.batch,
                views=specs[name].shown(settings.views),
                augment=settings.augment,
                labels=specs[name].labels,
                loader=loader,
                repeat=settings.repeat or (),
                draws_of=settings.draws_of,
                sampler=settings.sampler,
            )
            for name, settings in self.stage.streams.items()
            if names is None or name in names
        }

    def _datasets(self, settings: StreamSettings, stand_ins: bool) -> list[Dataset]:
        """The data of a stream, with its weights."""
        datasets = [self.builder.dataset(reference, stand_ins) for reference in listed(settings.data)]
        if settings.weights is None:
            return datasets
        weights = self.builder.artefacts[settings.weights]
        if stand_ins and weights.manifest() is None:
            return datasets
        return [with_weights(dataset, weights.folder) for dataset in datasets]

    def method(self, nets: Mapping[str, Segmentor], streams: Mapping[str, Stream], stand_ins: bool = False) -> Method:
        """The method with its nets; with ``stand_ins`` fits that are not made yet are random."""
        stage, builder = self.stage, self.builder
        classes = builder.classes

        def pixel_counts() -> Sequence[int]:
            labeled = [dataset for stream in streams.values() if stream.labels for dataset in stream.datasets]
            totals = [read_statistics(dataset).class_pixels() for dataset in labeled]
            return [int(sum(counts[index] for counts in totals)) for index in range(len(classes))]

        roles = [role for role in stage.inputs if role in stage.spec.fitted_inputs]
        task = TaskInfo(
            len(classes),
            pixel_counts,
            size=next(iter(streams.values())).view_size,
            names=classes.names,
            fitted_inputs={role: dict(builder.fitted(stage.inputs[role], stand_ins)) for role in roles},
        )
        kind = find_method(stage.method.name)
        with torch.random.fork_rng(devices=[]):
            # The method's additional modules (critics, projections, queues) use the stage's seed, too.
            torch.default_generator.manual_seed(draw_key(self.seed, "method", stage.method.name) % (1 << 62))
            return kind(nets, stage.method_settings(), task)

    # Before the run

    def warnings(self) -> Iterator[str]:
        stage, recipe = self.stage, self.builder.recipe
        if stage.evaluate is not None and evaluates_on_target(recipe, stage):
            if stage.keep == "best_on_target":
                yield (
                    f"the weights of <stages> are chosen with target labels ({stage.evaluate.data}); every result is "
                    "marked"
                )
            else:
                yield (
                    f"<stages>: scores on {stage.evaluate.data} while training use masks treated as missing; they "
                    f"are logged only, and choose nothing (keep: {stage.keep})"
                )
        labeled, unlabeled = (
            list(dict.fromkeys(original(recipe, it) for it in streamed(stage, masks))) for masks in (True, False)
        )
        yield from self._unseen_classes(labeled)
        yield from self._overlaps(labeled, unlabeled)

    def _unseen_classes(self, labeled: Sequence[str]) -> Iterator[str]:
        # Pseudo labels are not written yet, so their classes are unknown.
        if not labeled or any(reference in self.builder.recipe.stages for reference in labeled):
            return
        counts = [read_statistics(self.builder.dataset(reference)).class_pixels() for reference in labeled]
        unseen = [name for i, name in enumerate(self.builder.classes.names) if not any(pixels[i] for pixels in counts)]
        if unseen:
            yield (
                f"{'class' if len(unseen) == 1 else 'classes'} {', '.join(unseen)} "
                f"{'does' if len(unseen) == 1 else 'do'} not occur in the labelled images of <stages>, and cannot be "
                "learnt"
            )

    def _overlaps(self, labeled: Sequence[str], unlabeled: Sequence[str]) -> Iterator[str]:
        builder = self.builder
        for bare in unlabeled:
            for taught in labeled:
                if bare in builder.recipe.stages or taught in builder.recipe.stages:
                    continue
                known = {sample.image for sample in builder.dataset(taught).samples}
                images = [sample.image for sample in builder.dataset(bare).samples]
                shared = [image for image in images if image in known]
                if shared:
                    more = f" and {len(shared) - 5} more" if len(shared) > 5 else ""
                    yield (
                        f"{len(shared)} of the {len(images)} images of {bare}, unlabelled in <stages>, are labelled in "
                        f"{taught}: {', '.join(image.name for image in shared[:5])}{more}; fine if intended, but "
                        "unlabelled images help most where they are new"
                    )

    # Work

    def make(self, work: Workplace) -> None:
        stage, artefact, display = self.stage, self.artefact, work.display
        nets, streams = self.nets(), self.streams()
        method = self.method(nets, streams)
        for title, text in method.extra_report().items():
            display.say(f"{title}: {text}")
        trackers = self.builder.recipe.run.trackers if collectives.rank() == 0 else ()
        config = {"method": stage.method.name, "seed": self.seed, "steps": stage.steps, "key": artefact.key}
        path = artefact.log if collectives.rank() == 0 else None
        log = TrainingLog(path, display.training, trackers, artefact.folder.name, config)
        checkpoints = artefact.checkpoints(stage.keep_checkpoints, display.say)
        auditor = None if stage.audit is None else self._auditor(stage.audit, method, work, checkpoints.steps)
        callbacks = self._callbacks(method, log, auditor, work)
        if collectives.rank() == 0:
            for damaged in _damaged(artefact.best_net(name) for name in method.exported()):
                display.say(f"the best weights so far are damaged ({damaged}); the stage starts from its beginning")
                artefact.clear_checkpoints()
        collectives.barrier()
        if not checkpoints.steps():
            check_teachers(self.builder, stage, method, work)
        shared = self.builder.shared.get((self.name, teacher_cache.KIND))
        if shared is not None:
            role, stream = teacher_cache.cached_teacher(stage)
            teacher = teacher_cache.Teacher(stage, nets[role], work.device)
            content = self.shared_content()[teacher_cache.KIND]
            cast(Replaying, method).cache = teacher_cache.ready(shared, content, teacher, streams[stream], display)
        with log:
            progress = fit(
                method,
                streams,
                stage,
                seed=self.seed,
                device=work.device,
                checkpoints=checkpoints,
                callbacks=callbacks,
            )
        if collectives.rank() == 0:
            self._finish(method, progress)

    def _callbacks(self, method: Method, log: TrainingLog, auditor: Auditor | None, work: Workplace) -> Callbacks:
        stage = self.stage

        def begin(step: int) -> None:
            log.begin(step)
            if auditor is not None:
                auditor.begin(step)

        def evaluate_nets(step: int) -> float:
            scores = self._scores(method, work.device, {} if auditor is None else auditor.watch(step))
            log.record({"step": step, "evaluation": scores})
            return float(next(iter(scores.values()))["miou"])

        def keep_best(step: int) -> None:
            if collectives.rank() == 0:
                self._save(method, self.artefact.best_net)

        during = None if stage.evaluate is None else evaluate_nets
        every = 0 if stage.evaluate is None else stage.evaluates_every
        choice = None
        if stage.keep in LABEL_FREE:
            choice = LabelFreeChoice(self.builder, stage, method, work.device, log.record)
        # Scores with leaking masks are only logged.
        only_logged = choice is not None or (stage.keep == "last" and evaluates_on_target(self.builder.recipe, stage))
        return Callbacks(
            on_evaluate=choice or (None if only_logged else during),
            evaluate_every=every if choice is None else choice.every,
            on_monitor=during if only_logged else None,
            monitor_every=every,
            on_best=keep_best,
            on_audit=None if auditor is None else auditor.audit,
            audit_every=0 if auditor is None else auditor.every,
            on_begin=begin,
            log_line=log.record,
            message=work.display.say,
        )

    def _scores(
        self, method: Method, device: torch.device, counters: Mapping[str, LabelledCounts]
    ) -> dict[str, dict[str, Any]]:
        """mIoU and IoU by class of every net that the method exports; the first one is compared.

        Each counter gets the logits of its net.
        """
        during = self.stage.evaluate
        assert during is not None
        dataset = self.builder.dataset(during.data)
        indices = evenly(len(dataset), during.images)
        result = {}
        for name, net in method.exported().items():
            assert isinstance(net, Segmentor)
            observe: Callable[[Tensor, Tensor], None] = counters.get(name, lambda logits, label: None)
            with net.inferring(during.protocol.precision):
                outcome = evaluate(net, dataset, during.protocol, device=device, indices=indices, observe=observe)
            scores = outcome.confusion.scores()
            iou = [None if value != value else round(float(value), 5) for value in scores.iou]
            result[name] = {"miou": scores.miou, "pixel_accuracy": scores.pixel_accuracy, "iou": iou}
        return result

    def _save(self, method: Method, place: Callable[[str], Path]) -> None:
        classes = self.builder.classes
        for name, net in method.exported().items():
            assert isinstance(net, Segmentor)
            save_segmentor(net, place(name), classes=classes.names, palette=classes.palette)

    def _finish(self, method: Method, progress: Progress) -> None:
        """Write the chosen weights, declare the artefact finished, remove its checkpoints."""
        stage, artefact, names = self.stage, self.artefact, list(method.exported())
        best = stage.keep != "last" and progress.best_score is not None
        if best:
            for name in names:
                try:
                    write_bytes(artefact.net(name), artefact.best_net(name).read_bytes())
                except FileNotFoundError as error:
                    artefact.clear_checkpoints()
                    text = f"the best weights so far are gone: {error.filename}"
                    remedy = "run the same command again; the stage starts from its beginning"
                    raise RunError("best-weights-gone", text, remedy) from None
        else:
            self._save(method, artefact.net)
        facts = {
            "nets": names,
            "steps": progress.step,
            "kept": stage.keep if best else "last",
            "score": progress.best_score,
            "best_step": progress.best_step,
        }
        if chosen_on_target(self.builder.recipe, stage):
            facts["leak"] = True
        audits = [artefact.audit_log] if stage.audit is not None and artefact.audit_log.is_file() else []
        artefact.finish("train", [*(artefact.net(name) for name in names), *audits], facts)
        artefact.clear_checkpoints()

    # Audit

    def _auditor(
        self, audit: AuditSettings, method: Method, work: Workplace, checkpoint_steps: Callable[[], Sequence[int]]
    ) -> Auditor:
        stage, builder = self.stage, self.builder
        protocol, truth = self.audit_protocol, self.audit_truth()
        evaluated = None
        if truth.dataset is not None and stage.evaluate is not None and protocol.key() == stage.evaluate.protocol.key():
            count = len(truth.dataset)
            if builder.full_name(truth.title) == builder.full_name(stage.evaluate.data):
                evaluated = tuple(evenly(count, stage.evaluate.images) or range(count))
        return Auditor(
            settings=audit,
            method=method,
            artefact=self.artefact,
            device=work.device,
            classes=builder.classes.names,
            steps=stage.steps,
            every=audit.every or stage.evaluates_every,
            protocol=protocol,
            images=self._audited_images(audit),
            truth=truth,
            label_shares_K=label_shares(builder, stage),
            evaluated=evaluated,
            checkpoint_steps=checkpoint_steps,
            say=work.display.say,
        )

    def _audited_images(self, audit: AuditSettings) -> AuditedImages:
        """The data of the audit: as set, else those of the streams without masks, else of all streams."""
        named = list(dict.fromkeys(listed(audit.data or [])))
        data = named or streamed(self.stage, masks=False) or streamed(self.stage, masks=True)
        return spread({it: self.builder.dataset(it) for it in data}, audit.images)

    @property
    def audit_protocol(self) -> Protocol:
        """The protocol of the audit."""
        own = None if self.stage.audit is None else self.stage.audit.protocol
        return own or (Protocol() if self.stage.evaluate is None else self.stage.evaluate.protocol)

    def audit_truth(self) -> Truth:
        """The labelled images of the audit: those not used by this training or a stage before it."""
        stage, builder = self.stage, self.builder
        if stage.audit is None or stage.audit.val is None:
            return Truth(note="audit.val is null")
        val, during = stage.audit_val, stage.evaluate
        if val is None:
            note = "the stage has no `evaluate`; set audit.val to labelled images that training does not use"
            return Truth(note=note)
        if val in builder.recipe.stages:
            return Truth(note=f"`evaluate` scores against pseudo labels ({val}), which can be wrong")
        same = during is not None and builder.full_name(val) == builder.full_name(during.data)
        return held_out_images(builder, val, stage, during.images if same and during is not None else None)

    def audit(self, pictures: int, device: torch.device) -> Audit | None:
        stage, artefact = self.stage, self.artefact
        records = read_log(artefact.audit_log) if artefact.audit_log.is_file() else []
        settings = stage.audit
        if settings is None or not records:
            return None

        def shown() -> AuditedNet:
            first = next(iter(records[-1]["nets"]))
            net = self.builder.trained_net(f"{self.name}.{first}")
            return AuditedNet(net, self._audited_images(settings), self.audit_truth(), self.audit_protocol, device)

        classes = self.builder.classes.names
        return training_audit(self.name, records, artefact.facts(), settings, stage.steps, classes, shown, pictures)

    # What other stages and commands use

    def course(self, scored: str) -> Training:
        during, builder = self.stage.evaluate, self.builder
        return training_course(
            self.name,
            self.stage,
            self.artefact,
            on_scored_data=during is not None and builder.data_key(during.data) == builder.data_key(scored),
            leak=chosen_on_target(builder.recipe, self.stage),
        )

    def net_settings(self, net: str) -> NetSettings:
        roles = self.stage.nets_by_role(self.builder.recipe)
        return self.builder.recipe.nets[roles.get(net, roles.get("student", next(iter(roles.values()))))]

    def cost(self, device: torch.device, count: bool) -> TrainingCost:
        nets, streams = self.nets(stand_ins=True), self.streams(stand_ins=True)
        for stream in streams.values():
            for dataset in stream.datasets if stream.labels else ():
                dataset.require_labels(f"stream {stream.name!r}, data {dataset.name}")
        method = self.method(nets, streams, stand_ins=True)
        during = self.stage.evaluate
        val = None if during is None else self.builder.dataset(during.data)
        shared = self.builder.shared.get((self.name, teacher_cache.KIND))
        made = shared is not None and shared.manifest() is not None
        return training_cost(self.stage, method, nets, streams, val, device, seed=self.seed, made=made, count=count)


def _pooled(datasets: list[Dataset]) -> list[Dataset]:
    """Annotated masks have no confidence; pseudo labels pooled with them omit theirs."""
    samples = [sample for dataset in datasets for sample in dataset.samples]
    if len({sample.confidence is None for sample in samples}) < 2:
        return datasets
    plain = [tuple(replace(sample, confidence=None) for sample in dataset.samples) for dataset in datasets]
    return [replace(dataset, samples=its) for dataset, its in zip(datasets, plain, strict=True)]


def _damaged(nets: Iterable[Path]) -> Iterator[str]:
    for path in nets:
        if path.is_file():
            try:
                load_segmentor(path)
            except TutelageError as error:
                yield error.message
