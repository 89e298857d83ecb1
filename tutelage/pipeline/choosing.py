"""Choosing weights while training by images whose masks stay closed; see :mod:`tutelage.evaluation.choice`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from tutelage.engine import collectives
from tutelage.engine.contract import Method
from tutelage.evaluation.choice import agreement, balance, entropy, mirror_counts, sureness
from tutelage.evaluation.protocol import Protocol
from tutelage.methods import find_settings
from tutelage.nets.segmentor import Segmentor
from tutelage.pipeline.audit_data import seen_by
from tutelage.pipeline.audit_records import in_order
from tutelage.pipeline.builder import Builder
from tutelage.recipe.references import listed
from tutelage.recipe.schema import LABEL_FREE, AnnotateStage, TrainStage


class Chooser:
    """Gives the first net that a method hands on a figure by which checkpoints are compared: more is better."""

    def __init__(
        self,
        builder: Builder,
        stage: TrainStage,
        method: Method,
        device: torch.device,
        record: Callable[[dict[str, Any]], None],
    ) -> None:
        """``record`` is given what was seen, to be logged. Raises as data sets do for names and files."""
        assert stage.keep in LABEL_FREE
        self.rule = stage.keep
        self.method, self.device, self.record = method, device, record
        self.protocol = protocol_of(stage)
        self.every = every(stage)
        self.classes = len(builder.classes)
        self.seen = seen_by(builder, stage, stage.choose.model_copy(update={"data": images_of(builder, stage)}))

    def __call__(self, step: int) -> float:
        """The figure after ``step``; all processes must ask, and all get that of all images."""
        net = next(iter(self.method.exported().values()))
        assert isinstance(net, Segmentor)
        mine = range(len(self.seen.images))[collectives.rank() :: collectives.world()]
        with net.inferring(self.protocol.precision):
            rows = [self._row(net, place) for place in mine]
        own = torch.from_numpy(np.stack(rows) if rows else np.zeros((0, self._columns())))
        # Where there is one process nothing travels; not every device has double precision.
        meeting = self.device if collectives.world() > 1 else torch.device("cpu")
        rows_NC = in_order(own, torch.tensor(list(mine), dtype=torch.int64), meeting).cpu().numpy()
        if self.rule == "agreement":
            figures = {"agreement": agreement(rows_NC)}
        else:
            figures = {"balance": balance(rows_NC), "entropy": entropy(rows_NC)}
        self.record({"step": step, "choice": {name: round(value, 6) for name, value in figures.items()}})
        return -figures["entropy"] if self.rule == "entropy" else figures[self.rule]

    def _row(self, net: Segmentor, place: int) -> np.ndarray:
        image = self.seen.image(place)
        if self.rule == "agreement":
            return mirror_counts(net, image, self.protocol, self.device, self.classes)
        return sureness(net, image, self.protocol, self.device)

    def _columns(self) -> int:
        return 3 * self.classes if self.rule == "agreement" else self.classes + 2


def images_of(builder: Builder, stage: TrainStage) -> list[str] | None:
    """The data that a choice looks at: those named, else those that no person labelled; ``None``: there are none."""
    if stage.choose.data is not None:
        return listed(stage.choose.data)
    needs, stages = find_settings(stage.method.name).streams, builder.recipe.stages
    return [
        reference
        for name, settings in stage.streams.items()
        for reference in listed(settings.data)
        if not needs[name].labels or isinstance(stages.get(reference), AnnotateStage)
    ] or None


def protocol_of(stage: TrainStage) -> Protocol:
    """How the net is applied for a choice without masks."""
    return stage.choose.protocol or (Protocol() if stage.evaluate is None else stage.evaluate.protocol)


def every(stage: TrainStage) -> int:
    """Steps between two looks of a choice without masks."""
    during = stage.evaluate
    five = max(stage.steps // 5, 1)
    return stage.choose.every or (five if during is None else during.every or five)
