"""Runs a ladder: its stages, in an order that gives a first table early; several processes can share the work.

A rung is finished when its stages are. The table is computed from finished stages, so it can be written at any time
and does not depend on which process made which stage.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tutelage.engine import collectives
from tutelage.engine.interruption import StoppedError
from tutelage.engine.watch import NotFiniteError
from tutelage.errors import RecipeError, RunError, TutelageError
from tutelage.evaluation.class_groups import check_groups
from tutelage.ladders.page import LadderContent
from tutelage.ladders.results import COST_FORMAT, LadderFiles, cost_of, gather, tuned, write
from tutelage.pipeline import training_cost
from tutelage.pipeline.builder import Builder
from tutelage.pipeline.display import Display
from tutelage.pipeline.run import Work, at_work, begin
from tutelage.recipe.ladder import TEACHER_SCORE, Attempt, Expanded, Values, expand
from tutelage.recipe.ladder_settings import LadderSettings
from tutelage.recipe.loading import LoadedRecipe
from tutelage.recipe.references import stages_before
from tutelage.recipe.schema import Recipe
from tutelage.runs.atomic import write_json
from tutelage.runs.lock import HeldError
from tutelage.runs.store import Artefact, Store

_PATIENCE_S = 5.0
"""Between two checks of stages that another process makes."""


@dataclass(frozen=True)
class LadderResult:
    """A ladder's result and its files."""

    content: LadderContent
    files: LadderFiles


def run(
    loaded: LoadedRecipe,
    *,
    rungs: Sequence[str] = (),
    seeds: Sequence[int] = (),
    report_only: bool = False,
    quiet: bool = False,
) -> LadderResult:
    """Train and score the ladder, or some ``rungs`` and ``seeds`` of it, and write the table of finished results.

    Several processes may do this at the same time. A failing stage (such as an infinite loss) does not stop the
    others. Raises :class:`RecipeError` for a recipe without a ladder and for classes under `score` that the data do
    not have, and at the end :class:`RunError` for failed stages.
    """
    ladder = ladder_of(loaded)
    chosen = chosen_pairs(ladder, rungs, seeds)
    check_groups(ladder.score.subsets, ladder.score.merged, Builder(loaded).classes.names, "ladder.score: ")
    failed = {} if report_only else _make(loaded, ladder, chosen, Display(quiet))
    outcome = LadderResult(_content(loaded), LadderFiles(Path(loaded.recipe.out_folder())))
    if collectives.rank() == 0:
        write(outcome.content, loaded.recipe, outcome.files)
    if failed:
        name, error = next(iter(failed.items()))
        others = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
        raise RunError(
            "stage-failed",
            f"stage {name!r} failed{others}; for the other results see {outcome.files.markdown}: {error.message}",
            error.remedy,
        )
    return outcome


def _make(
    loaded: LoadedRecipe, ladder: LadderSettings, chosen: Sequence[tuple[str, int]], display: Display
) -> dict[str, TutelageError]:
    """Make the trials, then the tuned rungs; returns the failed stages."""
    failed: dict[str, TutelageError] = {}
    with at_work(loaded.recipe.run) as device:
        if ladder.tune is not None:
            expanded = expand(loaded.recipe, {})
            artefacts = assigned(pruned(loaded, expanded.recipe)).artefacts
            trials = [trial for name in dict.fromkeys(rung for rung, _ in chosen) for trial in expanded.trials[name]]
            kept, wanted = _wanted(loaded, expanded, [it.score for it in trials if not _diverged(artefacts, it)])
            lost = _work(begin(kept, wanted, device, display), wanted)
            # A diverged trial is finished and ranks last.
            failed |= {name: error for name, error in lost.items() if not isinstance(error, NotFiniteError)}
        expanded = expand(loaded.recipe, tuned_values(loaded))
        names = [expanded.attempts[pair].score for pair in chosen if pair in expanded.attempts]
        kept, wanted = _wanted(loaded, expanded, [*([] if ladder.teacher is None else [TEACHER_SCORE]), *names])
        work = begin(kept, wanted, device, display)
        failed |= _work(work, wanted, lambda name: _after(work, loaded.recipe, kept, expanded, name))
    return failed


def _diverged(artefacts: Mapping[str, Artefact], attempt: Attempt) -> bool:
    return any(artefacts[name].diverged for name in attempt.trained)


def _wanted(loaded: LoadedRecipe, expanded: Expanded, names: Iterable[str]) -> tuple[LoadedRecipe, list[str]]:
    """The expanded recipe, and its stages ``names`` with all stages they need."""
    kept = pruned(loaded, expanded.recipe)
    return kept, _needed(kept.recipe, names)


def ladder_of(loaded: LoadedRecipe) -> LadderSettings:
    """The ladder of a recipe."""
    if loaded.recipe.ladder is None:
        raise RecipeError(
            "missing-key",
            f"{loaded.document.name} has no ladder",
            "add a section `ladder:`; see the example in docs/ladder.md",
        )
    return loaded.recipe.ladder


def chosen_pairs(ladder: LadderSettings, rungs: Sequence[str], seeds: Sequence[int]) -> list[tuple[str, int]]:
    """The pairs of rung and seed to train: all rungs at the first seed, then all at the second."""
    unknown = [name for name in rungs if name not in ladder.rungs]
    if unknown:
        raise RunError("unknown-rung", f"no rung {unknown[0]!r} in the ladder", f"rungs: {', '.join(ladder.rungs)}")
    others = [seed for seed in seeds if seed not in ladder.seeds]
    if others:
        known = ", ".join(map(str, ladder.seeds))
        raise RunError(
            "unknown-seed", f"no seed {others[0]} in the ladder", f"seeds: {known}; ladder.seeds=[...] sets them"
        )
    return [
        (name, seed)
        for seed in ladder.seeds
        if not seeds or seed in seeds
        for name in ladder.rungs
        if not rungs or name in rungs
    ]


def pruned(loaded: LoadedRecipe, recipe: Recipe) -> LoadedRecipe:
    """A recipe with only those of its stages that the ladder needs."""
    assert loaded.recipe.ladder is not None
    kept = set(_needed(recipe, [name for name in recipe.stages if name not in loaded.recipe.stages]))
    stages = {name: stage for name, stage in recipe.stages.items() if name in kept}
    return loaded._replace(recipe=recipe.model_copy(update={"stages": stages}))


def _needed(recipe: Recipe, names: Iterable[str]) -> list[str]:
    """Stages and all stages they need, in the recipe's order."""
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
    """Make all stages; returns the failed ones. Stages that another process is making are checked again later."""
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
                if collectives.world() > 1:  # the other ranks are still working on it
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
                work.display.say(f"{pending[0]}: another process is making it; waiting")
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
    """After a finished stage: measure its cost, or write the table again."""
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
    """Write the cost of a step beside an artefact, measured in a separate process."""
    cost = training_cost.estimate_cost(kept, name, count=True)
    if isinstance(cost, str):
        work.display.say(f"{name}: measuring its cost failed: {cost}")
    else:
        kept_of_it = ("step_seconds", "memory_mib", "multiply_adds")
        content = {"format": COST_FORMAT, **{key: getattr(cost, key) for key in kept_of_it}}
        write_json(work.builder.artefacts[name].cost, content)


def assigned(loaded: LoadedRecipe) -> Builder:
    builder = Builder(loaded)
    builder.assign(Store(Path(loaded.recipe.out_folder())))
    return builder


def tuned_values(loaded: LoadedRecipe) -> dict[str, Values]:
    """The values of all rungs whose trials are finished."""
    assert loaded.recipe.ladder is not None
    if loaded.recipe.ladder.tune is None:
        return {}
    expanded = expand(loaded.recipe, {})
    found = tuned(assigned(pruned(loaded, expanded.recipe)), expanded)
    return {name: rung.values for name, rung in found.items() if rung.values is not None}


def _content(loaded: LoadedRecipe) -> LadderContent:
    """The ladder's result so far."""
    expanded = expand(loaded.recipe, tuned_values(loaded))
    return gather(assigned(pruned(loaded, expanded.recipe)), loaded.recipe, expanded)
