"""Plans a ladder: missing trainings, and their estimated time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from tutelage.evaluation.class_groups import check_groups
from tutelage.ladders.run import assigned, chosen_pairs, ladder_of, pruned, tuned_values
from tutelage.pipeline import training_cost
from tutelage.pipeline.training_cost import TrainingCost
from tutelage.recipe.ladder import Attempt, expand, untuned
from tutelage.recipe.loading import LoadedRecipe
from tutelage.recipe.references import stages_before
from tutelage.recipe.schema import Recipe


@dataclass(frozen=True)
class PlannedRung:
    """The missing trainings of one rung, and their estimated time."""

    name: str
    done: int
    """Number of finished seeds."""
    missing: int
    """Number of unfinished seeds."""
    trials: int
    """Number of missing trials."""
    cost: TrainingCost | str | None
    """Of one training; a reason where measuring failed; None where nothing is missing, or without measuring."""
    hours: float
    """Of all missing trainings, as far as known."""
    note: str = ""
    """Limits of the estimate."""


def plan(
    loaded: LoadedRecipe, *, rungs: Sequence[str] = (), seeds: Sequence[int] = (), measure: bool = True
) -> list[PlannedRung]:
    """The trainings :func:`run` would do. ``measure``: run a few steps of each unfinished rung to estimate the time."""
    ladder = ladder_of(loaded)
    chosen = chosen_pairs(ladder, rungs, seeds)
    values = tuned_values(loaded)
    expanded = expand(loaded.recipe, {**untuned(ladder), **values})
    kept = pruned(loaded, expanded.recipe)
    builder = assigned(kept)
    check_groups(ladder.score.subsets, ladder.score.merged, builder.classes.names, "ladder.score: ")

    def unfinished(names: Iterable[str]) -> list[str]:
        return [name for name in names if builder.artefacts[name].fault() is not None]

    result: list[PlannedRung] = []
    costs: dict[str, TrainingCost | str] = {}
    counted: set[str] = set()
    for name in dict.fromkeys(name for name, _ in chosen):
        attempts = [expanded.attempts[name, seed] for rung, seed in chosen if rung == name]
        # An untuned rung counts as not trained, even if the plan's values were trained for another purpose.
        untried = ladder.tune is not None and name not in values
        lacking = [it for it in attempts if untried or unfinished(it.trained)]
        trials = [it for it in expanded.trials.get(name, ()) if unfinished(it.trained)]
        cost: TrainingCost | str | None = None
        hours, notes = 0.0, list[str]()
        if measure and lacking + trials:
            found: list[TrainingCost | str] = []
            for stage in (lacking + trials)[0].trained:
                tried = stage
                if _reads_unmade(kept.recipe, stage, unfinished):
                    tried = expanded.attempts[ladder.plain, ladder.seeds[0]].trained[-1]
                    notes.append(_LIKE_PLAIN)
                if tried not in costs:
                    costs[tried] = training_cost.estimate_cost(kept, tried)
                found.append(costs[tried])
            notes += [_WITHOUT_OTHERS] if (lacking + trials)[0].others else []
            cost = _together(kept.recipe, (lacking + trials)[0], found)
            for one in [] if isinstance(cost, str) else lacking + trials:
                for stage, each in zip(one.trained, found, strict=True):
                    artefact = builder.artefacts[stage]
                    wanted = (untried and one in lacking) or artefact.fault() is not None
                    # A stage shared by several rungs is trained once.
                    if wanted and artefact.key not in counted and not isinstance(each, str):
                        counted.add(artefact.key)
                        hours += _steps(kept.recipe, stage) * each.step_seconds / 3600
        note = "; ".join(dict.fromkeys(notes))
        result.append(PlannedRung(name, len(attempts) - len(lacking), len(lacking), len(trials), cost, hours, note))
    return result


def _together(recipe: Recipe, attempt: Attempt, found: Sequence[TrainingCost | str]) -> TrainingCost | str:
    """The cost of a rung's trainings: the mean step, the largest memory; the first reason where one is unknown."""
    known = [it for it in found if not isinstance(it, str)]
    if len(known) < len(found):
        return next(it for it in found if isinstance(it, str))
    if len(known) == 1:
        return known[0]
    steps = [_steps(recipe, name) for name in attempt.trained]
    spent = sum(n * it.step_seconds for n, it in zip(steps, known, strict=True))
    return replace(max(known, key=lambda it: it.memory_mib), step_seconds=spent / sum(steps), cache="")


_WITHOUT_OTHERS = "without labels, fits and copies of images"
_LIKE_PLAIN = "stages that read labels or fits not made yet are estimated from the plain rung's steps"


def _reads_unmade(recipe: Recipe, name: str, unfinished: Callable[[Iterable[str]], list[str]]) -> bool:
    """Whether a stage needs an unfinished input without a stand-in: anything but a trained net."""
    return any(recipe.stages[before].makes != "nets" and unfinished([before]) for before in stages_before(recipe, name))


def _steps(recipe: Recipe, name: str) -> int:
    return recipe.stages[name].updates
