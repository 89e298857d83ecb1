"""What a ladder would train, and how long it takes."""

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
    """What is missing of one rung, and how long it takes."""

    name: str
    done: int
    """Seeds that are trained and scored."""
    missing: int
    """Seeds that are not."""
    trials: int
    """Trials that are missing."""
    cost: TrainingCost | str | None
    """Of one training; a reason where it could not be measured; None where nothing is missing, or nobody asked."""
    hours: float
    """Of all that is missing, as far as it is known."""
    note: str = ""
    """What the hours leave out, or rest on."""


def plan(
    loaded: LoadedRecipe, *, rungs: Sequence[str] = (), seeds: Sequence[int] = (), measure: bool = True
) -> list[PlannedRung]:
    """What :func:`run` would train. With ``measure``, a few steps of each unfinished rung are run to say how long."""
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
        # Without its values a rung is not trained yet, whatever else was trained with the values of the plan.
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
                    # What several rungs begin with is trained once.
                    if wanted and artefact.key not in counted and not isinstance(each, str):
                        counted.add(artefact.key)
                        hours += _steps(kept.recipe, stage) * each.step_seconds / 3600
        note = "; ".join(dict.fromkeys(notes))
        result.append(PlannedRung(name, len(attempts) - len(lacking), len(lacking), len(trials), cost, hours, note))
    return result


def _together(recipe: Recipe, attempt: Attempt, found: Sequence[TrainingCost | str]) -> TrainingCost | str:
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
    return any(recipe.stages[before].makes != "nets" and unfinished([before]) for before in stages_before(recipe, name))


def _steps(recipe: Recipe, name: str) -> int:
    return recipe.stages[name].updates
