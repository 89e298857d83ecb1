"""A recipe's ladder as ordinary stages: one or more train stages and an evaluate stage for each rung and seed.

A ladder is therefore resumed, shared and cached like any stage: a rung's artefact is identified by its inputs and
settings, not by the ladder that contains it.

    label-RUNG                        the teacher's pseudo labels, for the rung `pseudo_labels`
    RUNG-lr4e-3, score-RUNG-lr4e-3    trials, where the ladder tunes
    RUNG-SEED, score-RUNG-SEED        the comparison: all rungs at the first seed, then all at the second
    RUNG-SEED-LOCAL, score-RUNG-SEED  the same for a rung with its own stages, LOCAL being their names in the rung
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from pydantic import TypeAdapter

from tutelage.data.settings import StreamSettings
from tutelage.engine.settings import FitSettings, MethodSettings
from tutelage.methods import METHODS, find_settings
from tutelage.recipe.base import StageSettings, listed
from tutelage.recipe.ladder_settings import PSEUDO_LABELS, LadderSettings, Rung
from tutelage.recipe.leaks import without_leaks
from tutelage.recipe.references import rename_stages
from tutelage.recipe.schema import Recipe
from tutelage.recipe.stages import Stage
from tutelage.recipe.stages.annotate import AnnotateStage
from tutelage.recipe.stages.evaluate import EvaluateStage
from tutelage.recipe.stages.train import Course, MethodChoice, TrainStage

TEACHER_SCORE = "score-teacher"
NET = "net"
"""The label of the only net of each evaluate stage: a renamed rung keeps its scores."""

Values = Mapping[str, Any]
"""Key of the training → value."""


@dataclass(frozen=True)
class Attempt:
    """One training of a rung, with the names of its stages."""

    rung: str
    train: str
    """The stage whose net is scored."""
    score: str
    values: Values
    """The tried or chosen training values."""
    trained: tuple[str, ...]
    """All train stages, in order; several only for rungs with their own stages."""
    others: tuple[str, ...] = ()
    """The other stages: labels, fits, transformed data."""


@dataclass(frozen=True)
class Expanded:
    """A recipe with the ladder's stages appended."""

    recipe: Recipe
    attempts: dict[tuple[str, int], Attempt]
    """(rung, seed) → its stages; rungs not yet tuned are missing."""
    trials: dict[str, list[Attempt]]
    """Rung → its trials, in the order of the recipe; none without `tune`."""


def expand(recipe: Recipe, chosen: Mapping[str, Values]) -> Expanded:
    """The recipe with the stages of its ladder; ``chosen``: the values of the tuned rungs."""
    ladder = recipe.ladder
    assert ladder is not None
    stages: dict[str, StageSettings] = dict(recipe.stages)
    if ladder.teacher is not None:
        stages[TEACHER_SCORE] = _score(ladder, ladder.teacher, ladder.score.data)
    for name, rung in ladder.rungs.items():
        if rung.name == PSEUDO_LABELS:
            stages[label_stage_name(name)] = label_stage(ladder, name)
    trials: dict[str, list[Attempt]] = {}
    if ladder.tune is not None:
        for name in ladder.rungs:
            trials[name] = []
            for prefix, values in _trials(ladder, name):
                made = rung_stages(ladder, name, prefix, ladder.tune.seed, values, ladder.tune.steps)
                trials[name].append(_attempt(ladder, name, prefix, values, made))
                stages |= made
                stages[f"score-{prefix}"] = _score(ladder, _scored(ladder, trials[name][-1]), ladder.tune.data)
    attempts = {}
    for seed in ladder.seeds:
        for name in ladder.rungs:
            if ladder.tune is None or name in chosen:
                prefix, values = f"{name}-{seed}", chosen.get(name, {})
                made = rung_stages(ladder, name, prefix, seed, values)
                attempts[name, seed] = _attempt(ladder, name, prefix, values, made)
                stages |= made
                net = _scored(ladder, attempts[name, seed])
                stages[f"score-{prefix}"] = _score(ladder, net, ladder.score.data, ladder.score.merged)
    expanded = recipe.model_copy(update={"stages": stages, "ladder": None})
    return Expanded(without_leaks(expanded), attempts, trials)


def rung_stages(
    ladder: LadderSettings, name: str, prefix: str, seed: int, values: Values, steps: int | None = None
) -> dict[str, StageSettings]:
    """Name → stage, for one training of a rung; with ``steps`` student updates where given.

    Raises ``KeyError`` for an unknown method, ``ValidationError`` for invalid settings.
    """
    rung = ladder.rungs[name]
    if rung.stages:
        return {
            f"{prefix}-{local}": chain_stage(ladder, name, local, prefix, seed, values, steps) for local in rung.stages
        }
    shortened = {} if steps is None else {"steps": steps}
    return {prefix: train_stage(ladder, name, seed, {**values, **shortened})}


def _attempt(
    ladder: LadderSettings, name: str, prefix: str, values: Values, made: Mapping[str, StageSettings]
) -> Attempt:
    trained = tuple(it for it, stage in made.items() if stage.trains)
    others = tuple(it for it in made if it not in trained)
    rung = ladder.rungs[name]
    if rung.name == PSEUDO_LABELS:
        others = (label_stage_name(name),)
    local = rung.scored.partition(".")[0]
    scored = f"{prefix}-{local}" if local in rung.stages else trained[-1] if trained else prefix
    return Attempt(name, scored, f"score-{prefix}", values, trained, others)


def untuned(ladder: LadderSettings) -> dict[str, Values]:
    """Every rung with the first values to try: for plans and checks before the trials."""
    return {} if ladder.tune is None else {name: next(combinations(ladder)) for name in ladder.rungs}


def new_stages(recipe: Recipe) -> list[str]:
    """The names of the stages that the ladder adds."""
    assert recipe.ladder is not None
    alone = recipe.model_copy(update={"stages": {}})
    return list(expand(alone, untuned(recipe.ladder)).recipe.stages)


def train_stage(ladder: LadderSettings, name: str, seed: int, values: Values) -> TrainStage:
    """The train stage of a rung. Raises ``KeyError`` for an unknown method, ``ValidationError`` for bad settings."""
    rung = ladder.rungs[name]
    choice = method_of(rung)
    spec = find_settings(choice.name)
    shared = course(ladder, rung.training, values)
    streams = _streams(shared, spec)
    if rung.name == PSEUDO_LABELS and "labeled" in streams:
        streams["labeled"] = _pooled(streams["labeled"], label_stage_name(name))
    return TrainStage.model_validate(
        {
            **_shared(shared),
            "method": choice,
            "nets": {"student": ladder.student, **rung.nets},
            "inputs": _teacher(ladder, spec),
            "streams": streams,
            "seed": seed,
        }
    )


def methods_of(rung: Rung) -> list[str]:
    """The names of all methods that train for a rung."""
    if not rung.stages:
        return [method_of(rung).name]
    chosen = [stage["method"] for stage in rung.stages.values() if "method" in stage]
    return [str(it["name"] if isinstance(it, Mapping) else it) for it in chosen]


def method_of(rung: Rung) -> MethodChoice:
    """The method that trains a rung, with its settings."""
    if rung.name == PSEUDO_LABELS:
        return MethodChoice(name="supervised")
    return MethodChoice.model_validate({"name": rung.name, **rung.own()})


def chain_stage(
    ladder: LadderSettings, name: str, local: str, prefix: str, seed: int, values: Values, steps: int | None = None
) -> StageSettings:
    """The stage ``local`` of a rung; references to the rung's other stages get ``prefix``.

    A train stage takes unset keys from the ladder; the trial's ``values`` apply to every train stage. ``steps``
    shortens all stages in proportion. Raises as :func:`rung_stages`.
    """
    rung = ladder.rungs[name]
    content = {"kind": "train", **rung.stages[local]}
    kind = str(content["kind"])
    if kind == "fit":  # a transform keeps the recipe's seed, so that it runs once for all
        content = {"seed": seed, **content}
    stage = _chained(ladder, rung, content, seed, values, steps) if kind == "train" else STAGE.validate_python(content)

    def change(reference: str) -> str:
        head, dot, rest = reference.partition(".")
        return f"{prefix}-{head}{dot}{rest}" if head in rung.stages else reference

    return rename_stages(stage, change)


def _chained(
    ladder: LadderSettings, rung: Rung, content: Mapping[str, Any], seed: int, values: Values, steps: int | None
) -> TrainStage:
    """A train stage of a rung with its own stages, completed from the ladder."""
    chosen = content.get("method")
    chosen = {"name": chosen} if isinstance(chosen, str) else chosen
    named = chosen.get("name") if isinstance(chosen, Mapping) else None
    if named not in METHODS:  # reported by the check of the settings
        return TrainStage.model_validate({"streams": {}, **content, "method": chosen})
    spec = find_settings(str(named))
    own = {key: value for key, value in content.items() if key in Course.model_fields}
    shared = course(ladder, merged(rung.training, own), values)
    if steps is not None:
        shared = shared.model_copy(update={"steps": max(1, shared.steps * steps // ladder.training.steps)})
    return TrainStage.model_validate(
        {
            "seed": seed,
            **{key: value for key, value in content.items() if key not in own},
            **_shared(shared),
            "method": chosen,
            "nets": {"student": ladder.student, **rung.nets, **content.get("nets", {})},
            "inputs": {**_teacher(ladder, spec), **content.get("inputs", {})},
            "streams": _streams(shared, spec),
        }
    )


STAGE: TypeAdapter[StageSettings] = TypeAdapter(Stage)

CHAINED = ("train", "annotate", "fit", "transform")
"""The kinds of stages that a rung may have."""


def course(ladder: LadderSettings, changes: Values, values: Values) -> Course:
    """The settings of one training except its method. Raises ``ValidationError`` for invalid changes."""
    content = ladder.training.model_dump(exclude_unset=True)
    content = merged(content, changes)
    for key, value in values.items():
        content = merged(content, nested(key, value))
    return Course.model_validate(content)


def _teacher(ladder: LadderSettings, spec: type[MethodSettings]) -> dict[str, str]:
    return {} if ladder.teacher is None or "teacher" not in spec.teachers else {"teacher": ladder.teacher}


def _shared(course: Course) -> dict[str, Any]:
    """The keys that a train stage takes from a course, except its streams."""
    fit = course.model_dump(exclude_unset=True, include=set(FitSettings.model_fields))
    given: dict[str, Any] = {key: getattr(course, key) for key in ("choose", "keep") if key in course.model_fields_set}
    return {**fit, "init": course.init, "evaluate": course.evaluate, **given}


def nested(key: str, value: Any) -> dict[str, Any]:
    """``a.b`` and a value as ``{a: {b: value}}``."""
    for part in reversed(key.split(".")):
        value = {part: value}
    return dict(value)


def merged(content: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with changes merged in, level by level."""
    result = dict(content)
    for key, value in changes.items():
        inner = result.get(key)
        deeper = isinstance(inner, Mapping) and isinstance(value, Mapping)
        result[key] = merged(inner or {}, value) if deeper else value
    return result


def combinations(ladder: LadderSettings) -> Iterator[Values]:
    """All combinations of values that the ladder tries, in the order of the recipe."""
    tried = {} if ladder.tune is None else ladder.tune.values
    for values in itertools.product(*tried.values()):
        yield dict(zip(tried, values, strict=True))


def label_stage_name(rung: str) -> str:
    """The annotate stage of a rung `pseudo_labels`."""
    return f"label-{rung}"


def label_stage(ladder: LadderSettings, name: str) -> AnnotateStage:
    """The annotate stage of a rung `pseudo_labels`. Raises ``ValidationError`` for invalid settings."""
    return AnnotateStage.model_validate({**ladder.rungs[name].own(), "net": ladder.teacher})


def _trials(ladder: LadderSettings, name: str) -> Iterator[tuple[str, Values]]:
    for values in combinations(ladder):
        tag = "-".join(f"{key.rpartition('.')[2]}{_short(value)}" for key, value in values.items())
        yield f"{name}-{tag}", values


def _short(value: Any) -> str:
    """A value as part of a stage's name; different numbers stay different."""
    text = f"{Decimal(repr(value)).normalize():e}" if type(value) in (int, float) else str(value)
    return re.sub(r"[^A-Za-z0-9-]+", "_", text.replace("e+", "e").removesuffix("e0"))


def _scored(ladder: LadderSettings, attempt: Attempt) -> str:
    """The net of a training that is scored."""
    rung = ladder.rungs[attempt.rung]
    head, _, rest = rung.scored.partition(".")
    net = (rest or "student") if head in rung.stages else rung.scored
    return attempt.train if net == "student" else f"{attempt.train}.{net}"


def _score(ladder: LadderSettings, net: str, data: str, merged_as: dict[str, list[str]] | None = None) -> EvaluateStage:
    # Only the mIoU is compared; boundaries and calibration would double the time. Means over subsets are computed from
    # the counts of all classes, so the stage need not contain them; merged classes need counts of their own.
    return EvaluateStage(
        nets={NET: net},
        data=data,
        protocol=ladder.score.protocol,
        boundary=False,
        calibration=False,
        merged=merged_as or {},
    )


def _streams(course: Course, spec: type[MethodSettings]) -> dict[str, StreamSettings]:
    """The streams that a method uses, each with the views that it uses."""
    chosen = {name: stream for name, stream in course.streams.items() if name in spec.streams}
    for name, stream in chosen.items():
        views = {view: it for view, it in stream.views.items() if view in spec.streams[name].known}
        draws_of = stream.draws_of if stream.draws_of in chosen else None
        chosen[name] = stream.model_copy(update={"views": views, "draws_of": draws_of})
    return chosen


def _pooled(stream: StreamSettings, labels: str) -> StreamSettings:
    """The stream with pseudo labels added to its data, in equal parts where the recipe sets no repeats."""
    repeat = [*stream.repeat, 1] if isinstance(stream.repeat, list) else "equal"
    return stream.model_copy(update={"data": [*listed(stream.data), labels], "repeat": repeat})
