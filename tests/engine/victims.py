"""What is run in processes that are killed: a toy training with evaluation, best weights and a log."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import torch
from safetensors.torch import save_file

from tests.engine.toy import Toy, ToyStream
from tests.processes import Countdown, count_disk_calls, write_half
from tutelage.engine import checkpoint
from tutelage.engine.log import TrainingLog
from tutelage.engine.loop import Callbacks, fit
from tutelage.engine.settings import FitSettings, OptimizerSettings
from tutelage.runs.atomic import remove_partials, write_bytes, writing
from tutelage.runs.checkpoints import Checkpoints

STEPS = 5
SCORES = (0.1, 0.3, 0.2, 0.4, 0.35)


def train(folder: Path, where: str = "", number: int = 0) -> None:
    """Train a toy, going on from what is in ``folder``.

    ``where`` and ``number`` say at which disk call, evaluation, checkpoint or step (from 1) this process dies, or is
    sent which signal.
    """
    remove_partials(folder)  # as an artefact does when it is begun
    toy, countdown = Toy(dropout=0.2, noise=0.1), Countdown(number)
    save_best = _saver(toy, folder)
    evaluate = _score
    if where == "disk":
        count_disk_calls(countdown)
    elif where == "half a checkpoint":
        checkpoint.save_file = countdown.before(save_file) if number == 0 else write_half(countdown)  # type: ignore[attr-defined]
    elif where == "evaluation":
        evaluate = countdown.before(_score)
    elif where.startswith("SIG"):
        _signal_after_step(toy, where, number)
    with TrainingLog(folder / "log.jsonl") as log:

        def evaluated(step: int) -> float:
            log.record({"step": step, "evaluation": evaluate(step)})
            return _score(step)

        fit(
            toy,
            {"labeled": ToyStream()},
            FitSettings(
                steps=STEPS, optimizer=OptimizerSettings(lr=0.01), checkpoint_every=1, log_every=1, accumulate=2
            ),
            seed=3,
            device=torch.device("cpu"),
            checkpoints=Checkpoints(folder / "checkpoints", 2),
            callbacks=Callbacks(evaluated, 1, save_best, log.begin, log.record),
        )
    with writing(folder / "final.safetensors") as partial:
        save_file({name: value.contiguous().clone() for name, value in toy.state_dict().items()}, partial)
    write_bytes(folder / "calls", str(countdown.calls).encode())


def _score(step: int) -> float:
    return SCORES[step - 1]


def _saver(toy: Toy, folder: Path):  # type: ignore[no-untyped-def]
    def save_best(step: int) -> None:
        with writing(folder / "best.safetensors") as partial:
            save_file({name: value.contiguous().clone() for name, value in toy.student.state_dict().items()}, partial)

    return save_best


def _signal_after_step(toy: Toy, name: str, number: int) -> None:
    original = toy.after_step

    def after_step(context):  # type: ignore[no-untyped-def]
        original(context)
        if context.step + 1 == number:
            for _ in range(name.count("SIG")):
                os.kill(os.getpid(), getattr(signal, name.split()[0]))

    toy.after_step = after_step  # type: ignore[method-assign]
