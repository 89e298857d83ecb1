"""What a recipe's parts say of one another: names of data, nets and stages that must exist, in the right order."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator

from tutelage.recipe.schema import METHODS, AnnotateStage, EvaluateStage, Recipe, ReportStage, TrainStage, find_method

Fault = tuple[tuple[str | int, ...], str]
WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")


def check_references(recipe: Recipe) -> list[Fault]:
    """Every reference that leads nowhere, as (path in the recipe, what is wrong)."""
    faults: list[Fault] = []
    before: dict[str, object] = {}
    for name, stage in recipe.stages.items():
        place = ("stages", name)
        if name in recipe.data:
            faults.append((place, f"stage {name!r} has the name of a data set; streams could not tell them apart"))
        if isinstance(stage, TrainStage):
            faults += _train(recipe, stage, place, before)
        elif isinstance(stage, AnnotateStage):
            faults += _reference(stage.net, (*place, "net"), before)
            faults += _data(recipe, stage.data, (*place, "data"), before)
        elif isinstance(stage, EvaluateStage):
            for label, reference in stage.named().items():
                faults += _reference(reference, (*place, "nets", label), before)
            faults += _data(recipe, stage.data, (*place, "data"), before)
        elif isinstance(stage, ReportStage):
            faults += _report(stage, place, before)
        before[name] = stage
    return faults


def _train(recipe: Recipe, stage: TrainStage, place: tuple[str, str], before: dict[str, object]) -> Iterator[Fault]:
    for role, net in roles(recipe, stage).items():
        if net not in recipe.nets:
            yield (*place, "nets", role), f"no net {net!r}{nearest(net, recipe.nets)}"
    for role, reference in stage.inputs.items():
        yield from _reference(reference, (*place, "inputs", role), before)
    for target, source in stage.init.items():
        if not source.endswith(WEIGHT_SUFFIXES):
            yield from _reference(source, (*place, "init", target), before)
        if target.partition(".")[0] not in roles(recipe, stage):
            yield (*place, "init", target), f"no net has the role {target.partition('.')[0]!r}"
    for stream, settings in stage.streams.items():
        names = [settings.data] if isinstance(settings.data, str) else settings.data
        for name in names:
            yield from _data(recipe, name, (*place, "streams", stream, "data"), before)
        if settings.draws_of is not None and settings.draws_of not in stage.streams:
            yield (*place, "streams", stream, "draws_of"), f"no stream {settings.draws_of!r}"
        if settings.repeat is not None and len(settings.repeat) != len(names):
            yield (*place, "streams", stream, "repeat"), f"{len(settings.repeat)} numbers for {len(names)} data sets"
    if stage.evaluate is not None:
        yield from _data(recipe, stage.evaluate.data, (*place, "evaluate", "data"), before)
    if stage.method.name in METHODS:
        yield from _method(stage, place)


def _method(stage: TrainStage, place: tuple[str, str]) -> Iterator[Fault]:
    method = find_method(stage.method.name)
    for stream, needs in method.streams.items():
        if stream not in stage.streams:
            yield (*place, "streams"), f"method {stage.method.name} needs a stream {stream!r} ({needs.about})"
    for stream, settings in stage.streams.items():
        if stream not in method.streams:
            yield (
                (*place, "streams", stream),
                f"method {stage.method.name} has no stream {stream!r}" + nearest(stream, method.streams),
            )
            continue
        views = method.streams[stream].views
        for view in settings.views:
            if view not in views:
                yield (*place, "streams", stream, "views", view), f"no view {view!r}{nearest(view, views)}"
    for teacher in method.teachers:
        if teacher not in stage.inputs:
            yield (
                (*place, "inputs"),
                f"method {stage.method.name} needs a trained net: `inputs: {{{teacher}: <stage>}}`",
            )
    for role in stage.inputs:
        if role not in method.teachers:
            yield (
                (*place, "inputs", role),
                f"method {stage.method.name} has no role {role!r}{nearest(role, method.teachers)}",
            )


def roles(recipe: Recipe, stage: TrainStage) -> dict[str, str]:
    """Role → net of the recipe; where none is named, the student is the net `student`, or the only one."""
    if stage.nets:
        return dict(stage.nets)
    return {"student": "student" if "student" in recipe.nets else next(iter(recipe.nets), "student")}


def _report(stage: ReportStage, place: tuple[str, str], before: dict[str, object]) -> Iterator[Fault]:
    scores = before.get(stage.scores)
    if not isinstance(scores, EvaluateStage):
        evaluations = [name for name, other in before.items() if isinstance(other, EvaluateStage)]
        yield (*place, "scores"), f"no evaluate stage {stage.scores!r} before this{nearest(stage.scores, evaluations)}"
        return
    for role in ("baseline", "student", "teacher"):
        label = getattr(stage, role)
        if label is not None and label not in scores.named():
            yield (*place, role), f"stage {stage.scores!r} scores no net {label!r}{nearest(label, scores.named())}"


def _reference(reference: str, place: tuple[str | int, ...], before: dict[str, object]) -> Iterator[Fault]:
    stage = reference.partition(".")[0]
    trained = [name for name, other in before.items() if isinstance(other, TrainStage)]
    if stage not in trained:
        yield place, f"no train stage {stage!r} before this{nearest(stage, trained)}"


def _data(recipe: Recipe, name: str, place: tuple[str | int, ...], before: dict[str, object]) -> Iterator[Fault]:
    """``name``, ``name/split`` or an annotate stage; whether there is such a split is known when it is opened."""
    head = name.partition("/")[0]
    annotated = [stage for stage, other in before.items() if isinstance(other, AnnotateStage)]
    if head not in recipe.data and head not in annotated:
        yield place, f"no data set {head!r}{nearest(head, [*recipe.data, *annotated])}"


def nearest(given: str, known: Iterable[str]) -> str:
    """What may have been meant by ``given``, and all that is known; nothing where nothing is known."""
    known = list(known)
    close = difflib.get_close_matches(given, known, n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"{hint} (known: {', '.join(known) or 'none'})"
