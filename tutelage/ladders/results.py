"""Collects a ladder's result from its finished artefacts, and writes it: `ladder.json`, `ladder.md`, `ladder.html`."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray

from tutelage.engine.settings import FitSettings
from tutelage.evaluation.class_groups import ClassGroups, merged_names
from tutelage.evaluation.comparison import Scored, Side, read_scored
from tutelage.evaluation.evaluate import blocks_of, under_names
from tutelage.evaluation.intervals import Gain, gap_share, miou_of_counts, paired_bootstrap
from tutelage.evaluation.verdict import holm, judge
from tutelage.ladders import page as words
from tutelage.ladders.page import (
    GroupedResult,
    LadderContent,
    RungCost,
    RungGrouping,
    RungResult,
    Share,
    TeacherResult,
    Trial,
)
from tutelage.methods import find_settings
from tutelage.nets.build import build
from tutelage.nets.cost import parameters
from tutelage.nets.devices import find_device
from tutelage.nets.settings import NetSettings
from tutelage.pipeline.builder import Builder
from tutelage.pipeline.costs import environment
from tutelage.recipe.ladder import NET, TEACHER_SCORE, Attempt, Expanded, Values, method_of
from tutelage.recipe.ladder_settings import PSEUDO_LABELS, LadderSettings
from tutelage.recipe.leaks import ON_TARGET, chosen_on_target, is_bare
from tutelage.recipe.loading import resolved
from tutelage.recipe.schema import Recipe
from tutelage.runs.atomic import write_json, write_text
from tutelage.runs.store import Artefact
from tutelage.settings import plain, references

COST_FORMAT = 1
"""Increment it when costs are measured differently; older costs are then measured again."""


@dataclass(frozen=True)
class LadderFiles:
    """The files of a ladder's result in a run folder."""

    out: Path

    @property
    def json(self) -> Path:
        """Everything."""
        return self.out / "ladder.json"

    @property
    def markdown(self) -> Path:
        """Table and sentences as Markdown."""
        return self.out / "ladder.md"

    @property
    def page(self) -> Path:
        """The page."""
        return self.out / "ladder.html"


@dataclass(frozen=True)
class Tuned:
    """The trials of one rung."""

    scores: tuple[float | None, ...]
    """mIoU by trial; None: not finished; one that diverged has 0."""
    values: Values | None
    """The values of the best trial, once all are finished."""
    tie: bool = False
    """Whether another trial has the same score."""


def tuned(builder: Builder, expanded: Expanded) -> dict[str, Tuned]:
    """The state of every rung's trials."""
    result = {}
    for name, trials in expanded.trials.items():
        scores = [
            0.0
            if any(builder.artefacts[it].diverged for it in trial.trained)
            else _miou(builder.artefacts[trial.score])
            for trial in trials
        ]
        finished = [score for score in scores if score is not None]
        if len(finished) < len(scores):
            result[name] = Tuned(tuple(scores), None)
        else:
            best = finished.index(max(finished))
            result[name] = Tuned(tuple(scores), trials[best].values, finished.count(finished[best]) > 1)
    return result


def _miou(artefact: Artefact) -> float | None:
    """The score of a finished evaluate stage; 0 where mIoU is undefined."""
    if artefact.fault() is not None:
        return None
    return _number(read_scored(artefact.score(NET)).miou) or 0.0


def cost_of(builder: Builder, expanded: Expanded, rung: str, place: int = 0) -> Mapping[str, Any] | None:
    """The measured cost of a step of a rung's training number ``place``; the same for all seeds."""
    for (name, _), attempt in expanded.attempts.items():
        if name == rung:
            found = _read(builder.artefacts[attempt.trained[place]].cost)
            if found.get("format") == COST_FORMAT:
                return found
    return None


def gather(builder: Builder, recipe: Recipe, expanded: Expanded) -> LadderContent:
    """The content of the table; ``builder`` holds the artefacts of the ladder's stages."""
    ladder = recipe.ladder
    assert ladder is not None
    trials = tuned(builder, expanded)
    runs = {name: _scored(builder, expanded, name) for name in ladder.rungs}
    rungs = [_rung(builder, ladder, expanded, name, runs, trials.get(name)) for name in ladder.rungs]
    by_name = _adjusted(ladder, {rung.name: rung.comparison for rung in rungs})
    rungs = [replace(rung, adjusted_p=by_name.get(rung.name)) for rung in rungs]
    first = next((run for found in runs.values() for run in found.values()), None)
    dataset = builder.dataset(ladder.score.data)
    return LadderContent(
        title=recipe.name,
        rungs=tuple(rungs),
        plain=ladder.plain,
        worth=ladder.worth / 100,
        student=ladder.student,
        student_parameters=_parameters(builder, builder.recipe.nets[ladder.student]),
        teacher=_teacher(builder, ladder),
        steps=ladder.training.steps,
        seeds=tuple(ladder.seeds),
        data=ladder.score.data,
        images=len(dataset) if first is None else len(first.images),
        fingerprint=dataset.fingerprint,
        protocol=ladder.score.protocol.describe(),
        protocol_key=ladder.score.protocol.key(),
        oracle=ladder.oracle or "",
        tuned_on="" if ladder.tune is None else ladder.tune.data,
        tie=tuple(name for name, found in trials.items() if found.tie),
        classes=len(builder.classes.names),
        subsets=tuple(
            _grouping(ladder, name, {}, classes, _subset_counts(runs, classes), _blocks(runs))
            for name, classes in ladder.score.subsets.items()
        ),
        merged=_merged(builder, ladder, runs),
        environment=environment(find_device(recipe.run.device)),
        recipe=resolved(recipe),
    )


def _adjusted(ladder: LadderSettings, comparisons: Mapping[str, Gain | None]) -> dict[str, float]:
    """p values, corrected for the number of compared rungs, which excludes the oracle."""
    found = {
        name: it.p_value
        for name, it in comparisons.items()
        if it is not None and it.p_value is not None and name != ladder.oracle
    }
    return dict(zip(found, holm(list(found.values())), strict=True))


_Counts = Mapping[str, Mapping[int, NDArray[np.int64]]]
"""Rung → seed → per-image counts (images, classes, 3), for the finished seeds."""


def _counts_of(runs: Mapping[str, Mapping[int, Scored]], pick: Callable[[Scored], NDArray[np.int64]]) -> _Counts:
    return {name: {seed: pick(run) for seed, run in found.items()} for name, found in runs.items()}


def _blocks(runs: Mapping[str, Mapping[int, Scored]]) -> list[str] | None:
    """Blocks of the images, the same in all runs."""
    first = next((run for found in runs.values() for run in found.values()), None)
    return None if first is None else blocks_of(first.groups)


def _subset_counts(runs: Mapping[str, Mapping[int, Scored]], classes: Sequence[str]) -> _Counts:
    return _counts_of(runs, lambda run: run.counts_of_subset(classes))


def _merged(builder: Builder, ladder: LadderSettings, runs: Mapping[str, Mapping[int, Scored]]) -> RungGrouping | None:
    groups = ladder.score.merged
    if not groups:
        return None
    classes = merged_names(groups, builder.classes.names, "ladder.score.merged")
    counts = _counts_of(runs, lambda run: run.counts_of_merged(groups, classes))
    return _grouping(ladder, ", ".join(groups), groups, classes, counts, _blocks(runs))


def _grouping(
    ladder: LadderSettings,
    name: str,
    groups: ClassGroups,
    classes: Sequence[str],
    counts: _Counts,
    blocks: list[str] | None,
) -> RungGrouping:
    """All rungs scored in another grouping of classes: as :func:`_rung`, without the training's figures."""
    results = {}
    for rung, own in counts.items():
        iou = [miou_of_counts(one.sum(0)[:, None]) for one in own.values()]
        mean_iou = np.mean(iou, axis=0) if iou else np.full(len(classes), np.nan)
        gain = None
        if own and counts[ladder.plain] and rung != ladder.plain:
            gain = paired_bootstrap(list(counts[ladder.plain].values()), list(own.values()), blocks)
        results[rung] = GroupedResult(
            scores={seed: _number(float(miou_of_counts(one.sum(0)))) or 0.0 for seed, one in own.items()},
            comparison=gain,
            share=_share(ladder, rung, counts, blocks),
            iou={one: _number(value) for one, value in zip(classes, mean_iou, strict=True)},
        )
    adjusted = _adjusted(ladder, {rung: result.comparison for rung, result in results.items()})
    results = {rung: replace(result, adjusted_p=adjusted.get(rung)) for rung, result in results.items()}
    kept = {group: tuple(members) for group, members in groups.items()}
    return RungGrouping(name, tuple(classes), kept, results)


def _scored(builder: Builder, expanded: Expanded, name: str) -> dict[int, Scored]:
    """Seed → the scored run, for the finished seeds."""
    found = {}
    for (rung, seed), attempt in expanded.attempts.items():
        artefact = builder.artefacts[attempt.score]
        if rung == name and artefact.fault() is None:
            run = read_scored(artefact.score(NET))
            found[seed] = replace(run, content=under_names(run.content, builder.classes.names))
    return found


def _rung(
    builder: Builder,
    ladder: LadderSettings,
    expanded: Expanded,
    name: str,
    runs: Mapping[str, Mapping[int, Scored]],
    trials: Tuned | None,
) -> RungResult:
    rung, own, plain = ladder.rungs[name], runs[name], runs[ladder.plain]
    settings = {**rung.own(), **{key: value for key, value in rung.changes().items() if key != "training"}}
    data = {key: rung.training[key] for key in rung.training if key not in FitSettings.model_fields}
    fit = {key: value for key, value in rung.training.items() if key not in data}
    comparison = judgement = None
    if own and plain and name != ladder.plain:
        before, after = Side(tuple(plain.values())), Side(tuple(own.values()))
        gain = _gain(before, after)
        comparison = gain
        if name != ladder.oracle:
            judgement = judge(gain, (before.spread, after.spread), ladder.worth / 100)
    return RungResult(
        name=name,
        method=", ".join([*([] if rung.stages else [rung.name]), *([_in_line(settings)] if settings else [])]),
        share=_share(ladder, name, _counts_of(runs, lambda run: run.counts_NK3), _blocks(runs)),
        updates=_updates(builder.recipe, ladder, expanded, name),
        leak=_leak(ladder, expanded, name),
        other_data=_in_line(data) if data else "",
        scores={seed: _number(run.miou) or 0.0 for seed, run in own.items()},
        missing=tuple(seed for seed in ladder.seeds if seed not in own),
        comparison=comparison,
        judgement=judgement,
        cost=_cost(builder, expanded, name),
        teaches=_teaches(ladder, expanded, name),
        differs=_in_line(fit) if fit else "",
        diverged=tuple(
            seed
            for (own_name, seed), attempt in expanded.attempts.items()
            if own_name == name and any(builder.artefacts[it].diverged for it in attempt.trained)
        ),
        trials=() if trials is None else _trials(builder, expanded.trials[name], trials),
    )


def _share(ladder: LadderSettings, name: str, counts: _Counts, blocks: list[str] | None) -> Share | None:
    """The share of the gap from the plain rung to the oracle that a rung closes; needs scores of all three."""
    if ladder.oracle is None or name in (ladder.plain, ladder.oracle):
        return None
    plain, own, oracle = (list(counts[rung].values()) for rung in (ladder.plain, name, ladder.oracle))
    if not (plain and own and oracle):
        return None
    found = gap_share(plain, own, oracle, blocks)
    return Share(_number(found.share), _number(found.low), _number(found.high), found.reason)


def _updates(recipe: Recipe, ladder: LadderSettings, expanded: Expanded, name: str) -> int | None:
    """Student steps over all stages of a rung; None before it is tuned."""
    attempt = next((it for (rung, _), it in expanded.attempts.items() if rung == name), None)
    if attempt is None:
        return None
    stages = [recipe.stages[it] for it in attempt.trained]
    return sum(
        stage.updates
        for stage in stages
        if stage.trains and stage.nets_by_role(recipe).get("student") == ladder.student
    )


def _leak(ladder: LadderSettings, expanded: Expanded, name: str) -> str:
    """How labels treated as missing were used in a rung."""
    recipe = expanded.recipe
    attempts = [it for (rung, _), it in expanded.attempts.items() if rung == name]
    if any(chosen_on_target(recipe, recipe.stages[it]) for one in attempts for it in one.trained):
        return ON_TARGET
    if ladder.tune is None or not ladder.tune.on_target:
        return ""
    trained = (recipe.stages[it] for one in attempts for it in one.trained)
    bare = any(is_bare(recipe, it, ladder.tune.data) for it in trained)
    return "tuned with target labels" if bare else ""


def _teaches(ladder: LadderSettings, expanded: Expanded, name: str) -> bool:
    """Whether a rung uses a net trained elsewhere."""
    rung = ladder.rungs[name]
    if not rung.stages:
        return rung.name == PSEUDO_LABELS or bool(find_settings(method_of(rung).name).teachers)
    attempt = next((it for (rung_name, _), it in expanded.attempts.items() if rung_name == name), None)
    made = [] if attempt is None else [expanded.recipe.stages[it] for it in (*attempt.trained, *attempt.others)]
    return any(it.value == ladder.teacher for stage in made for it in references(stage))


def _gain(before: Side, after: Side) -> Gain:
    """All runs are of one recipe, with one protocol and the same images, so they are comparable."""
    counts_a, counts_b = ([run.counts_NK3 for run in side.runs] for side in (before, after))
    return paired_bootstrap(counts_a, counts_b, blocks_of(after.runs[0].groups))


def _trials(builder: Builder, attempts: Sequence[Attempt], found: Tuned) -> tuple[Trial, ...]:
    return tuple(
        Trial(
            _in_line(attempt.values),
            score,
            chosen=attempt.values == found.values,
            diverged=any(builder.artefacts[it].diverged for it in attempt.trained),
        )
        for attempt, score in zip(attempts, found.scores, strict=True)
    )


def _cost(builder: Builder, expanded: Expanded, name: str) -> RungCost:
    """The median over the finished trainings, which is robust to interrupted ones.

    For a rung with several stages: the sum of their times, and the cost of a mean step.
    """
    attempts = [attempt for (rung, _), attempt in expanded.attempts.items() if rung == name]
    if not attempts:
        return RungCost()
    spent = [_sum(builder, attempt.trained) for attempt in attempts]
    besides = [_sum(builder, attempt.others) for attempt in attempts if attempt.others]
    seconds, others = ([it for it in times if it is not None] for times in (spent, besides))
    found = [cost_of(builder, expanded, name, place) for place in range(len(attempts[0].trained))]
    costs = [cost for cost in found if cost is not None]
    memory = adds = None
    if costs and len(costs) == len(found):
        memory = max(cost["memory_mib"] for cost in costs)
        stages = [builder.recipe.stages[it] for it in attempts[0].trained]
        steps = [stage.updates for stage in stages]
        if all(cost["multiply_adds"] is not None for cost in costs):
            adds = sum(n * cost["multiply_adds"] for n, cost in zip(steps, costs, strict=True)) / sum(steps)
            adds = costs[0]["multiply_adds"] if len(costs) == 1 else adds
    return RungCost(
        seconds=statistics.median(seconds) if seconds else None,
        annotation_seconds=statistics.median(others) if others else None,
        memory_mib=memory,
        multiply_adds=adds,
    )


def _sum(builder: Builder, names: Sequence[str]) -> float | None:
    """Total seconds of these stages, once all are finished."""
    artefacts = [builder.artefacts[name] for name in names]
    times = [_seconds(it) for it in artefacts if it.manifest() is not None]
    known = [it for it in times if it is not None]
    return sum(known) if known and len(known) == len(artefacts) else None


def _seconds(artefact: Artefact) -> float | None:
    times = _read(artefact.times)
    return times.get("training_seconds", times.get("seconds"))


def _teacher(builder: Builder, ladder: LadderSettings) -> TeacherResult | None:
    if ladder.teacher is None:
        return None
    return TeacherResult(
        name=ladder.teacher,
        miou=_miou(builder.artefacts[TEACHER_SCORE]),
        parameters=_parameters(builder, builder.net_settings(ladder.teacher)),
        seconds=_seconds(builder.artefacts[ladder.teacher.partition(".")[0]]),
    )


def _parameters(builder: Builder, settings: NetSettings) -> int:
    settings = settings.model_copy(update={"weights": None})
    with torch.random.fork_rng(devices=[]):
        return parameters(build(settings, len(builder.classes), seed=0))


def _read(path: Path) -> dict[str, Any]:
    """A small JSON file of figures; empty where it does not exist."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _in_line(content: Mapping[str, Any]) -> str:
    """Settings as YAML on one line, without the braces around them."""
    text = yaml.safe_dump(dict(content), default_flow_style=True, sort_keys=False, allow_unicode=True, width=math.inf)
    return text.strip()[1:-1]


# Files


def write(content: LadderContent, recipe: Recipe, files: LadderFiles) -> None:
    """Write the result; each file is written atomically."""
    files.out.mkdir(parents=True, exist_ok=True)
    write_json(files.json, as_dict(content, recipe))
    write_text(files.markdown, words.markdown(content))
    write_text(files.page, words.render(content))


def as_dict(content: LadderContent, recipe: Recipe) -> dict[str, Any]:
    """The content as JSON-able values; shares, not points. Measured times are under `times`."""
    ladder = recipe.ladder
    assert ladder is not None
    teacher = content.teacher
    return {
        "name": content.title,
        "ladder": plain(ladder),
        "data": {"name": content.data, "images": content.images, "fingerprint": content.fingerprint},
        "protocol": {"key": content.protocol_key, "text": content.protocol},
        "student": {"net": content.student, "parameters": content.student_parameters},
        "teacher": teacher
        and {
            "stage": teacher.name,
            "miou": teacher.miou,
            "parameters": teacher.parameters,
            "times": {"training_seconds": teacher.seconds},
        },
        "plain": content.plain,
        "worth": content.worth,
        "oracle": content.oracle or None,
        "rungs": {rung.name: _rung_dict(content, rung) for rung in content.rungs},
        "missing": {rung.name: list(rung.missing) for rung in content.rungs if rung.missing},
        "subsets": {one.name: _grouping_dict(one) for one in content.subsets},
        "merged": content.merged
        and {
            "groups": {name: list(members) for name, members in content.merged.groups.items()},
            **_grouping_dict(content.merged),
        },
        "tie": list(content.tie),
        "notes": words.notes(content),
        "environment": dict(content.environment),
    }


def _rung_dict(content: LadderContent, rung: RungResult) -> dict[str, Any]:
    judgement, cost = rung.judgement, rung.cost
    return {
        "method": rung.method,
        "teacher": rung.teaches,
        "differs": rung.differs,
        "data": rung.other_data,
        "updates": words.updates_of(content, rung),
        "leak": bool(rung.leak),
        "leak_text": rung.leak,
        "gap_share": None if rung.share is None else asdict(rung.share),
        "miou": rung.miou,
        "spread": rung.spread,
        "seeds": {str(seed): score for seed, score in rung.scores.items()},
        "gain": _gain_dict(rung),
        "verdict": judgement and judgement.verdict,
        "seeds_needed": judgement and judgement.seeds,
        "images_needed": judgement and judgement.images,
        "multiply_adds_per_step": cost.multiply_adds,
        "diverged": list(rung.diverged),
        "trials": [asdict(trial) for trial in rung.trials],
        "times": {
            "training_seconds": cost.seconds,
            "annotation_seconds": cost.annotation_seconds,
            "memory_mib": cost.memory_mib,
            "ratio": words.time_ratio(content, rung),
            "sentence": None if rung.name in (content.plain, content.oracle) else words.sentence(content, rung),
        },
    }


def _gain_dict(result: RungResult | GroupedResult) -> dict[str, Any] | None:
    comparison = result.comparison
    if comparison is None:
        return None
    return {
        "gain": _number(comparison.gain),
        "low": _number(comparison.low),
        "high": _number(comparison.high),
        "p_value": comparison.p_value,
        "adjusted_p": result.adjusted_p,
        "over": comparison.interval.over,
        "groups": comparison.interval.groups,
        "reliable": comparison.interval.reliable,
        "reason": comparison.interval.reason,
    }


def _grouping_dict(grouping: RungGrouping) -> dict[str, Any]:
    return {
        "classes": list(grouping.classes),
        "rungs": {
            rung: {
                "miou": result.miou,
                "spread": result.spread,
                "seeds": {str(seed): score for seed, score in result.scores.items()},
                "iou": dict(result.iou),
                "gain": _gain_dict(result),
                "gap_share": None if result.share is None else asdict(result.share),
            }
            for rung, result in grouping.results.items()
        },
    }
