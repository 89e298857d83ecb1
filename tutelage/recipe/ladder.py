"""A recipe's ladder as ordinary stages: every rung at every seed is a train stage and an evaluate stage.

So a ladder is resumed, shared and cached like everything else: a rung's artefact is found by what decides it, not by
the ladder that it stands in.

    label-RUNG                        the teacher's labels, for the rung `pseudo_labels`
    RUNG-lr4e-3, score-RUNG-lr4e-3    trials, where the ladder tunes
    RUNG-SEED, score-RUNG-SEED        the comparison: all rungs at the first seed, then all at the second
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from tutelage.data.stream import StreamSettings
from tutelage.engine.contract import Method
from tutelage.engine.loop import FitSettings
from tutelage.recipe.schema import (
    METHODS,
    PSEUDO_LABELS,
    AnnotateStage,
    EvaluateStage,
    Labelling,
    LadderSettings,
    MethodChoice,
    Recipe,
    Rung,
    Stage,
    TrainStage,
    find_method,
)
from tutelage.settings import Settings

TEACHER_SCORE = "score-teacher"
NET = "net"
"""The label of the one net of each evaluate stage: a rung that is renamed keeps its scores."""

Values = Mapping[str, Any]
"""Key of the training → value."""


@dataclass(frozen=True)
class Attempt:
    """One training of a rung, with the names of its stages."""

    rung: str
    train: str
    score: str
    values: Values
    """What was tried, or chosen, of the training."""


@dataclass(frozen=True)
class Expanded:
    """A recipe with the ladder's stages behind its own."""

    recipe: Recipe
    attempts: dict[tuple[str, int], Attempt]
    """(rung, seed) → its stages; rungs that are not tuned yet have none."""
    trials: dict[str, list[Attempt]]
    """Rung → its trials, in the order of the recipe; none without `tune`."""


def expand(recipe: Recipe, chosen: Mapping[str, Values]) -> Expanded:
    """The recipe with the stages of its ladder; ``chosen`` are the values of the rungs that are tuned."""
    ladder = recipe.ladder
    assert ladder is not None
    stages: dict[str, Stage] = dict(recipe.stages)
    if ladder.teacher is not None:
        stages[TEACHER_SCORE] = _score(ladder, ladder.teacher, ladder.score.data)
    for name, rung in ladder.rungs.items():
        if rung.name == PSEUDO_LABELS:
            stages[label_stage_name(name)] = label_stage(ladder, name)
    trials: dict[str, list[Attempt]] = {}
    if ladder.tune is not None:
        for name in ladder.rungs:
            trials[name] = [Attempt(name, stage, f"score-{stage}", it) for stage, it in _trials(ladder, name)]
            for trial in trials[name]:
                shortened = {} if ladder.tune.steps is None else {"steps": ladder.tune.steps}
                stages[trial.train] = train_stage(ladder, name, ladder.tune.seed, {**trial.values, **shortened})
                stages[trial.score] = _score(ladder, _scored(ladder, trial), ladder.tune.data)
    attempts = {}
    for seed in ladder.seeds:
        for name in ladder.rungs:
            if ladder.tune is None or name in chosen:
                stage, values = f"{name}-{seed}", chosen.get(name, {})
                attempts[name, seed] = Attempt(name, stage, f"score-{stage}", values)
                stages[stage] = train_stage(ladder, name, seed, values)
                stages[f"score-{stage}"] = _score(ladder, _scored(ladder, attempts[name, seed]), ladder.score.data)
    return Expanded(recipe.model_copy(update={"stages": stages, "ladder": None}), attempts, trials)


def untuned(ladder: LadderSettings) -> dict[str, Values]:
    """Every rung with the first of the values that would be tried: for plans and checks before there are trials."""
    return {} if ladder.tune is None else {name: next(combinations(ladder)) for name in ladder.rungs}


def new_stages(recipe: Recipe) -> list[str]:
    """The names of the stages that the ladder adds, but for those that are the recipe's own."""
    assert recipe.ladder is not None
    alone = recipe.model_copy(update={"stages": {}})
    return list(expand(alone, untuned(recipe.ladder)).recipe.stages)


def train_stage(ladder: LadderSettings, name: str, seed: int, values: Values) -> TrainStage:
    """The train stage of a rung. Raises ``KeyError`` for an unknown method, ``ValidationError`` for bad settings."""
    rung = ladder.rungs[name]
    choice = method_of(rung)
    method = find_method(choice.name)
    streams = _streams(ladder, method)
    if rung.name == PSEUDO_LABELS and "labeled" in streams:
        streams["labeled"] = _pooled(streams["labeled"], label_stage_name(name))
    teacher = {} if ladder.teacher is None or "teacher" not in method.teachers else {"teacher": ladder.teacher}
    return TrainStage.model_validate(
        {
            **course(ladder, rung.training, values).model_dump(exclude_unset=True),
            **{key: getattr(ladder.training, key) for key in ("init", "evaluate", "keep")},
            "method": choice,
            "nets": {"student": ladder.student, **rung.nets},
            "inputs": teacher,
            "streams": streams,
            "seed": seed,
        }
    )


def method_of(rung: Rung) -> MethodChoice:
    """The method that trains a rung, with its settings."""
    if rung.name == PSEUDO_LABELS:
        return MethodChoice(name="supervised")
    return MethodChoice.model_validate({"name": rung.name, **rung.settings()})


def course(ladder: LadderSettings, changes: Values, values: Values) -> FitSettings:
    """Steps, optimizer and so on of one training. Raises ``ValidationError`` for changes that cannot be meant."""
    content = ladder.training.model_dump(exclude_unset=True, include=set(FitSettings.model_fields))
    content = merged(content, changes)
    for key, value in values.items():
        content = merged(content, nested(key, value))
    return FitSettings.model_validate(content)


def nested(key: str, value: Any) -> dict[str, Any]:
    """``a.b`` and a value as ``{a: {b: value}}``."""
    for part in reversed(key.split(".")):
        value = {part: value}
    return dict(value)


def merged(content: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with changes put in, level by level."""
    result = dict(content)
    for key, value in changes.items():
        inner = result.get(key)
        deeper = isinstance(inner, Mapping) and isinstance(value, Mapping)
        result[key] = merged(inner or {}, value) if deeper else value
    return result


def combinations(ladder: LadderSettings) -> Iterator[Values]:
    """Everything that the ladder tries, in the order of the recipe."""
    tried = {} if ladder.tune is None else ladder.tune.values
    for values in itertools.product(*tried.values()):
        yield dict(zip(tried, values, strict=True))


def label_stage_name(rung: str) -> str:
    """The annotate stage of a rung `pseudo_labels`."""
    return f"label-{rung}"


def label_stage(ladder: LadderSettings, name: str) -> AnnotateStage:
    """The annotate stage of a rung `pseudo_labels`. Raises ``ValidationError`` for settings that cannot be meant."""
    return AnnotateStage.model_validate({**ladder.rungs[name].settings(), "net": ladder.teacher})


def known_rungs() -> Collection[str]:
    """What a rung may have as its `name`."""
    return [*METHODS, PSEUDO_LABELS]


def rung_settings(name: str) -> type[Settings]:
    """The settings of a method, or of `pseudo_labels`."""
    return Labelling if name == PSEUDO_LABELS else find_method(name).Settings


def _trials(ladder: LadderSettings, name: str) -> Iterator[tuple[str, Values]]:
    for values in combinations(ladder):
        tag = "-".join(f"{key.rpartition('.')[2]}{_short(value)}" for key, value in values.items())
        yield f"{name}-{tag}", values


def _short(value: Any) -> str:
    """A value as a part of a stage's name; different numbers stay different."""
    text = f"{Decimal(repr(value)).normalize():e}" if type(value) in (int, float) else str(value)
    return re.sub(r"[^A-Za-z0-9-]+", "_", text.replace("e+", "e").removesuffix("e0"))


def _scored(ladder: LadderSettings, attempt: Attempt) -> str:
    """The net of a training that is compared."""
    net = ladder.rungs[attempt.rung].scored
    return attempt.train if net == "student" else f"{attempt.train}.{net}"


def _score(ladder: LadderSettings, net: str, data: str) -> EvaluateStage:
    # Nothing but the mIoU is compared; boundaries and calibration cost as much time again.
    return EvaluateStage(nets={NET: net}, data=data, protocol=ladder.score.protocol, boundary=False, calibration=False)


def _streams(ladder: LadderSettings, method: type[Method]) -> dict[str, StreamSettings]:
    """The ladder's streams that a method has, each with the views that it has there."""
    chosen = {name: stream for name, stream in ladder.training.streams.items() if name in method.streams}
    for name, stream in chosen.items():
        views = {view: it for view, it in stream.views.items() if view in method.streams[name].views}
        draws_of = stream.draws_of if stream.draws_of in chosen else None
        chosen[name] = stream.model_copy(update={"views": views, "draws_of": draws_of})
    return chosen


def _pooled(stream: StreamSettings, labels: str) -> StreamSettings:
    """The stream with pseudo labels beside its own data."""
    data = [stream.data] if isinstance(stream.data, str) else stream.data
    repeat = None if stream.repeat is None else [*stream.repeat, 1]
    return stream.model_copy(update={"data": [*data, labels], "repeat": repeat})
