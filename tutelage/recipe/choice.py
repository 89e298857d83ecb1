"""Which weights a stage hands on, and whether labels that count as missing had a part in that.

In domain adaptation the target's masks are there for the last score alone. A stage *leaks* when something of it is
chosen by masks of a data set that the recipe uses as unlabelled: one that some stream reads without masks (or with
pseudo labels), while neither the stage nor those that it builds upon are trained on masks of it. A training with few
labels and its own validation set does not leak.

    keep: best           refused where it leaks; where `keep` is not written, the last weights are kept
    patience, audit.stop refused where it leaks
    keep: best_on_target does it all the same; every result that builds upon it is marked
"""

from __future__ import annotations

from collections.abc import Iterator

from tutelage.methods import METHODS, find_settings
from tutelage.recipe.schema import (
    LABEL_FREE,
    AnnotateStage,
    Course,
    FitStage,
    LadderSettings,
    Recipe,
    Stage,
    TrainStage,
)
from tutelage.recipe.wiring import named_in

Fault = tuple[tuple[str | int, ...], str]

ON_TARGET = "chosen with target labels"
"""How a result is marked."""


def settled(recipe: Recipe) -> Recipe:
    """The recipe with `keep: last` where nothing is said and `best` would leak."""
    unlabelled = _unlabelled(recipe)

    def judged(stage: Stage) -> Stage:
        if not isinstance(stage, TrainStage) or stage.evaluate is None or "keep" in stage.model_fields_set:
            return stage
        leaks = _counts_as_bare(recipe, stage, stage.evaluate.data, unlabelled)
        return stage.model_copy(update={"keep": "last"}) if leaks else stage

    return recipe.model_copy(update={"stages": {name: judged(stage) for name, stage in recipe.stages.items()}})


def leak_faults(recipe: Recipe) -> Iterator[Fault]:
    """Every leak of a settled recipe that is not asked for by name: (path in the recipe, what is wrong)."""
    unlabelled = _unlabelled(recipe)
    for name, stage in recipe.stages.items():
        place = ("stages", name)
        opens = isinstance(stage, FitStage) and stage.masked() and _origin(recipe, stage.data)[1]
        if isinstance(stage, FitStage) and opens and _counts_as_bare(recipe, stage, stage.data, unlabelled):
            yield (*place, "data"), f"this fit opens masks of {stage.data}, which counts as unlabelled elsewhere"
        if not isinstance(stage, TrainStage):
            continue
        if stage.keep == "best_on_target":
            if stage.evaluate is None:
                yield (*place, "keep"), "keep: best_on_target chooses by the scores of `evaluate`, which is not there"
            continue
        if stage.evaluate is not None and _counts_as_bare(recipe, stage, stage.evaluate.data, unlabelled):
            if stage.keep == "best":
                yield (*place, "keep"), f"keep: best would choose weights by masks of {_why(stage.evaluate.data)}"
            elif stage.patience is not None and stage.keep not in LABEL_FREE:
                yield (*place, "patience"), f"patience would end training by masks of {_why(stage.evaluate.data)}"
        if stage.audit is not None and stage.audit.stop is not None:
            during = None if stage.evaluate is None else stage.evaluate.data
            val = during if stage.audit.val == "evaluate" else stage.audit.val
            if val is not None and _counts_as_bare(recipe, stage, val, unlabelled):
                text = f"audit.stop would end training by masks of {_why(val)}; or audit.val: null"
                yield (*place, "audit", "stop"), text


def _why(data: str) -> str:
    return (
        f"{data}, which counts as unlabelled: no stage that this one builds upon is trained on its masks. Write "
        "keep: agreement, balance or entropy, which open no mask, or keep: last; or keep: best_on_target, and every "
        "result is marked"
    )


def evaluates_on_target(recipe: Recipe, stage: TrainStage) -> bool:
    """Whether the scores while training are of masks that count as missing."""
    return stage.evaluate is not None and counts_as_bare(recipe, stage, stage.evaluate.data)


def counts_as_bare(recipe: Recipe, stage: TrainStage, data: str) -> bool:
    """Whether masks of ``data`` count as missing for what ``stage`` trains."""
    return _counts_as_bare(recipe, stage, data, _unlabelled(recipe))


def chosen_on_target(recipe: Recipe, stage: Stage) -> bool:
    """Whether the weights of a stage, or of one that it builds upon, are chosen with target labels."""
    every = _with_those_before(recipe, stage)
    return any(isinstance(it, TrainStage) and it.keep == "best_on_target" for it in every)


def _counts_as_bare(recipe: Recipe, stage: Stage, data: str, unlabelled: set[str]) -> bool:
    whose, _ = _origin(recipe, data)
    if whose not in unlabelled:
        return False
    before = (it for it in _with_those_before(recipe, stage) if isinstance(it, TrainStage))
    return not any(whose in _streams_of(recipe, it)[0] for it in before)


def _with_those_before(recipe: Recipe, stage: Stage) -> list[Stage]:
    """A stage and all that it builds upon."""
    found, waiting = [stage], [stage]
    while waiting:
        one = waiting.pop()
        for reference in named_in(one.kind, one.model_dump(mode="json")):
            before = recipe.stages.get(reference.partition(".")[0])
            if before is not None and not any(before is other for other in found):
                found.append(before)
                waiting.append(before)
    return found


def _unlabelled(recipe: Recipe) -> set[str]:
    """The data sets that some stage, or some rung of the ladder, reads without their masks."""
    found: set[str] = set()
    for stage in recipe.stages.values():
        if isinstance(stage, TrainStage):
            found |= _streams_of(recipe, stage)[1]
    return found if recipe.ladder is None else found | _unlabelled_by_rungs(recipe, recipe.ladder)


def _unlabelled_by_rungs(recipe: Recipe, ladder: LadderSettings) -> set[str]:
    methods = [rung.name for rung in ladder.rungs.values()]
    for rung in ladder.rungs.values():
        chosen = (stage.get("method") for stage in rung.stages.values())
        methods += [str(it.get("name") if isinstance(it, dict) else it) for it in chosen]
    needs = [find_settings(name).streams for name in methods if name in METHODS]
    bare = {stream for streams in needs for stream, it in streams.items() if not it.labels}
    return {
        _origin(recipe, reference)[0]
        for name, stream in ladder.training.streams.items()
        if name in bare
        for reference in _listed(stream.data)
    }


def _streams_of(recipe: Recipe, stage: TrainStage) -> tuple[set[str], set[str]]:
    """The data sets whose masks a stage is trained on, and those of which it sees the images only."""
    needs = find_settings(stage.method.name).streams
    masked: set[str] = set()
    bare: set[str] = set()
    for name, stream in stage.streams.items():
        for reference in _listed(stream.data) if name in needs else ():
            whose, of_people = _origin(recipe, reference)
            (masked if needs[name].labels and of_people else bare).add(whose)
    return masked, bare


def _origin(recipe: Recipe, reference: str) -> tuple[str, bool]:
    """The data set that images come from, and whether masks of them are people's rather than a net's."""
    name = reference.partition("/")[0]
    stage = recipe.stages.get(name)
    if stage is not None:
        whose = _origin(recipe, _listed(getattr(stage, "data", name))[0])[0] if hasattr(stage, "data") else name
        return whose, not isinstance(stage, AnnotateStage)
    entry = recipe.data.get(name)
    if entry is None or entry.kind == "folder":
        return name, True
    # A published data set is the same under whatever names a recipe opens it; its variants may be domains.
    return " ".join([entry.kind, entry.root, str(getattr(entry, "variant", None))]), True


def _listed(data: str | list[str]) -> list[str]:
    return [data] if isinstance(data, str) else data


def default_of(course: Course) -> dict[str, str]:
    """What a course says of `keep`: nothing where it is not written, so that :func:`settled` may judge."""
    return {"keep": course.keep} if "keep" in course.model_fields_set else {}
