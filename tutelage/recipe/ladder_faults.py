"""Errors of a recipe's ladder, with their places; those of the shared training are listed once."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator

from pydantic import BaseModel, ValidationError

from tutelage.methods import METHODS, find_settings
from tutelage.recipe.base import Fault, StageSettings, nearest
from tutelage.recipe.ladder import (
    CHAINED,
    chain_stage,
    course,
    expand,
    label_stage,
    label_stage_name,
    methods_of,
    nested,
    new_stages,
    rung_stages,
    train_stage,
    untuned,
)
from tutelage.recipe.ladder_settings import PSEUDO_LABELS, LadderSettings, known_rungs
from tutelage.recipe.leaks import is_bare, leak_faults
from tutelage.recipe.references import Known, check_references, stage_faults
from tutelage.recipe.schema import Recipe
from tutelage.recipe.stages.train import Course, TrainStage
from tutelage.settings import Place, references

Invalid = Callable[[ValidationError, Place, type[BaseModel]], list[Fault]]
"""Converts a validator's findings on settings with ``content`` at a place to errors."""


def ladder_faults(recipe: Recipe, ladder: LadderSettings, known: Known) -> Iterator[Fault]:
    """Unknown names, incomplete rungs, streams that no rung reads."""
    yield from _own_names(ladder, known)
    rungs = {name: rung for name, rung in ladder.rungs.items() if rung.stages or rung.name in known_rungs()}
    for name, rung in rungs.items():
        if rung.name == PSEUDO_LABELS and ladder.teacher is not None:
            with contextlib.suppress(ValidationError):  # reported by the check of the settings
                known.stages[label_stage_name(name)] = label_stage(ladder, name)
    found = [
        fault
        for name, rung in rungs.items()
        for fault in (_chain(recipe, ladder, name, known) if rung.stages else _rung(recipe, ladder, name, known))
    ]
    yield from found
    if len(rungs) < len(ladder.rungs) or any(_stages(ladder, name) is None for name in rungs):
        return
    yield from _idle_streams(ladder)
    if not found:
        with contextlib.suppress(ValidationError):  # invalid trial values are reported there, too
            for name in new_stages(recipe):
                if name in recipe.stages or name in recipe.data:
                    text = f"the ladder needs the stage name {name!r}, which is already used"
                    yield Fault(("ladder", "rungs"), "name-taken", text)


def _own_names(ladder: LadderSettings, known: Known) -> Iterator[Fault]:
    for reference in references(ladder):
        if reference.place[0] in ("student", "teacher", "score", "tune"):
            for fault in known.faults(reference):
                yield fault.below(("ladder",))
    if ladder.tune is not None:
        if ladder.tune.data == ladder.score.data:
            text = "values chosen on the scored data bias the scores; name other data"
            yield Fault(("ladder", "tune", "data"), "tuned-on-scored-data", text)
        if "steps" in ladder.tune.values:
            text = "trials compare rungs at an equal number of steps; set it in a rung"
            yield Fault(("ladder", "tune", "values"), "tuned-steps", text)
    if ladder.plain not in ladder.rungs:
        where = "plain" if "plain" in ladder.model_fields_set else "rungs"
        yield Fault(("ladder", where), "unknown-rung", f"no rung {ladder.plain!r}{nearest(ladder.plain, ladder.rungs)}")
    if ladder.oracle is not None and ladder.oracle not in ladder.rungs:
        text = f"no rung {ladder.oracle!r}{nearest(ladder.oracle, ladder.rungs)}"
        yield Fault(("ladder", "oracle"), "unknown-rung", text)
    elif ladder.oracle == ladder.plain:
        text = "`oracle` and `plain` must be different rungs"
        yield Fault(("ladder", "oracle"), "oracle-is-plain", text)


def _rung(recipe: Recipe, ladder: LadderSettings, name: str, known: Known) -> Iterator[Fault]:
    """Errors of a rung with one method."""
    rung, place = ladder.rungs[name], ("ladder", "rungs", name)
    if "." in rung.scored:
        text = f"{rung.scored!r} names a stage's net, but this rung has no stages; write the net's role alone"
        yield Fault((*place, "scored"), "invalid-value", text)
    pseudo = rung.name == PSEUDO_LABELS
    if ladder.teacher is None and (pseudo or "teacher" in find_settings(rung.name).teachers):
        text = f"{rung.name} needs a trained net: `teacher: <stage>` beside `student`"
        yield Fault(place, "missing-teacher", text)
        return
    try:
        if pseudo:
            for reference in references(label_stage(ladder, name)):
                if reference.place == ("data",):
                    yield from (fault.below(place) for fault in known.faults(reference))
        stage = train_stage(ladder, name, 0, {})
    except ValidationError:
        return  # reported by the check of the settings
    for fault in stage_faults(recipe, stage, known):
        part = fault.place[:1]
        if part == ("inputs",) and fault.place[1:2] != ("teacher",):
            text = f"{fault.text}; a ladder has one teacher, with the role `teacher`"
            yield Fault(place, fault.code, text)
        elif part == ("nets",) and fault.place[1:2] != ("student",):
            yield fault.below(place)
        elif part not in (("nets",), ("inputs",)):
            own = part[0] in rung.training
            yield fault.below((*place, "training") if own else ("ladder", "training"))


def _chain(recipe: Recipe, ladder: LadderSettings, name: str, known: Known) -> Iterator[Fault]:
    """Errors of a rung's stages: those of the same stages in a recipe."""
    rung, place = ladder.rungs[name], ("ladder", "rungs", name, "stages")
    for local, content in rung.stages.items():
        kind = content.get("kind", "train")
        if kind not in CHAINED:
            text = f"a rung cannot contain a stage of kind {kind!r}{nearest(str(kind), CHAINED)}"
            yield Fault((*place, local, "kind"), "unknown-kind", text)
            return
        if local in recipe.data or local in recipe.stages:
            text = f"ambiguous name: {local!r} is already used in the recipe"
            yield Fault((*place, local), "name-taken", text)
    stages = _stages(ladder, name)
    if stages is None:
        return  # reported by the check of the settings
    if not any(stage.trains for stage in stages.values()):
        yield Fault(place, "nothing-trains", "expected at least one train stage")
    left_out = [("data", it) for it in known.data if it not in recipe.data]
    left_out += [("nets", it) for it in known.nets if it not in recipe.nets]
    left_out += [("stages", it) for it in known.unread if it not in known.nets]
    whole = recipe.model_copy(update={"stages": {**recipe.stages, **stages}, "ladder": None})
    own = len(f"{name}-")
    for fault in check_references(whole, left_out)[0]:
        if fault.place[0] == "stages" and fault.place[1] in stages:
            text = fault.text
            for made in stages:
                text = text.replace(repr(made), repr(made[own:])).replace(made, made[own:])
            yield Fault((*place, str(fault.place[1])[own:], *fault.place[2:]), fault.code, text)


def _stages(ladder: LadderSettings, name: str) -> dict[str, StageSettings] | None:
    """The stages of a rung; ``None`` where their settings are invalid."""
    if not METHODS.keys() >= set(methods_of(ladder.rungs[name])):
        return None
    try:
        return rung_stages(ladder, name, name, 0, {})
    except ValidationError:
        return None


def _idle_streams(ladder: LadderSettings) -> Iterator[Fault]:
    """Streams and views that no rung reads."""
    specs = [find_settings(method) for rung in ladder.rungs.values() for method in methods_of(rung)]
    needed = list(dict.fromkeys(itertools.chain.from_iterable(spec.streams for spec in specs)))
    for stream, settings in ladder.training.streams.items():
        place = ("ladder", "training", "streams", stream)
        if stream not in needed:
            yield Fault(place, "unknown-stream", f"no rung has a stream {stream!r}{nearest(stream, needed)}")
            continue
        views = {view for spec in specs if stream in spec.streams for view in spec.streams[stream].known}
        for view in settings.views:
            if view not in views:
                text = f"no rung has a view {view!r}{nearest(view, sorted(views))}"
                yield Fault((*place, "views", view), "unknown-view", text)
        if settings.draws_of is not None and settings.draws_of not in ladder.training.streams:
            text = f"no stream {settings.draws_of!r}{nearest(settings.draws_of, ladder.training.streams)}"
            yield Fault((*place, "draws_of"), "unknown-stream", text)


def setting_faults(ladder: LadderSettings, invalid: Invalid) -> Iterator[Fault]:
    """Invalid changes of the training, by the rungs or the trials, and invalid stages of rungs."""
    changes: list[tuple[Place, dict[str, object]]] = [
        (("ladder", "rungs", name, "training"), rung.training) for name, rung in ladder.rungs.items()
    ]
    for key, tried in ladder.tune.values.items() if ladder.tune is not None else ():
        changes += [(("ladder", "tune", "values"), nested(key, value)) for value in tried]
    for place, change in changes:
        try:
            course(ladder, change, {})
        except ValidationError as error:
            yield from invalid(error, place, Course)
    for name, rung in ladder.rungs.items():
        for local in rung.stages:
            try:
                chain_stage(ladder, name, local, name, 0, {})
            except ValidationError as error:
                yield from invalid(error, ("ladder", "rungs", name, "stages", local), TrainStage)


def ladder_leaks(recipe: Recipe, ladder: LadderSettings) -> Iterator[Fault]:
    """Choices of all rungs that use masks treated as missing, with their places."""
    expanded = expand(recipe, untuned(ladder))
    owners = {name: attempt.rung for attempt in expanded.attempts.values() for name in attempt.trained}
    for fault in leak_faults(expanded.recipe):
        rung = owners.get(str(fault.place[1]))
        if rung is None:
            continue
        own = fault.place[2] in ladder.rungs[rung].training or bool(ladder.rungs[rung].stages)
        place = ("ladder", "rungs", rung, "training") if own else ("ladder", "training")
        yield Fault((*place, *fault.place[2:]), fault.code, fault.text)
    if ladder.tune is None or ladder.tune.on_target:
        return
    for name in owners:
        if is_bare(expanded.recipe, expanded.recipe.stages[name], ladder.tune.data):
            text = (
                f"the trials would use masks of {ladder.tune.data}, which counts as unlabelled; name other "
                "data, or write on_target: true, which marks every result"
            )
            yield Fault(("ladder", "tune", "data"), "target-labels", text)
