"""Whether a teacher has something to hand on: looked at before a student spends its training on it."""

from __future__ import annotations

import torch

from tutelage.engine.contract import Method
from tutelage.errors import DataError, RunError
from tutelage.evaluation.evaluate import evaluate
from tutelage.evaluation.protocol import Protocol
from tutelage.nets.segmentor import Segmentor
from tutelage.pipeline.builder import Builder
from tutelage.pipeline.display import Display
from tutelage.pipeline.subsample import evenly
from tutelage.recipe.references import listed
from tutelage.recipe.schema import TrainStage

IMAGES = 8
"""How many labelled images it is asked about."""

SMALLEST_SHARE = 0.1
"""A teacher that comes less far from the constant answer to a perfect one is near chance."""


def check_teachers(builder: Builder, stage: TrainStage, method: Method, device: torch.device, display: Display) -> None:
    """Score each teacher on some of the labelled training images, and say how it does.

    Raises :class:`RunError` for one that is hardly better than naming the commonest class everywhere, unless the
    recipe's ``run.weak_teacher`` is ``warn``.
    """
    labeled = next((name for name, needs in method.Settings.streams.items() if needs.labels), None)
    if labeled is None:
        return
    data = listed(stage.streams[labeled].data)[0]
    dataset = builder.dataset(data)
    indices = evenly(len(dataset), IMAGES)
    for role in method.Settings.teachers:
        net = method.get_submodule(role)
        assert isinstance(net, Segmentor)
        net.to(device)
        try:
            with net.inferring(stage.precision):
                confusion = evaluate(net, dataset, Protocol(), device=device, indices=indices).confusion
        except DataError as error:
            if builder.recipe.run.on_unreadable == "error":
                raise
            display.say(f"{role} {stage.inputs[role]!r} is not looked at: {error.message}")
            continue
        scores = confusion.scores()
        true_pixels = confusion.matrix.sum(1).double()
        if not true_pixels.any():
            continue  # a slice without a single label says nothing
        share, commonest = (true_pixels / true_pixels.sum()).max(0)
        constant = float(share) / int((true_pixels > 0).sum())
        asked = f"{len(dataset) if indices is None else len(indices)} labelled images of {data}"
        said = f"{role} {stage.inputs[role]!r}: mIoU {100 * scores.miou:.1f} on {asked}"
        if scores.miou - constant >= SMALLEST_SHARE * (1 - constant):
            display.say(said)
            continue
        name = builder.classes.names[int(commonest)]
        weak = f"{said}; naming {name!r} everywhere gives {100 * constant:.1f}: there is nothing to hand on"
        if builder.recipe.run.weak_teacher == "error":
            raise RunError(
                weak, "train it longer, or look at its report; `run.weak_teacher: warn` goes on all the same"
            )
        display.say(f"warning: {weak}")
