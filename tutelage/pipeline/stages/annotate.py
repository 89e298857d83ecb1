"""The `annotate` stage: writes pseudo labels and audits them."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tutelage.annotate.policies import Policy, PolicyTask
from tutelage.annotate.pseudo_labels import Written, annotate
from tutelage.audit.images import Truth
from tutelage.audit.label_audit import Covering, WrittenLabels, judge_labels, label_lines, label_record
from tutelage.audit.report_content import LabelRound
from tutelage.data.dataset import Dataset
from tutelage.data.pseudo_labels import MANIFEST, PseudoLabelFolder, with_pseudo_labels
from tutelage.engine import collectives
from tutelage.errors import RecipeError
from tutelage.nets.segmentor import Segmentor
from tutelage.pipeline.audited_data import held_out_images, label_shares
from tutelage.pipeline.runner import StageRunner, Workplace
from tutelage.recipe.stages.annotate import AnnotateStage
from tutelage.runs.atomic import write_json


class AnnotateRunner(StageRunner[AnnotateStage]):
    """Labels every image, then audits the labels."""

    def make(self, work: Workplace) -> None:
        stage, builder, artefact, display = self.stage, self.builder, self.artefact, work.display
        dataset = builder.dataset(stage.data).without_labels()
        net = builder.trained_net(stage.net).to(work.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        policy = stage.policy.build(PolicyTask(builder.classes.names, work.device, builder.fitted))
        producer = builder.net_key(stage.net)
        with display.bar("annotate", len(dataset)) as progress, net.inferring(stage.protocol.precision):
            written = annotate(
                net,
                dataset,
                artefact.labels,
                policy=policy,
                device=work.device,
                protocol=stage.protocol,
                producer=producer,
                on_unreadable=builder.recipe.run.on_unreadable,
                sure_levels=self.covering.levels(len(builder.classes)),
                progress=progress,
                say=display.say,
            )
        collectives.barrier()  # all processes need the manifest
        truth, val = self._judged(net, policy, work.device)
        if written is not None:
            self._write_audit(dataset, written, truth, val, work)
            files: dict[Path, str] = {**written.files, artefact.label_audit: ""}
            artefact.finish("annotate", files, {"images": len(written.names), "producer": producer})

    @property
    def covering(self) -> Covering:
        """The pixels that the audit counts as covered."""
        return Covering(self.stage.policy.kind, self.stage.audit.threshold)

    def _judged(self, net: Segmentor, policy: Policy, device: torch.device) -> tuple[Truth, dict[str, Any] | None]:
        """Precision and calibration on labelled images, under the same labelling rule."""
        val, classes = self.stage.audit.val, len(self.builder.classes)
        if val is None:
            return Truth(note="audit.val is null"), None
        truth = held_out_images(self.builder, val, self.stage)
        manifest = json.loads((self.artefact.labels / MANIFEST).read_text(encoding="utf-8"))
        covering = self.covering
        levels = manifest.get("levels", [0] * classes) if covering.by_policy else covering.levels(classes)
        judge = None
        if policy.surveys:
            judge = partial(policy.judge, threshold_K=np.array(manifest["thresholds"], dtype=np.float64))
        return truth, judge_labels(net, truth, self.stage.protocol, device, levels, judge)

    def _write_audit(
        self, dataset: Dataset, written: Written, truth: Truth, val: dict[str, Any] | None, work: Workplace
    ) -> None:
        builder, places = self.builder, {sample.name: place for place, sample in enumerate(dataset.samples)}
        labels = WrittenLabels(
            self.stage.data, written.names, [places[name] for name in written.names], written.counts_NC
        )
        trained = builder.recipe.stages[self.stage.net.partition(".")[0]]
        record = label_record(labels, self.covering, truth, val, label_shares(builder, trained))
        write_json(self.artefact.label_audit, record)
        for line in label_lines(record, builder.classes.names):
            work.display.say(f"  {line}")

    def dataset(self, stand_ins: bool = False) -> Dataset:
        if stand_ins and self.artefact.manifest() is None:
            text = f"it needs the labels of {self.name!r}, which are not made yet"
            raise RecipeError("labels-not-made", text, "run that stage first")
        return with_pseudo_labels(self.builder.dataset(self.stage.data), self.artefact.labels)

    def label_round(self) -> LabelRound | None:
        try:
            record = json.loads(self.artefact.label_audit.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return LabelRound(
            name=self.name,
            net=self.stage.net,
            record=record,
            dataset=self.builder.dataset(self.stage.data),
            names=[sample.name for sample in self.dataset().samples],
            folder=PseudoLabelFolder(self.artefact.labels),
            level=self.covering.levels(1)[0],
        )
