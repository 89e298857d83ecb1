"""Estimates a training stage's hours, memory and disk from two steps in a separate process."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch

from tutelage.data.dataset import Dataset
from tutelage.data.stream import Stream
from tutelage.engine import checkpoint
from tutelage.engine.contract import Method
from tutelage.engine.loop import Callbacks, fit
from tutelage.engine.meter import peak_memory
from tutelage.engine.optimizers import build_optimizer
from tutelage.errors import TutelageError
from tutelage.evaluation.evaluate import evaluate
from tutelage.methods import METHODS
from tutelage.methods.distillation.cache import Replaying
from tutelage.nets.cost import counting
from tutelage.nets.devices import find_device
from tutelage.nets.segmentor import Segmentor
from tutelage.pipeline import teacher_cache
from tutelage.recipe.loading import LoadedRecipe
from tutelage.recipe.stages.train import TrainStage
from tutelage.runs.store import Store

_WARM, _MEASURED = 1, 2


@dataclass(frozen=True)
class TrainingCost:
    """The estimated cost of one training stage."""

    hours: float
    step_seconds: float
    memory_mib: float
    disk_mib: float
    note: str = ""
    multiply_adds: float | None = None
    """Of one step: all nets, forward and backward; None if not counted."""
    cache: str = ""
    """For a method that supports a teacher cache: seconds per step either way, and the cheaper one."""


# Not multiprocessing, which runs the caller's script again: a script without a guard would start over, or hang.
_CHILD = (
    "import pickle, sys; given = sys.stdin.buffer; sys.path[:] = pickle.load(given); "
    "from tutelage.pipeline.training_cost import run_trial; run_trial(*pickle.load(given))"
)


def estimate_cost(loaded: LoadedRecipe, name: str, count: bool = False) -> TrainingCost | str:
    """Train two steps of a stage in another process and extrapolate; returns a reason where that fails.

    With ``count``, one more step is taken, whose multiply-adds are counted.
    """
    given = pickle.dumps(sys.path) + pickle.dumps((loaded, name, count, METHODS))
    trial = subprocess.run([sys.executable, "-c", _CHILD], input=given, stdout=subprocess.PIPE, check=False)
    if trial.returncode:
        return f"the trial process ended with status {trial.returncode} (out of memory?)"
    result: TrainingCost | str = pickle.loads(trial.stdout)
    return result


def run_trial(loaded: LoadedRecipe, name: str, count: bool, methods: Mapping[str, str]) -> None:
    """Write the result of the trial to the standard output, pickled; everything else that is printed goes to stderr."""
    METHODS.update(methods)  # those of plugins too
    with os.fdopen(os.dup(1), "wb") as out:
        os.dup2(2, 1)
        out.write(pickle.dumps(_found(loaded, name, count)))


def _found(loaded: LoadedRecipe, name: str, count: bool) -> TrainingCost | str:
    if loaded.recipe.run.threads is not None:
        torch.set_num_threads(loaded.recipe.run.threads)
    try:
        return measure(loaded, name, count)
    except TutelageError as error:
        return str(error)
    except Exception as error:  # on any error the plan continues without an estimate
        return f"{type(error).__name__}: {error}"


def measure(loaded: LoadedRecipe, name: str, count: bool = False) -> TrainingCost | str:
    """Train a few steps of a stage here and extrapolate; writes nothing."""
    from tutelage.pipeline.builder import Builder

    builder = Builder(loaded)
    builder.assign(Store(Path(loaded.recipe.out_folder())))
    return builder.runner(name).cost(find_device(loaded.recipe.run.device), count) or "takes no training"


def training_cost(
    stage: TrainStage,
    method: Method,
    nets: Mapping[str, Segmentor],
    streams: Mapping[str, Stream],
    val: Dataset | None,
    device: torch.device,
    *,
    seed: int,
    made: bool,
    count: bool,
) -> TrainingCost:
    """Train a few steps and extrapolate.

    ``val``: the data of ``evaluate``; ``made``: whether the teacher's cached outputs exist; ``count``: whether the
    multiply-adds of one more step are counted.
    """
    # The counter cannot count inside compiled code.
    changes = {"steps": max(stage.steps, _WARM + _MEASURED), "log_every": 1, "compile": stage.compile and not count}
    settings = stage.model_copy(update=changes)

    def timed() -> float:
        marks: list[float] = []
        callbacks = Callbacks(log_line=lambda record: marks.append(time.perf_counter()))
        fit(method, streams, settings, seed=seed, device=device, callbacks=callbacks, stop_at=_WARM + _MEASURED)
        return (marks[-1] - marks[_WARM - 1]) / _MEASURED

    note, verdict = "", ""
    cached = teacher_cache.chosen(stage) is not None
    if (cached or not count) and teacher_cache.possible(stage) is not None:
        role, name_of_stream = teacher_cache.cached_teacher(stage)
        stream = streams[name_of_stream]
        teacher = teacher_cache.Teacher(stage, nets[role], device)
        cache, per_image = teacher_cache.trial(teacher, stream, _WARM + _MEASURED)
        seconds = {}
        for way in (not cached, cached) if not count else (cached,):  # the recipe's own way last
            cast(Replaying, method).cache = cache if way else None
            seconds[way] = timed()
        step_seconds, known = seconds[cached], len(teacher_cache.samples_of(stream))
        making = per_image * known
        if not count:
            verdict = teacher_cache.verdict(seconds[False], seconds[True], making, known, cached)
    else:
        step_seconds, making = timed(), 0.0
    hours = (step_seconds * stage.steps + (0.0 if made or not cached else making)) / 3600.0
    if stage.evaluate is not None and val is not None:
        started, images = time.perf_counter(), list(range(min(2, len(val))))
        for net in method.exported().values():
            assert isinstance(net, Segmentor)
            with net.inferring(stage.evaluate.protocol.precision):
                evaluate(net, val, stage.evaluate.protocol, device=device, indices=images)
        per_image = (time.perf_counter() - started) / len(images)
        times = max(stage.steps // stage.evaluates_every, 1)
        spent = per_image * min(len(val), stage.evaluate.images or len(val)) * times / 3600.0
        hours += spent
        note = f"{100 * spent / hours:.0f} % of it evaluation"
    optimizers = {
        key: build_optimizer([method.get_submodule(net) for net in plan.nets], plan.optimizer or stage.optimizer)
        for key, plan in method.optimizers().items()
    }
    weights = sum(value.numel() * value.element_size() for value in checkpoint.pack(method, optimizers).values())
    # The optimizer has no state before its first step: SGD keeps one value per parameter, Adam two.
    trained = sum(p.numel() * 4 for o in optimizers.values() for group in o.param_groups for p in group["params"])
    state = trained * (1 if stage.optimizer.kind == "sgd" else 2)
    disk = (weights + state) * (stage.keep_checkpoints + 1) / 2**20
    memory = peak_memory(device)
    multiply_adds = None
    if count:
        # Last: the method's buffers (queues) are filled by now.
        with counting() as counted:
            fit(method, streams, settings, seed=seed, device=device, stop_at=1)
        multiply_adds = counted()
    return TrainingCost(hours, step_seconds, memory, disk, note, multiply_adds, verdict)
