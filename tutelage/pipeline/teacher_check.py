"""Checks, before a student's training, that its teacher is better than predicting the most frequent class."""

from __future__ import annotations

from tutelage.data.subsample import evenly
from tutelage.engine.contract import Method
from tutelage.errors import DataError, RunError
from tutelage.evaluation.evaluate import evaluate
from tutelage.evaluation.protocol import Protocol
from tutelage.nets.segmentor import Segmentor
from tutelage.pipeline.builder import Builder
from tutelage.pipeline.runner import Workplace
from tutelage.recipe.base import listed
from tutelage.recipe.stages.train import TrainStage

IMAGES = 8
"""Number of labelled images to score."""

SMALLEST_SHARE = 0.1
"""A teacher that closes less of the gap between the constant prediction and a perfect one is near chance."""


def check_teachers(builder: Builder, stage: TrainStage, method: Method, work: Workplace) -> None:
    """Score each teacher on some of the labelled training images, and print the scores.

    Raises :class:`RunError` for one that is hardly better than the most frequent class everywhere, unless the
    recipe's ``run.weak_teacher`` is ``warn``.
    """
    say = work.display.say
    labeled = next((name for name, needs in method.Settings.streams.items() if needs.labels), None)
    if labeled is None:
        return
    data = listed(stage.streams[labeled].data)[0]
    dataset = builder.dataset(data)
    indices = evenly(len(dataset), IMAGES)
    for role in method.Settings.teachers:
        net = method.get_submodule(role)
        assert isinstance(net, Segmentor)
        net.to(work.device)
        try:
            with net.inferring(stage.precision):
                confusion = evaluate(net, dataset, Protocol(), device=work.device, indices=indices).confusion
        except DataError as error:
            if builder.recipe.run.on_unreadable == "error":
                raise
            say(f"{role} {stage.inputs[role]!r} is not checked: {error.message}")
            continue
        scores = confusion.scores()
        true_pixels = confusion.matrix.sum(1).double()
        if not true_pixels.any():
            continue  # no labelled pixel
        share, commonest = (true_pixels / true_pixels.sum()).max(0)
        constant = float(share) / int((true_pixels > 0).sum())
        scored_on = f"{len(dataset) if indices is None else len(indices)} labelled images of {data}"
        result = f"{role} {stage.inputs[role]!r}: mIoU {100 * scores.miou:.1f} on {scored_on}"
        if scores.miou - constant >= SMALLEST_SHARE * (1 - constant):
            say(result)
            continue
        name = builder.classes.names[int(commonest)]
        weak = f"{result}; predicting {name!r} everywhere gives {100 * constant:.1f}: too weak to teach"
        if builder.recipe.run.weak_teacher == "error":
            remedy = "train it longer, or check its report; `run.weak_teacher: warn` continues anyway"
            raise RunError("weak-teacher", weak, remedy)
        say(f"warning: {weak}")
