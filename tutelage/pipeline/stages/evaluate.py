"""The `evaluate` stage: scores trained nets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from tutelage.engine import collectives
from tutelage.evaluation.class_groups import check_groups
from tutelage.evaluation.evaluate import evaluate, summary, write_evaluation
from tutelage.pipeline.runner import StageRunner, Workplace
from tutelage.recipe.stages.evaluate import EvaluateStage
from tutelage.report.formatting import percent


class EvaluateRunner(StageRunner[EvaluateStage]):
    """Scores every net on the same images."""

    def key(self) -> dict[str, Any]:
        return {"labels": list(self.stage.scored())}

    def preflight(self) -> None:
        names = self.builder.classes.names
        check_groups(self.stage.subsets, self.stage.merged, names, f"stage {self.name!r}: ")

    def warnings(self) -> Iterator[str]:
        source = self.builder.recipe.stages.get(self.stage.data)
        if source is not None and source.pseudo:
            yield (
                f"<stages>: {self.stage.data} has pseudo labels, which can be wrong: scores measure agreement with them"
            )

    def make(self, work: Workplace) -> None:
        stage, builder, artefact, say = self.stage, self.builder, self.artefact, work.display.say
        dataset = builder.dataset(stage.data)
        files: list[Path] = []
        scores: dict[str, Any] = {}
        for label, reference in stage.scored().items():
            net = builder.trained_net(reference).to(work.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
            with (
                work.display.bar(f"evaluate {label}", len(dataset)) as progress,
                net.inferring(stage.protocol.precision),
            ):
                outcome = evaluate(
                    net,
                    dataset,
                    stage.protocol,
                    device=work.device,
                    boundary=stage.boundary,
                    calibration=stage.calibration,
                    merged_as=stage.merged,
                    progress=progress,
                )
            figures = summary(outcome, dataset, stage.protocol, subsets=stage.subsets, merged_as=stage.merged)
            content = {**figures, "net": builder.net_key(reference)}
            if collectives.rank() == 0:
                write_evaluation(artefact.score(label), artefact.counts(label), content, outcome)
            files += [artefact.score(label), artefact.counts(label)]
            scores[label] = content["miou"]
            for line in _lines(label, content, f"{stage.data} ({len(dataset)} images)"):
                say(f"  {line}")
        if collectives.rank() == 0:
            artefact.finish("evaluate", files, {"miou": scores, "protocol": stage.protocol.key()})


def _lines(label: str, content: dict[str, Any], data: str) -> Iterator[str]:
    interval = content["miou_interval"]
    doubt = "" if interval["reliable"] else f"; the interval is not reliable: {interval['reason']}"
    low, high = 100 * interval["low"], 100 * interval["high"]
    yield f"{label}: mIoU {100 * content['miou']:.2f} [{low:.2f}, {high:.2f}] on {data}{doubt}"
    for name, means in content.get("subsets", {}).items():
        yield f"  {name}: mIoU {percent(means['miou'], 2)} over {len(means['classes'])} classes"
    if "merged" in content:
        groups = ", ".join(content["merged"]["groups"])
        yield f"  with {groups} as one class each: mIoU {percent(content['merged']['miou'], 2)}"
