"""The loop, step by step, on a method whose every gradient is known."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.engine.toy import Toy, ToyStream
from tests.errors import raises_code
from tutelage.data.batch import Batch
from tutelage.engine.contract import Carry, Method, OptimizerSpec, Pass, StepContext
from tutelage.engine.loop import Callbacks, Progress, fit
from tutelage.engine.settings import FitSettings, MethodSettings, OptimizerSettings, ScheduleSettings, StreamSpec
from tutelage.runs.checkpoints import Checkpoints

CPU = torch.device("cpu")
PLAIN = OptimizerSettings(kind="sgd", lr=0.1, momentum=0.0, weight_decay=0.0, decay_norm_and_bias=True)
FLAT = ScheduleSettings(kind="constant")


class Point(nn.Module):
    """A net with two numbers, of which one belongs to the encoder."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.encoder = nn.ParameterList([nn.Parameter(torch.full((2,), value))])
        self.head = nn.ParameterList([nn.Parameter(torch.full((3,), value))])

    @property
    def sum(self) -> Tensor:
        return self.encoder[0].sum() + self.head[0].sum()


class Line(Method):
    """The loss is slope x the sum of the student's numbers, and of the critic's; all is noted."""

    class Settings(MethodSettings):
        streams = {"labeled": StreamSpec(labels=True, views=("weak",))}
        teachers = ("teacher",)

    def __init__(self) -> None:
        super().__init__()
        self.student, self.critic, self.teacher = Point(1.0), Point(2.0), Point(3.0)
        self.slope = 1.0
        self.notes: list[str] = []
        self.ticks: list[StepContext] = []

    def passes(self, step: int) -> tuple[Pass, ...]:
        return (Pass("first", {"student"}), Pass("second", {"critic"}))

    def optimizers(self) -> Mapping[str, OptimizerSpec]:
        return {"main": OptimizerSpec(("student",)), "critic": OptimizerSpec(("critic",), schedule=FLAT)}

    def counts(self, batches: Mapping[str, Batch]) -> Mapping[str, Tensor]:
        return {"images": batches["labeled"].positions.sum()}

    def forward(self, batches: Mapping[str, Batch], pass_name: str, context: StepContext) -> dict[str, Tensor]:
        positions = batches["labeled"].positions.tolist()
        self.notes.append(f"{pass_name} {context.step} {positions}")
        self.ticks.append(context)
        if pass_name == "first":
            context.carry["student"] = self.student.sum
            return {"down": self.slope * self.student.sum, "other": 0.0 * self.critic.sum}
        assert not context.carry["student"].requires_grad
        return {"critic": self.critic.sum * context.carry["student"].sign()}

    def after_step(self, context: StepContext) -> None:
        self.notes.append(f"after {context.step} {len(context.carries)}")
        self.ticks.append(context)


@dataclass
class Numbers:
    """A stream of batches without images."""

    batch: int = 4
    asked: list[tuple[int, int]] = field(default_factory=list)
    closed: bool = False

    def batches(
        self, first_step: int, steps: int, accumulate: int, rank: int, world: int, device: torch.device
    ) -> Iterator[Batch]:
        self.asked.append((first_step, steps))
        size = self.batch // accumulate
        try:
            for number in range(first_step * accumulate, steps * accumulate):
                yield Batch({}, torch.arange(number * size, (number + 1) * size))
        finally:
            self.closed = True


def settings(**changes: object) -> FitSettings:
    return FitSettings(**{"steps": 4, "optimizer": PLAIN, "schedule": FLAT, "log_every": 1, **changes})


def run(
    line: Line | None = None, callbacks: Callbacks | None = None, stop_at: int | None = None, **changes: object
) -> Progress:
    return fit(
        line or Line(),
        {"labeled": Numbers()},
        settings(**changes),
        seed=1,
        device=CPU,
        callbacks=callbacks,
        stop_at=stop_at,
    )


def test_a_step_in_order() -> None:
    line = Line()
    run(line, steps=2, accumulate=2)
    assert line.notes == [
        "first 0 [0, 1]", "second 0 [0, 1]", "first 0 [2, 3]", "second 0 [2, 3]", "after 0 2",
        "first 1 [4, 5]", "second 1 [4, 5]", "first 1 [6, 7]", "second 1 [6, 7]", "after 1 2",
    ]  # fmt: skip


def test_ticks_say_where_the_run_stands() -> None:
    line = Line()
    run(line, steps=2, accumulate=2)
    first, _, third, _, after = line.ticks[5:]
    assert (first.step, first.total, first.seed, first.pass_name) == (1, 2, 1, "first")
    assert first.progress == 0.5
    assert [(context.slice, context.slices) for context in (first, third)] == [(0, 2), (1, 2)]
    assert first.totals["images"] == 4 + 5 + 6 + 7, "of the whole step, known in its first part"
    assert first.normalizer("images") == 11
    assert after.totals == first.totals
    assert first.carry is not third.carry
    assert after.carries == (first.carry, third.carry)
    assert first.carry["student"] == pytest.approx(5 * (1 - 0.1))


def test_all_backwards_come_before_all_steps() -> None:
    """The second pass sees the student of the first: no optimizer steps in between."""
    line = Line()
    run(line, steps=1, accumulate=2)
    assert [context.carry["student"].item() for context in line.ticks[:-1]] == [5.0] * 4


def test_a_net_whose_pass_is_over_is_left_alone() -> None:
    """Without a gradient, not with one of 0: weight decay and momentum would go on."""

    class Gated(Line):
        def passes(self, step: int) -> tuple[Pass, ...]:
            return super().passes(step)[: 2 if step == 0 else 1]

    optimizer = PLAIN.model_copy(update={"weight_decay": 0.1, "momentum": 0.9})
    once, gated = Gated(), Gated()
    run(once, steps=1, optimizer=optimizer)
    run(gated, steps=4, optimizer=optimizer)
    assert torch.equal(gated.critic.head[0], once.critic.head[0])
    assert not torch.equal(gated.student.head[0], once.student.head[0])


def test_rates_follow_their_schedules_and_the_encoder_its_ratio() -> None:
    line = Line()
    optimizer = PLAIN.model_copy(update={"encoder_lr_ratio": 0.5})
    run(line, optimizer=optimizer, schedule=ScheduleSettings(kind="poly", power=2.0, warmup=1, warmup_ratio=0.25))
    gone = 0.25 + 1.0 + (2 / 3) ** 2 + (1 / 3) ** 2
    assert torch.allclose(line.student.head[0], torch.tensor(1 - 0.1 * gone))
    assert torch.allclose(line.student.encoder[0], torch.tensor(1 - 0.05 * gone))
    assert torch.allclose(line.critic.head[0], torch.tensor(2 - 0.1 * 4)), "its own schedule"


@pytest.mark.parametrize("accumulate", [1, 2, 4])
def test_micro_batches_are_averaged(accumulate: int) -> None:
    line = Line()
    run(line, steps=1, accumulate=accumulate)
    assert torch.allclose(line.student.head[0], torch.tensor(0.9))
    assert torch.allclose(line.critic.encoder[0], torch.tensor(1.9))


def test_gradients_are_clipped_to_a_norm_for_each_optimizer() -> None:
    line = Line()
    line.slope = 100.0
    run(line, steps=1, clip=1.0)
    moved = torch.cat([1 - line.student.encoder[0], 1 - line.student.head[0]])
    assert torch.allclose(moved.norm(), torch.tensor(0.1), rtol=1e-3)
    moved = torch.cat([2 - line.critic.encoder[0], 2 - line.critic.head[0]])
    assert torch.allclose(moved.norm(), torch.tensor(0.1), rtol=1e-3), "not with the student's"
    line = Line()
    run(line, steps=1, clip=100.0)
    assert torch.allclose(line.student.head[0], torch.tensor(0.9)), "a small gradient is left as it is"


def test_a_pass_reaches_only_what_it_trains_and_gives_back_what_it_held() -> None:
    line = Line()
    line.student.head[0].requires_grad_(False)  # frozen by the method
    seen: list[list[bool]] = []
    original = line.forward

    def spy(batches: Mapping[str, Batch], pass_name: str, context: StepContext) -> dict[str, Tensor]:
        seen.append([p.requires_grad for p in line.parameters()])
        return original(batches, pass_name, context)

    line.forward = spy  # type: ignore[method-assign]
    run(line, steps=1)
    #       student encoder, head; critic encoder, head; teacher encoder, head
    assert seen == [[True, False, False, False, False, False], [False, False, True, True, False, False]]
    assert [p.requires_grad for p in line.parameters()] == [True, False, True, True, False, False]
    assert torch.equal(line.student.head[0], torch.ones(3))
    assert torch.equal(line.teacher.head[0], torch.full((3,), 3.0))


def test_what_a_pass_held_is_given_back_after_an_error() -> None:
    line = Line()

    def fail(batches: Mapping[str, Batch], pass_name: str, context: StepContext) -> dict[str, Tensor]:
        raise ZeroDivisionError

    line.forward = fail  # type: ignore[method-assign]
    with pytest.raises(ZeroDivisionError):
        run(line)
    assert all(p.requires_grad for p in line.critic.parameters())
    assert not torch.are_deterministic_algorithms_enabled()


def test_teachers_stay_in_evaluation_mode() -> None:
    line = Line()
    modes: list[tuple[bool, bool]] = []
    callbacks = Callbacks(on_evaluate=lambda step: modes.append((line.student.training, line.teacher.training)) or 0.0)  # type: ignore[func-returns-value]
    run(line, callbacks)
    assert modes == [(False, False)]
    assert (line.training, line.student.training, line.teacher.training) == (True, True, False)


def test_training_is_deterministic_and_leaves_the_switches_as_they_were() -> None:
    line = Line()
    seen: list[bool] = []
    line.after_step = lambda context: seen.append(torch.are_deterministic_algorithms_enabled())  # type: ignore[method-assign]
    run(line, steps=1)
    assert seen == [True]
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]


def test_precision_is_the_nets_and_fp16_needs_a_gpu() -> None:
    line = Line()
    line.student.precision = "fp32"  # type: ignore[assignment]
    run(line, steps=1, precision="bf16")
    assert line.student.precision == "bf16"
    with raises_code("device-unavailable", "fp16") as raised:
        run(precision="fp16")
    assert "bf16" in raised.value.remedy


def test_streams_are_asked_once_and_closed() -> None:
    stream = Numbers()
    fit(Line(), {"labeled": stream}, settings(), seed=1, device=CPU)
    assert stream.asked == [(0, 4)]
    assert stream.closed


# Evaluation, early stopping, checkpoints


class Scores:
    """Scores to be handed out, and what the loop made of them."""

    def __init__(self, *scores: float) -> None:
        self.scores = list(scores)
        self.evaluated: list[int] = []
        self.kept: list[int] = []
        self.begun: list[int] = []
        self.logged: list[dict] = []

    def callbacks(self, every: int = 1) -> Callbacks:
        return Callbacks(self._score, every, self.kept.append, self.begun.append, self.logged.append)

    def _score(self, step: int) -> float:
        self.evaluated.append(step)
        return self.scores[len(self.evaluated) - 1]


def test_the_best_is_kept_and_an_equal_score_is_not_better() -> None:
    scores = Scores(0.2, 0.5, 0.5, 0.4)
    progress = run(callbacks=scores.callbacks())
    assert scores.evaluated == [1, 2, 3, 4]
    assert scores.kept == [1, 2]
    assert progress == Progress(4, 0.5, 2, 2)


def test_a_score_of_nothing_is_worse_than_any() -> None:
    scores = Scores(math.nan, 0.1, math.nan, 0.0)
    progress = run(callbacks=scores.callbacks())
    assert scores.kept == [1, 2]
    assert (progress.best_score, progress.evaluations_since_best) == (0.1, 2)


@pytest.mark.parametrize(("every", "steps"), [(0, [4]), (2, [2, 4]), (3, [3, 4]), (9, [4])])
def test_the_end_is_always_evaluated(every: int, steps: list[int]) -> None:
    scores = Scores(*[0.0] * 4)
    run(callbacks=scores.callbacks(every))
    assert scores.evaluated == steps


def test_patience() -> None:
    scores = Scores(0.5, 0.4, 0.6, 0.5, 0.6, 0.9)
    progress = run(callbacks=scores.callbacks(), steps=6, patience=2)
    assert scores.evaluated == [1, 2, 3, 4, 5]
    assert progress == Progress(5, 0.6, 3, 2)


@pytest.mark.parametrize(("every", "steps"), [(0, [4]), (2, [2, 4]), (3, [3, 4])])
def test_audits_come_in_a_rhythm_of_their_own_and_leave_the_method_training(every: int, steps: list[int]) -> None:
    audited, scores, method = [], Scores(*[0.0] * 4), Line()

    def audit(step: int) -> bool:
        assert not method.training
        audited.append((step, len(scores.evaluated)))
        return False

    progress = run(method, callbacks=replace(scores.callbacks(), on_audit=audit, audit_every=every))
    assert audited == [(step, step) for step in steps], "after the evaluation of the step"
    assert method.training
    assert not progress.stopped


def test_an_audit_may_end_the_training_and_a_resumed_run_stays_ended(tmp_path: Path) -> None:
    audited: list[int] = []

    def audit(step: int) -> bool:
        audited.append(step)
        return step >= 2

    def trained() -> Progress:
        given = settings(steps=6, checkpoint_every=1)
        callbacks = Callbacks(on_audit=audit, audit_every=1)
        streams = {"labeled": Numbers()}
        return fit(Line(), streams, given, seed=1, device=CPU, callbacks=callbacks, checkpoints=Checkpoints(tmp_path))

    progress = trained()
    assert (progress.step, progress.stopped) == (2, True)
    assert trained() == progress
    assert audited == [1, 2]


def test_checkpoints_come_in_rhythm_and_at_the_end(tmp_path: Path) -> None:
    said: list[int] = []
    store = Checkpoints(tmp_path, 9)
    fit(Line(), {"labeled": Numbers()}, settings(steps=7, checkpoint_every=3), seed=1, device=CPU, checkpoints=store)
    assert store.steps() == [3, 6, 7]
    scores = Scores()
    callbacks = Callbacks(on_begin=scores.begun.append, message=lambda text: said.append(text))  # type: ignore[arg-type]
    again = Line()
    progress = fit(
        again, {"labeled": Numbers()}, settings(steps=7), seed=1, device=CPU, checkpoints=store, callbacks=callbacks
    )
    assert (progress.step, again.notes, scores.begun) == (7, [], [7]), "a finished stage is not trained again"
    assert said == ["resuming after step 7"]
    assert torch.allclose(again.student.head[0], torch.tensor(1 - 0.7))


@pytest.mark.parametrize(("steps", "rhythm"), [(1, 1), (19, 1), (100, 5), (10_000, 500), (1_000_000, 500)])
def test_how_often_checkpoints_come_unasked(steps: int, rhythm: int) -> None:
    assert FitSettings(steps=steps).checkpoint_rhythm() == rhythm
    assert FitSettings(steps=steps, checkpoint_every=7).checkpoint_rhythm() == 7


def test_a_smoke_run_stops_early_on_the_schedule_of_the_whole(tmp_path: Path) -> None:
    line, scores = Line(), Scores(*[0.0] * 9)
    poly = ScheduleSettings(kind="poly", power=1.0)
    progress = run(line, scores.callbacks(3), stop_at=2, steps=10, schedule=poly)
    assert progress.step == 2
    assert scores.evaluated == []
    assert torch.allclose(line.student.head[0], torch.tensor(1 - 0.1 * (1 + 0.9)))
    assert [record["step"] for record in scores.logged] == [1, 2]


def test_a_smoke_run_is_no_longer_than_the_run() -> None:
    line, stream = Line(), Numbers()
    progress = fit(line, {"labeled": stream}, settings(steps=2), seed=1, device=CPU, stop_at=5)
    assert progress.step == 2
    assert stream.asked == [(0, 2)]
    assert line.notes[-1] == "after 1 1"


def test_a_record_holds_the_rate_of_its_own_step() -> None:
    scores, poly = Scores(), ScheduleSettings(kind="poly", power=1.0)
    run(callbacks=Callbacks(log_line=scores.logged.append), steps=4, schedule=poly)
    assert [record["rate"]["main"] for record in scores.logged] == pytest.approx([1.0, 0.75, 0.5, 0.25])


def test_log_records(tmp_path: Path) -> None:
    scores = Scores()
    optimizer = PLAIN.model_copy(update={"lr": 1.0})
    run(callbacks=Callbacks(log_line=scores.logged.append), steps=5, log_every=2, optimizer=optimizer)
    assert [record["step"] for record in scores.logged] == [2, 4, 5]
    first = scores.logged[0]
    assert first["steps"] == 5
    assert first["terms"]["down"] == pytest.approx((5 + 0) / 2), "a mean over the steps since the last line"
    assert first["terms"].keys() == {"down", "other", "critic"}
    assert first["rate"] == {"main": 1.0, "critic": 1.0}


# The clock


def draw(generator: torch.Generator) -> list[float]:
    return torch.rand(4, generator=generator).tolist()


def context(**changes: object) -> StepContext:
    return StepContext(
        **{"step": 1, "total": 9, "seed": 3, "device": CPU, "pass_name": "a", "slice": 0, "slices": 2, **changes}
    )


def test_random_numbers_are_a_function_of_the_position() -> None:
    base = context()
    assert draw(base.generator) == draw(context().generator)
    assert draw(base.generator) != draw(context().generator), "one generator goes on"
    for change in ({"step": 2}, {"seed": 4}, {"pass_name": "b"}, {"slice": 1}):
        assert draw(context(**change).generator) != draw(context().generator)
        assert context(**change).global_seed != base.global_seed
    assert draw(context(slice=1).shared_generator) == draw(context().shared_generator)
    assert draw(context().shared_generator) != draw(context().generator)
    assert draw(context(step=2).shared_generator) != draw(context().shared_generator)


def test_a_share_is_at_least_one_label_of_the_step() -> None:
    assert context(totals={"n": torch.tensor(6.0)}).normalizer("n") == 3.0
    assert context(totals={"n": torch.tensor(0.0)}).normalizer("n") == 0.5


def test_what_is_carried_is_detached_whichever_way_it_comes_in() -> None:
    value = torch.ones(2, requires_grad=True) * 2
    carry = Carry(a=value)
    carry["b"] = value
    carry.update(c=value)
    carry.setdefault("d", value)
    assert not any(held.requires_grad for held in carry.values())
    assert sorted(carry) == ["a", "b", "c", "d"]


# What methods are made of


def test_learned_state_has_everything_but_the_teachers() -> None:
    line = Line()
    state = line.learned_state()
    assert {name.partition(".")[0] for name in state} == {"student", "critic"}
    with torch.no_grad():
        line.teacher.head[0].fill_(9.0)
    other = Line()
    with torch.no_grad():
        other.student.head[0].fill_(7.0)
    line.load_learned_state(other.learned_state())
    assert torch.equal(line.student.head[0], torch.full((3,), 7.0))
    assert torch.equal(line.teacher.head[0], torch.full((3,), 9.0))


def test_state_of_another_method_is_refused() -> None:
    line = Line()
    state = line.learned_state()
    with pytest.raises(RuntimeError, match=r"student\.head\.0"):
        line.load_learned_state({name: value for name, value in state.items() if name != "student.head.0"})
    with pytest.raises(RuntimeError, match="more"):
        line.load_learned_state({**state, "more": torch.zeros(1)})
    with pytest.raises(RuntimeError, match="size mismatch"):
        line.load_learned_state({**state, "student.head.0": torch.zeros(4)})


def test_accumulation_equals_the_whole_batch_for_every_number_of_parts() -> None:
    def trained(accumulate: int) -> dict[str, Tensor]:
        toy = Toy(norm="group")
        fit(toy, {"labeled": ToyStream()}, settings(accumulate=accumulate), seed=3, device=CPU)
        return toy.state_dict()

    whole = trained(1)
    for accumulate in (2, 4, 8):
        parts = trained(accumulate)
        for name, value in whole.items():
            torch.testing.assert_close(parts[name], value, atol=1e-6, rtol=1e-6, msg=f"{name} in {accumulate} parts")
