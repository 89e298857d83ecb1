"""Chooses weights while training, by images without masks; see :mod:`tutelage.evaluation.choice`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from tutelage.audit.images import spread
from tutelage.audit.records import in_order
from tutelage.engine import collectives
from tutelage.engine.contract import Method
from tutelage.evaluation.choice import agreement, balance, entropy, mirror_counts, sureness
from tutelage.evaluation.protocol import Protocol
from tutelage.nets.segmentor import Segmentor
from tutelage.pipeline.audited_data import streamed
from tutelage.pipeline.builder import Builder
from tutelage.recipe.base import listed
from tutelage.recipe.stages.train import LABEL_FREE, TrainStage
from tutelage.settings import references


class LabelFreeChoice:
    """Scores the first net that a method exports, to compare checkpoints: higher is better."""

    def __init__(
        self,
        builder: Builder,
        stage: TrainStage,
        method: Method,
        device: torch.device,
        record: Callable[[dict[str, Any]], None],
    ) -> None:
        """``record`` logs the figures. Raises as opening a data set does."""
        assert stage.keep in LABEL_FREE
        self.rule = stage.keep
        self.method, self.device, self.record = method, device, record
        during = stage.evaluate
        self.protocol = stage.choose.protocol or (Protocol() if during is None else during.protocol)
        self.every = stage.choose.every or stage.evaluates_every
        self.classes = len(builder.classes)
        self.images = spread({it: builder.dataset(it) for it in _data(builder, stage)}, stage.choose.images)

    def __call__(self, step: int) -> float:
        """The figure after ``step``, of all images; all processes must call it."""
        net = next(iter(self.method.exported().values()))
        assert isinstance(net, Segmentor)
        mine = range(len(self.images.images))[collectives.rank() :: collectives.world()]
        with net.inferring(self.protocol.precision):
            rows = [self._row(net, place) for place in mine]
        own = torch.from_numpy(np.stack(rows) if rows else np.zeros((0, self._columns())))
        # A single process needs no reduction; not every device has double precision.
        meeting = self.device if collectives.world() > 1 else torch.device("cpu")
        rows_NC = in_order(own, torch.tensor(list(mine), dtype=torch.int64), meeting).cpu().numpy()
        if self.rule == "agreement":
            figures = {"agreement": agreement(rows_NC)}
        else:
            figures = {"balance": balance(rows_NC), "entropy": entropy(rows_NC)}
        self.record({"step": step, "choice": {name: round(value, 6) for name, value in figures.items()}})
        return -figures["entropy"] if self.rule == "entropy" else figures[self.rule]

    def _row(self, net: Segmentor, place: int) -> np.ndarray:
        image = self.images.image(place)
        if self.rule == "agreement":
            return mirror_counts(net, image, self.protocol, self.device, self.classes)
        return sureness(net, image, self.protocol, self.device)

    def _columns(self) -> int:
        return 3 * self.classes if self.rule == "agreement" else self.classes + 2


def _data(builder: Builder, stage: TrainStage) -> list[str]:
    """The data of a choice: as set, else those of the streams without annotations, else all."""
    stages = builder.recipe.stages
    named = list(dict.fromkeys(listed(stage.choose.data or [])))
    masked = streamed(stage, masks=True)
    pseudo = [it for it in masked if it in stages and stages[it].pseudo]
    # In the order of the streams, on which the selection of evenly spread images depends.
    unlabelled = {*streamed(stage, masks=False), *pseudo}
    ordered = [it.value for it in references(stage) if it.ref.trains and it.value in unlabelled]
    return named or list(dict.fromkeys(ordered)) or masked
