"""Running a ladder: the stages that it stands for, in an order that gives a first table early; any process may help.

A rung is finished when its stages are. The table is read off what is finished, so that it can be made at any time,
and is the same whoever made which part of it when.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tutelage.engine import collectives
from tutelage.engine.interruption import StoppedError
from tutelage.engine.watch import NotFiniteError
from tutelage.errors import RecipeError, RunError, TutelageError
from tutelage.pipeline import smoke
from tutelage.pipeline.builder import Builder
from tutelage.pipeline.display import Display
from tutelage.pipeline.keys import assign_artefacts
from tutelage.pipeline.ladder_results import COST_FORMAT, LadderFiles, cost_of, gather, tuned, write
from tutelage.pipeline.preflight import check_groups
from tutelage.pipeline.running import Work, at_work, begin
from tutelage.recipe.ladder import TEACHER_SCORE, Attempt, Expanded, Values, expand, untuned
from tutelage.recipe.reading import LoadedRecipe
from tutelage.recipe.references import stages_before
from tutelage.recipe.schema import ImportStage, LadderSettings, Recipe, TrainStage
from tutelage.report.ladder import LadderContent
from tutelage.runs.atomic import write_json
from tutelage.runs.lock import HeldError
from tutelage.runs.store import Artefact, Store

_PATIENCE_S = 5.0
"""Between two looks at what another process is working on."""


@dataclass(frozen=True)
class LadderResult:
    """A ladder's result and the files that hold it."""

    content: LadderContent
    files: LadderFiles


def run(
    read: LoadedRecipe,
    *,
    rungs: Sequence[str] = (),
    seeds: Sequence[int] = (),
    report_only: bool = False,
    quiet: bool = False,
) -> LadderResult:
    """Train and score the ladder, or some ``rungs`` and ``seeds`` of it, and write its table of all that is finished.

    Several processes may do this at the same time. What fails (a rung whose loss is not finite, say) does not keep
    the others. Raises :class:`RecipeError` for a recipe without a ladder and for classes under `score` that the data do
    not have, and at the end :class:`RunError` for what failed.
    """
    ladder = ladder_of(read)
    chosen = _chosen(ladder, rungs, seeds)
    check_groups(Builder(read), "ladder.score: ", ladder.score.subsets, ladder.score.merged)
    failed = {} if report_only else _make(read, ladder, chosen, Display(quiet))
    outcome = LadderResult(_content(read), LadderFiles(Path(read.recipe.out_folder())))
    if collectives.rank() == 0:
        write(outcome.content, read.recipe, outcome.files)
    if failed:
        name, error = next(iter(failed.items()))
        others = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
        raise RunError(
            f"stage {name!r} failed{others}; all else is in {outcome.files.markdown}: {error.message}", error.remedy
        )
    return outcome


def _make(
    read: LoadedRecipe, ladder: LadderSettings, chosen: Sequence[tuple[str, int]], display: Display
) -> dict[str, TutelageError]:
    """Make the trials, then what they decide; returns the stages that failed."""
    failed: dict[str, TutelageError] = {}
    with at_work(read.recipe.run) as device:
        if ladder.tune is not None:
            expanded = expand(read.recipe, {})
            artefacts = _builder(_pruned(read, expanded.recipe)).artefacts
            trials = [trial for name in dict.fromkeys(rung for rung, _ in chosen) for trial in expanded.trials[name]]
            kept, wanted = _wanted(read, expanded, [it.score for it in trials if not _diverged(artefacts, it)])
            lost = _work(begin(kept, wanted, device, display), wanted)
            # A trial that diverges has been tried: it is the worst.
            failed |= {name: error for name, error in lost.items() if not isinstance(error, NotFiniteError)}
        expanded = expand(read.recipe, _values(read))
        names = [expanded.attempts[pair].score for pair in chosen if pair in expanded.attempts]
        kept, wanted = _wanted(read, expanded, [*([] if ladder.teacher is None else [TEACHER_SCORE]), *names])
        work = begin(kept, wanted, device, display)
        failed |= _work(work, wanted, lambda name: _after(work, read.recipe, kept, expanded, name))
    return failed


def _diverged(artefacts: Mapping[str, Artefact], attempt: Attempt) -> bool:
    return any(artefacts[name].diverged for name in attempt.trained)


def _wanted(read: LoadedRecipe, expanded: Expanded, names: Iterable[str]) -> tuple[LoadedRecipe, list[str]]:
    """The recipe as it is worked on, and the stages ``names`` of it with all that they need."""
    kept = _pruned(read, expanded.recipe)
    return kept, _needed(kept.recipe, names)


def ladder_of(read: LoadedRecipe) -> LadderSettings:
    """The ladder of a recipe."""
    if read.recipe.ladder is None:
        raise RecipeError(
            f"{read.document.name} has no ladder", "add a section `ladder:`; docs/ladder.md has one to begin with"
        )
    return read.recipe.ladder


def _chosen(ladder: LadderSettings, rungs: Sequence[str], seeds: Sequence[int]) -> list[tuple[str, int]]:
    """The pairs of rung and seed to make: all rungs at the first seed, then all at the second."""
    unknown = [name for name in rungs if name not in ladder.rungs]
    if unknown:
        raise RunError(f"no rung {unknown[0]!r} in the ladder", f"rungs: {', '.join(ladder.rungs)}")
    others = [seed for seed in seeds if seed not in ladder.seeds]
    if others:
        known = ", ".join(map(str, ladder.seeds))
        raise RunError(f"no seed {others[0]} in the ladder", f"seeds: {known}; ladder.seeds=[...] sets them")
    return [
        (name, seed)
        for seed in ladder.seeds
        if not seeds or seed in seeds
        for name in ladder.rungs
        if not rungs or name in rungs
    ]


def _pruned(read: LoadedRecipe, recipe: Recipe) -> LoadedRecipe:
    """A recipe without those of its own stages that the ladder does not need."""
    assert read.recipe.ladder is not None
    kept = set(_needed(recipe, [name for name in recipe.stages if name not in read.recipe.stages]))
    stages = {name: stage for name, stage in recipe.stages.items() if name in kept}
    return read._replace(recipe=recipe.model_copy(update={"stages": stages}))


def _needed(recipe: Recipe, names: Iterable[str]) -> list[str]:
    """Stages and all that they need, in the recipe's order."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += stages_before(recipe, name)
    return [name for name in recipe.stages if name in found]


def _work(
    work: Work, names: Sequence[str], after: Callable[[str], None] = lambda name: None
) -> dict[str, TutelageError]:
    """Make all stages; returns what failed. Those that another process is at are left to it, and looked at again."""
    recipe = work.builder.recipe
    pending, failed = list(names), dict[str, TutelageError]()
    waits = False
    while pending:
        for name in pending:
            if any(before in pending for before in stages_before(recipe, name)):
                continue
            try:
                if not _made(work, name):
                    continue
            except StoppedError:
                raise
            except TutelageError as error:
                if collectives.world() > 1:  # the other ranks are in the middle of it
                    raise
                work.display.say(f"{name}: failed: {error}")
                failed[name] = error
                pending = [other for other in pending if name not in _needed(recipe, [other])]
                break
            pending.remove(name)
            after(name)
            waits = False
            break
        else:
            if not waits:
                work.display.say(f"{pending[0]}: another process is at it; waiting")
            waits = True
            time.sleep(_PATIENCE_S)
    return failed


def _made(work: Work, name: str) -> bool:
    """Whether a stage is finished now; not while another process makes it."""
    if work.is_done(name):
        return True
    try:
        work.make(name)
    except HeldError:
        if collectives.world() > 1:  # the other ranks have begun
            raise
        return False
    return True


def _after(work: Work, recipe: Recipe, kept: LoadedRecipe, expanded: Expanded, name: str) -> None:
    """What follows a finished stage: its cost is measured, or the table written anew."""
    if collectives.rank() > 0:
        return
    for attempt in expanded.attempts.values():
        if name in attempt.trained:
            place = attempt.trained.index(name)
            if cost_of(work.builder, expanded, attempt.rung, place) is None:
                _measure(work, kept, name)
        if attempt.score == name:
            write(gather(work.builder, recipe, expanded), recipe, LadderFiles(work.store.out))


def _measure(work: Work, kept: LoadedRecipe, name: str) -> None:
    """Note beside an artefact what a step of it costs, in a process that has done nothing else."""
    cost = smoke.smoke(kept, name, count=True)
    if isinstance(cost, str):
        work.display.say(f"{name}: its cost could not be measured: {cost}")
    else:
        kept_of_it = ("step_seconds", "memory_mib", "multiply_adds")
        content = {"format": COST_FORMAT, **{key: getattr(cost, key) for key in kept_of_it}}
        write_json(work.builder.artefacts[name].cost, content)


def _builder(read: LoadedRecipe) -> Builder:
    builder = Builder(read)
    assign_artefacts(builder, Store(Path(read.recipe.out_folder())))
    return builder


def _values(read: LoadedRecipe) -> dict[str, Values]:
    """The values of all rungs whose trials are finished."""
    assert read.recipe.ladder is not None
    if read.recipe.ladder.tune is None:
        return {}
    expanded = expand(read.recipe, {})
    found = tuned(_builder(_pruned(read, expanded.recipe)), expanded)
    return {name: rung.values for name, rung in found.items() if rung.values is not None}


def _content(read: LoadedRecipe) -> LadderContent:
    """The ladder's result as far as it is finished."""
    expanded = expand(read.recipe, _values(read))
    return gather(_builder(_pruned(read, expanded.recipe)), read.recipe, expanded)


# Plans


@dataclass(frozen=True)
class PlannedRung:
    """What is missing of one rung, and how long it takes."""

    name: str
    done: int
    """Seeds that are trained and scored."""
    missing: int
    """Seeds that are not."""
    trials: int
    """Trials that are missing."""
    cost: smoke.TrainingCost | str | None
    """Of one training; a reason where it could not be measured; None where nothing is missing, or nobody asked."""
    hours: float
    """Of all that is missing, as far as it is known."""
    note: str = ""
    """What the hours leave out, or rest on."""


def plan(
    read: LoadedRecipe, *, rungs: Sequence[str] = (), seeds: Sequence[int] = (), measure: bool = True
) -> list[PlannedRung]:
    """What :func:`run` would train. With ``measure``, a few steps of each unfinished rung are run to say how long."""
    ladder = ladder_of(read)
    chosen = _chosen(ladder, rungs, seeds)
    values = _values(read)
    expanded = expand(read.recipe, {**untuned(ladder), **values})
    kept = _pruned(read, expanded.recipe)
    builder = _builder(kept)
    check_groups(builder, "ladder.score: ", ladder.score.subsets, ladder.score.merged)

    def unfinished(names: Iterable[str]) -> list[str]:
        return [name for name in names if builder.artefacts[name].fault() is not None]

    result: list[PlannedRung] = []
    costs: dict[str, smoke.TrainingCost | str] = {}
    counted: set[str] = set()
    for name in dict.fromkeys(name for name, _ in chosen):
        attempts = [expanded.attempts[name, seed] for rung, seed in chosen if rung == name]
        # Without its values a rung is not trained yet, whatever else was trained with the values of the plan.
        untried = ladder.tune is not None and name not in values
        lacking = [it for it in attempts if untried or unfinished(it.trained)]
        trials = [it for it in expanded.trials.get(name, ()) if unfinished(it.trained)]
        cost: smoke.TrainingCost | str | None = None
        hours, notes = 0.0, list[str]()
        if measure and lacking + trials:
            found: list[smoke.TrainingCost | str] = []
            for stage in (lacking + trials)[0].trained:
                tried = stage
                if _reads_unmade(kept.recipe, stage, unfinished):
                    tried = expanded.attempts[ladder.plain, ladder.seeds[0]].trained[-1]
                    notes.append(_LIKE_PLAIN)
                if tried not in costs:
                    costs[tried] = smoke.smoke(kept, tried)
                found.append(costs[tried])
            notes += [_WITHOUT_OTHERS] if (lacking + trials)[0].others else []
            cost = _together(kept.recipe, (lacking + trials)[0], found)
            for one in [] if isinstance(cost, str) else lacking + trials:
                for stage, each in zip(one.trained, found, strict=True):
                    artefact = builder.artefacts[stage]
                    wanted = (untried and one in lacking) or artefact.fault() is not None
                    # What several rungs begin with is trained once.
                    if wanted and artefact.key not in counted and not isinstance(each, str):
                        counted.add(artefact.key)
                        hours += _steps(kept.recipe, stage) * each.step_seconds / 3600
        note = "; ".join(dict.fromkeys(notes))
        result.append(PlannedRung(name, len(attempts) - len(lacking), len(lacking), len(trials), cost, hours, note))
    return result


def _together(recipe: Recipe, attempt: Attempt, found: Sequence[smoke.TrainingCost | str]) -> smoke.TrainingCost | str:
    """The cost of a rung's trainings: the mean step, the largest memory; the first reason where one is not known."""
    known = [it for it in found if not isinstance(it, str)]
    if len(known) < len(found):
        return next(it for it in found if isinstance(it, str))
    if len(known) == 1:
        return known[0]
    steps = [_steps(recipe, name) for name in attempt.trained]
    spent = sum(n * it.step_seconds for n, it in zip(steps, known, strict=True))
    return replace(max(known, key=lambda it: it.memory_mib), step_seconds=spent / sum(steps), cache="")


_WITHOUT_OTHERS = "labels, fits and copies of images are not in it"
_LIKE_PLAIN = "of what reads labels or fits that are not made yet, a step counts as one of the plain rung"


def _reads_unmade(recipe: Recipe, name: str, unfinished: Callable[[Iterable[str]], list[str]]) -> bool:
    """Whether a stage needs what cannot be stood in for: anything but trained nets."""
    nets = (TrainStage, ImportStage)
    return any(
        not isinstance(recipe.stages[before], nets) and bool(unfinished([before]))
        for before in stages_before(recipe, name)
    )


def _steps(recipe: Recipe, name: str) -> int:
    stage = recipe.stages[name]
    assert isinstance(stage, TrainStage)
    return stage.steps
