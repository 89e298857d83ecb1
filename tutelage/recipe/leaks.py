"""Checks that masks treated as missing affect no choice.

In domain adaptation the target's masks are used for the final score only. A stage *leaks* when a choice in it uses
masks of a data set that the recipe treats as unlabelled: some stream reads it without masks (or with pseudo labels),
and neither the stage nor those it depends on train on its masks. Training with few labels and a separate validation
set does not leak.

    keep: best           an error where it leaks; without `keep`, the last weights are kept
    patience, audit.stop errors where they leak
    keep: best_on_target allowed; every result that depends on it is marked
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from tutelage.methods import METHODS, find_settings
from tutelage.recipe.base import Fault, StageSettings, listed
from tutelage.recipe.ladder_settings import LadderSettings
from tutelage.recipe.references import with_all_before
from tutelage.recipe.schema import Recipe
from tutelage.settings import references

ON_TARGET = "chosen with target labels"
"""The mark of such a result."""


def without_leaks(recipe: Recipe) -> Recipe:
    """The recipe with defaults that do not leak."""
    unlabelled = _unlabelled(recipe)
    stages = {
        name: stage.without_leaks(partial(_is_bare, recipe, stage, unlabelled)) for name, stage in recipe.stages.items()
    }
    return recipe.model_copy(update={"stages": stages})


def leak_faults(recipe: Recipe) -> Iterator[Fault]:
    """Every leak that the recipe does not explicitly allow."""
    unlabelled = _unlabelled(recipe)
    for name, stage in recipe.stages.items():
        for fault in stage.leaks(recipe, partial(_is_bare, recipe, stage, unlabelled)):
            yield fault.below(("stages", name))


def is_bare(recipe: Recipe, stage: StageSettings, data: str) -> bool:
    """Whether ``stage`` must treat the masks of ``data`` as missing."""
    return _is_bare(recipe, stage, _unlabelled(recipe), data)


def evaluates_on_target(recipe: Recipe, stage: StageSettings) -> bool:
    """Whether scores during training use masks treated as missing."""
    during = [it.value for it in references(stage) if it.place == ("evaluate", "data")]
    return any(is_bare(recipe, stage, data) for data in during)


def chosen_on_target(recipe: Recipe, stage: StageSettings) -> bool:
    """Whether the weights of a stage, or of one it depends on, are chosen with target labels."""
    return any(it.chosen_on_target for it in with_all_before(recipe, stage))


def _is_bare(recipe: Recipe, stage: StageSettings, unlabelled: set[str], data: str) -> bool:
    origin, _ = _origin(recipe, data)
    if origin not in unlabelled:
        return False
    return not any(origin in _trained_on(recipe, it)[0] for it in with_all_before(recipe, stage))


def _unlabelled(recipe: Recipe) -> set[str]:
    """The data sets on which some stage or rung trains without their masks."""
    found: set[str] = set()
    for stage in recipe.stages.values():
        found |= _trained_on(recipe, stage)[1]
    return found if recipe.ladder is None else found | _unlabelled_by_rungs(recipe, recipe.ladder)


def _unlabelled_by_rungs(recipe: Recipe, ladder: LadderSettings) -> set[str]:
    methods = [rung.name for rung in ladder.rungs.values()]
    for rung in ladder.rungs.values():
        chosen: list[Any] = [stage.get("method") for stage in rung.stages.values()]
        methods += [str(it.get("name") if isinstance(it, dict) else it) for it in chosen]
    specs = [find_settings(name).streams for name in methods if name in METHODS]
    bare = {stream for streams in specs for stream, it in streams.items() if not it.labels}
    return {
        _origin(recipe, reference)[0]
        for name, stream in ladder.training.streams.items()
        if name in bare
        for reference in listed(stream.data)
    }


def _trained_on(recipe: Recipe, stage: StageSettings) -> tuple[set[str], set[str]]:
    """The data sets whose masks a stage trains on, and those of which it reads only the images."""
    masked: set[str] = set()
    bare: set[str] = set()
    for reference in references(stage):
        if reference.ref.trains:
            origin, people = _origin(recipe, reference.value)
            (masked if reference.ref.masks and people else bare).add(origin)
    return masked, bare


def _origin(recipe: Recipe, reference: str) -> tuple[str, bool]:
    """The data set that images come from, and whether its masks are annotations rather than predictions."""
    name = reference.partition("/")[0]
    stage = recipe.stages.get(name)
    if stage is not None:
        return name if stage.origin is None else _origin(recipe, stage.origin)[0], not stage.pseudo
    entry = recipe.data.get(name)
    if entry is None or entry.kind == "folder":
        return name, True
    # A published data set is the same under any name in a recipe; its variants may be different domains.
    return " ".join([entry.kind, entry.root, str(getattr(entry, "variant", None))]), True
