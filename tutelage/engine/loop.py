"""The one training loop. It reads top to bottom and never changes for a method.

    one step:
      for each micro-batch, for each pass: forward, backward into the nets of `trains` only
      average gradients over ranks once; clip
      every optimizer whose nets received a gradient steps once (a gated net has no gradient, not a zero one)
      all schedules advance; method.after_step(context)

All backwards come before all optimizer steps. Everything random is a function of (seed, step, slice, pass), so a
checkpoint holds tensors and a step number, and a resumed run equals an uninterrupted one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from tutelage.data.batch import Batch
from tutelage.engine import checkpoint, collectives
from tutelage.engine.allocator import keep_freed_memory
from tutelage.engine.contract import Carry, Method, Pass, StepContext
from tutelage.engine.interruption import Interruption
from tutelage.engine.meter import Meter
from tutelage.engine.optimizers import build_optimizer, set_rate
from tutelage.engine.settings import FitSettings
from tutelage.engine.watch import Watch
from tutelage.errors import RunError
from tutelage.runs.checkpoints import Checkpoints


class Batches(Protocol):
    """Interface of a stream for the loop; see :class:`tutelage.data.stream.Stream`."""

    batch: int

    def batches(
        self, first_step: int, steps: int, accumulate: int, rank: int, world: int, device: torch.device
    ) -> Iterator[Batch]:
        """The micro-batches of one rank from ``first_step`` to ``steps``."""
        ...


@dataclass(frozen=True)
class Callbacks:
    """Functions that the loop calls; each may be left out. Steps count finished steps."""

    on_evaluate: Callable[[int], float] | None = None
    """Score the nets after a step (higher is better); the best score decides which weights are kept."""
    evaluate_every: int = 0
    on_best: Callable[[int], None] = lambda step: None
    """Keep the nets as they are: no earlier score was better."""
    on_begin: Callable[[int], None] = lambda step: None
    """The run begins, or resumes, after so many steps."""
    log_line: Callable[[dict[str, Any]], None] = lambda record: None
    message: Callable[[str], None] = lambda text: None
    on_audit: Callable[[int], bool] | None = None
    """Audit the predictions on unlabelled images; whether training may end."""
    audit_every: int = 0
    on_monitor: Callable[[int], object] | None = None
    """Score the nets after a step without choosing among them."""
    monitor_every: int = 0


@dataclass
class Progress:
    """Progress of a run; a checkpoint holds this and the tensors."""

    step: int = 0
    """Finished steps."""
    best_score: float | None = None
    best_step: int = 0
    evaluations_since_best: int = 0
    stopped: bool = False
    """Whether an audit ended the training."""


def fit(
    method: Method,
    streams: Mapping[str, Batches],
    settings: FitSettings,
    *,
    seed: int,
    device: torch.device,
    checkpoints: Checkpoints | None = None,
    callbacks: Callbacks | None = None,
    stop_at: int | None = None,
) -> Progress:
    """Train ``method`` for ``settings.steps`` steps, resuming from the latest checkpoint if there is one.

    ``stop_at`` ends the run early, after that many steps (a smoke run). Raises
    :class:`~tutelage.engine.watch.NotFiniteError` when a loss term is not finite, and
    :class:`~tutelage.engine.interruption.StoppedError` after SIGINT or SIGTERM, once a checkpoint is written.
    """
    callbacks = callbacks or Callbacks()
    if device.type == "cpu":
        keep_freed_memory()
    _check_precision(settings, device)
    nets = _prepare(method, settings, device)
    plans = method.optimizers()
    holds = {name: [nets[net] for net in plan.nets] for name, plan in plans.items()}
    optimizers = {n: build_optimizer(holds[n], plan.optimizer or settings.optimizer) for n, plan in plans.items()}
    schedules = {name: plan.schedule or settings.schedule for name, plan in plans.items()}
    scaler = torch.amp.GradScaler(device.type, enabled=settings.precision == "fp16")
    progress = _resume(method, optimizers, scaler, checkpoints, device, callbacks.message)
    watch = Watch(None if checkpoints is None else checkpoints.folder, callbacks.message)
    meter = Meter(device, sum(stream.batch for stream in streams.values()), progress.step, settings.steps)
    rank, world = collectives.rank(), collectives.world()
    last = min(settings.steps, stop_at or settings.steps)
    feeds = {
        name: stream.batches(progress.step, last, settings.accumulate, rank, world, device)
        for name, stream in streams.items()
    }

    def save() -> None:
        watch.finish()
        if checkpoints is not None and rank == 0:
            state = {
                "progress": vars(progress),
                "scaler": scaler.state_dict(),
                "environment": checkpoint.environment(device),
            }
            checkpoints.save(progress.step, lambda path: checkpoint.write(path, method, optimizers), state)
        collectives.barrier()

    def train_step(step: int) -> None:
        with meter.waiting():
            micro_batches = [{name: next(feed) for name, feed in feeds.items()} for _ in range(settings.accumulate)]
        totals = _totals(method, micro_batches)
        passes = method.passes(step)
        slices = settings.accumulate * world
        carries = tuple(Carry() for _ in micro_batches)
        for micro, (batches, carry) in enumerate(zip(micro_batches, carries, strict=True)):
            for pass_ in passes:
                slice_ = micro * world + rank
                context = StepContext(
                    step, settings.steps, seed, device, pass_.name, slice_, slices, carry, totals=totals
                )
                with _training(nets, pass_):
                    torch.manual_seed(context.global_seed)
                    terms = method(batches, pass_.name, context)
                    watch.check(terms, step, pass_.name, batches)
                    meter.add(terms)
                    loss = torch.stack(list(terms.values())).sum()
                    torch.autograd.backward(scaler.scale(loss / settings.accumulate))
        trained = {net for pass_ in passes for net in pass_.trains}
        collectives.average_gradients(p for net in sorted(trained) for p in nets[net].parameters() if p.requires_grad)
        for name, optimizer in optimizers.items():
            set_rate(optimizer, schedules[name], step, settings.steps)
            parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
            if parameters:
                if settings.clip is not None:
                    scaler.unscale_(optimizer)
                    nn.utils.clip_grad_norm_(parameters, settings.clip)
                scaler.step(optimizer)
                optimizer.zero_grad(set_to_none=True)
        scaler.update()
        with torch.no_grad():
            method.after_step(
                StepContext(step, settings.steps, seed, device, "after", 0, slices, carries=carries, totals=totals)
            )

    with Interruption() as interruption, _reproducible(device):
        callbacks.on_begin(progress.step)
        method.train()
        while progress.step < last and not progress.stopped and not _out_of_patience(progress, settings):
            train_step(progress.step)
            progress.step += 1
            done = progress.step == settings.steps
            if progress.step % settings.log_every == 0 or progress.step == last:
                rates = {name: schedules[name].factor(progress.step - 1, settings.steps) for name in schedules}
                callbacks.log_line(meter.record(progress.step, rates))
            evaluates = callbacks.on_evaluate is not None and (done or _due(progress.step, callbacks.evaluate_every))
            monitors = callbacks.on_monitor is not None and (done or _due(progress.step, callbacks.monitor_every))
            audits = callbacks.on_audit is not None and (done or _due(progress.step, callbacks.audit_every))
            saves = done or _due(progress.step, settings.checkpoint_rhythm())
            if monitors or evaluates or audits or saves:
                collectives.average_norm_statistics(list(nets.values()))
            if monitors:
                with meter.apart():
                    _monitor(method, progress, callbacks)
            if evaluates:
                with meter.apart():
                    _evaluate(method, progress, callbacks)
            if audits:
                with meter.apart():
                    _audit(method, progress, callbacks)
            if saves or (interruption.asked and world == 1):
                with meter.apart():
                    save()
            interruption.raise_if_asked(progress.step)
        watch.finish()
        interruption.raise_if_asked(progress.step)  # a signal after the last step must not be lost
    for feed in feeds.values():
        if hasattr(feed, "close"):
            feed.close()
    return progress


def _check_precision(settings: FitSettings, device: torch.device) -> None:
    if settings.precision == "fp16" and device.type != "cuda":
        raise RunError(
            "device-unavailable",
            f"precision fp16 needs a GPU, but the device is {device.type}",
            "set precision: fp32 or bf16, or run.device",
        )


def _prepare(method: Method, settings: FitSettings, device: torch.device) -> dict[str, nn.Module]:
    """Move the method to its device and memory layout; its direct children are its nets, by name."""
    method.to(device)
    collectives.share_first(method)
    nets = dict(method.named_children())
    for net in nets.values():
        if settings.channels_last:
            net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        for module in net.modules():
            if hasattr(module, "precision"):
                module.precision = settings.precision  # type: ignore[assignment]
        if settings.compile:
            net.compile()
    for name in method.Settings.teachers:
        nets[name].requires_grad_(False)
    return nets


def _resume(
    method: Method,
    optimizers: Mapping[str, torch.optim.Optimizer],
    scaler: torch.amp.GradScaler,
    checkpoints: Checkpoints | None,
    device: torch.device,
    say: Callable[[str], None],
) -> Progress:
    found = None if checkpoints is None else checkpoints.latest()
    if found is None:
        return Progress()
    checkpoint.restore(found.tensors, method, optimizers)
    if scaler.is_enabled():
        scaler.load_state_dict(found.state["scaler"])
    then, now = found.state["environment"], checkpoint.environment(device)
    if then == now:
        say(f"resuming after step {found.step}")
    else:
        changed = ", ".join(f"{key} {then.get(key)} → {now[key]}" for key in now if then.get(key) != now[key])
        say(f"resuming after step {found.step}; not byte-exact against an uninterrupted run: {changed}")
    return Progress(**found.state["progress"])


def _totals(method: Method, micro_batches: list[dict[str, Batch]]) -> dict[str, Tensor]:
    """The method's counts, summed over micro-batches and ranks."""
    counts = [method.counts(batches) for batches in micro_batches]
    names = sorted(counts[0])
    if not names:
        return {}
    summed = torch.stack([torch.stack([count[name].double() for name in names]) for count in counts]).sum(0)
    return dict(zip(names, collectives.sum_over_ranks(summed).float(), strict=True))


@contextmanager
def _training(nets: Mapping[str, nn.Module], pass_: Pass) -> Iterator[None]:
    """Let only the nets of a pass accumulate gradients; frozen parameters stay frozen."""
    held = [p for name, net in nets.items() if name not in pass_.trains for p in net.parameters() if p.requires_grad]
    for parameter in held:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in held:
            parameter.requires_grad_(True)


def _monitor(method: Method, progress: Progress, callbacks: Callbacks) -> None:
    assert callbacks.on_monitor is not None
    method.eval()
    callbacks.on_monitor(progress.step)
    method.train()


def _evaluate(method: Method, progress: Progress, callbacks: Callbacks) -> None:
    assert callbacks.on_evaluate is not None
    method.eval()
    score = callbacks.on_evaluate(progress.step)
    method.train()
    best = progress.best_score
    if best is None or score > best or math.isnan(best):
        progress.best_score, progress.best_step, progress.evaluations_since_best = score, progress.step, 0
        # Before the checkpoint that records it: a kill in between repeats the steps and writes the same nets again.
        callbacks.on_best(progress.step)
    else:
        progress.evaluations_since_best += 1


def _audit(method: Method, progress: Progress, callbacks: Callbacks) -> None:
    assert callbacks.on_audit is not None
    method.eval()
    progress.stopped = callbacks.on_audit(progress.step)
    method.train()


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _out_of_patience(progress: Progress, settings: FitSettings) -> bool:
    return settings.patience is not None and progress.evaluations_since_best >= settings.patience


@contextmanager
def _reproducible(device: torch.device) -> Iterator[None]:
    """Use deterministic algorithms while training; on GPUs, operations without one only warn."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True, warn_only=device.type == "cuda")
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]
