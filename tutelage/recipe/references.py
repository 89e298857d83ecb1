"""What a recipe's parts say of one another: names of data, nets and stages that must exist, in the right order."""

from __future__ import annotations

import contextlib
import difflib
import itertools
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace

from pydantic import ValidationError

from tutelage.methods import METHODS, find_settings
from tutelage.recipe.ladder import (
    CHAINED,
    known_rungs,
    label_stage,
    label_stage_name,
    methods_of,
    new_stages,
    rung_stages,
    train_stage,
)
from tutelage.recipe.schema import (
    PSEUDO_LABELS,
    AnnotateStage,
    EvaluateStage,
    FitStage,
    ImportStage,
    LadderSettings,
    Recipe,
    ReportStage,
    Stage,
    TrainStage,
    TransformStage,
)
from tutelage.recipe.wiring import named_in

Fault = tuple[tuple[str | int, ...], str]
_SECTIONS = ("data", "nets", "stages")
WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")


@dataclass
class _Known:
    """The names that a stage may refer to: all data sets and nets, and the stages before it by what they make."""

    data: list[str]
    nets: list[str]
    trained: list[str]
    annotated: list[str]
    scores: dict[str, EvaluateStage] = field(default_factory=dict)
    unread: Collection[str] = ()
    """Nets and stages of which only the name is known."""
    copied: list[str] = field(default_factory=list)
    fits: dict[str, FitStage] = field(default_factory=dict)


def check_references(recipe: Recipe, left_out: Collection[tuple[str, str]] = ()) -> list[Fault]:
    """Every reference that leads nowhere, as (path in the recipe, what is wrong).

    ``left_out``: (section, name) of data sets, nets and stages that could not be read and are not in ``recipe``.
    """
    faults: list[Fault] = []
    data, nets, stages = ([name for kind, name in left_out if kind == section] for section in _SECTIONS)
    known = _Known([*recipe.data, *data], [*recipe.nets, *nets], [*stages], [*stages], unread=[*nets, *stages])
    for name, stage in recipe.stages.items():
        place = ("stages", name)
        if name in recipe.data:
            faults.append((place, f"stage {name!r} has the name of a data set; streams could not tell them apart"))
        if isinstance(stage, TrainStage):
            faults += _train(recipe, stage, place, known)
            known.trained.append(name)
        elif isinstance(stage, ImportStage):
            known.trained.append(name)
        elif isinstance(stage, AnnotateStage):
            faults += _reference(stage.net, (*place, "net"), known)
            faults += _data(stage.data, (*place, "data"), known)
            faults += _truth(stage.audit.val, (*place, "audit", "val"), known)
            faults += _mixtures(stage, place, known)
            known.annotated.append(name)
        elif isinstance(stage, FitStage):
            faults += _fit(recipe, stage, place, known)
            known.fits[name] = stage
        elif isinstance(stage, TransformStage):
            faults += _data(stage.data, (*place, "data"), known)
            faults += _data(stage.target, (*place, "target"), known)
            known.copied.append(name)
        elif isinstance(stage, EvaluateStage):
            for label, reference in stage.named().items():
                faults += _reference(reference, (*place, "nets", label), known)
            faults += _data(stage.data, (*place, "data"), known)
            known.scores[name] = stage
        elif isinstance(stage, ReportStage):
            faults += _report(stage, place, known)
    if recipe.ladder is not None:
        faults += dict.fromkeys(_ladder(recipe, recipe.ladder, known))
    return faults


def _train(recipe: Recipe, stage: TrainStage, place: tuple[str, ...], known: _Known) -> Iterator[Fault]:
    chosen = roles(recipe, stage)
    for role, net in chosen.items():
        if net not in known.nets and (stage.nets or not known.unread):
            yield (*place, "nets", role), f"no net {net!r}{nearest(net, known.nets)}"
    method = find_settings(stage.method.name) if stage.method.name in METHODS else None
    fits, teachers = ({}, ()) if method is None else (method.fitted_inputs, method.teachers)
    for role, reference in stage.inputs.items():
        if role in fits:
            yield from _fitted(reference, (*place, "inputs", role), known, fits[role], role)
        elif reference not in known.fits or role in teachers:
            yield from _reference(reference, (*place, "inputs", role), known)
    for target, source in stage.init.items():
        role, _, part = target.partition(".")
        if not source.endswith(WEIGHT_SUFFIXES):
            yield from _reference(source, (*place, "init", target), known)
        if role not in chosen:
            yield (*place, "init", target), f"no net has the role {role!r}{nearest(role, chosen)}"
        if part not in ("", "encoder"):
            yield (*place, "init", target), f"{target!r} is no net and no encoder; write {role} or {role}.encoder"
    for stream, settings in stage.streams.items():
        names = listed(settings.data)
        for name in names:
            yield from _data(name, (*place, "streams", stream, "data"), known)
        if settings.weights is not None:
            yield from _weights(recipe, stage, stream, (*place, "streams", stream, "weights"), known)
        if settings.draws_of is not None and settings.draws_of not in stage.streams:
            yield (
                (*place, "streams", stream, "draws_of"),
                f"no stream {settings.draws_of!r}{nearest(settings.draws_of, stage.streams)}",
            )
        if isinstance(settings.repeat, list) and len(settings.repeat) != len(names):
            yield (*place, "streams", stream, "repeat"), f"{len(settings.repeat)} numbers for {len(names)} data sets"
    if stage.evaluate is not None:
        yield from _data(stage.evaluate.data, (*place, "evaluate", "data"), known)
    if stage.audit is not None:
        for name in listed(stage.audit.data or []):
            yield from _data(name, (*place, "audit", "data"), known)
        if stage.audit.val != "evaluate":
            yield from _truth(stage.audit.val, (*place, "audit", "val"), known)
    if stage.method.name in METHODS:
        yield from _method(stage, place)


def _method(stage: TrainStage, place: tuple[str, ...]) -> Iterator[Fault]:
    method = find_settings(stage.method.name)
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
        views = method.streams[stream].known
        for view in settings.views:
            if view not in views:
                yield (*place, "streams", stream, "views", view), f"no view {view!r}{nearest(view, views)}"
    chosen = {"student": "", **stage.nets}  # where no net is named there is a student all the same
    for role in method.trained_nets:
        if role not in chosen:
            yield (*place, "nets"), f"method {stage.method.name} trains a net {role!r}: `nets: {{{role}: <net>}}`"
    for role in stage.nets:
        if role not in method.trained_nets:
            yield (
                (*place, "nets", role),
                f"method {stage.method.name} has no net {role!r}{nearest(role, method.trained_nets)}",
            )
    for teacher in method.teachers:
        if teacher not in stage.inputs:
            yield (
                (*place, "inputs"),
                f"method {stage.method.name} needs a trained net: `inputs: {{{teacher}: <stage>}}`",
            )
    for role in method.fitted_inputs:
        if role not in stage.inputs:
            yield (*place, "inputs"), f"method {stage.method.name} needs a fit: `inputs: {{{role}: <fit stage>}}`"
    for role in stage.inputs:
        if role not in method.teachers and role not in method.fitted_inputs:
            hint = nearest(role, (*method.teachers, *method.fitted_inputs))
            yield (*place, "inputs", role), f"method {stage.method.name} has no role {role!r}{hint}"


def _fit(recipe: Recipe, stage: FitStage, place: tuple[str, ...], known: _Known) -> Iterator[Fault]:
    if stage.net is not None:
        yield from _reference(stage.net, (*place, "net"), known)
    if stage.encoder is not None and stage.encoder not in known.nets:
        yield (*place, "encoder"), f"no net {stage.encoder!r}{nearest(stage.encoder, known.nets)}"
    yield from _data(stage.data, (*place, "data"), known)
    if stage.target is not None:
        yield from _data(stage.target, (*place, "target"), known)
    if stage.entropies is not None:
        yield from _fitted(stage.entropies, (*place, "entropies"), known, ("entropies",), "entropies")


def _mixtures(stage: AnnotateStage, place: tuple[str, ...], known: _Known) -> Iterator[Fault]:
    """The fit that labels go by: mixtures of features of the net that labels."""
    if stage.mixtures is None:
        return
    yield from _fitted(stage.mixtures, (*place, "mixtures"), known, ("mixtures",), "mixtures")
    fit = known.fits.get(stage.mixtures)
    if fit is not None and fit.what.kind == "mixtures" and _whole(fit.net) != _whole(stage.net):
        yield (
            (*place, "mixtures"),
            f"{stage.mixtures!r} was fitted to features of {fit.net!r}; they say nothing of those of {stage.net!r}",
        )


def _whole(reference: str | None) -> str | None:
    """A net by its full name, ``stage.net``."""
    return reference if reference is None or "." in reference else f"{reference}.student"


def _fitted(
    reference: str, place: tuple[str | int, ...], known: _Known, kinds: Collection[str], what: str
) -> Iterator[Fault]:
    """A fit stage before this one, of one of some kinds."""
    fit = known.fits.get(reference)
    if fit is None:
        if reference not in known.unread:
            yield place, f"no fit stage {reference!r} before this{nearest(reference, known.fits)}"
    elif fit.what.kind not in kinds:
        yield place, f"{what} takes a fit of {' or '.join(kinds)}; stage {reference!r} fits {fit.what.kind}"


def _weights(
    recipe: Recipe, stage: TrainStage, stream: str, place: tuple[str | int, ...], known: _Known
) -> Iterator[Fault]:
    """A fit of weights, made of just the images that the stream has, for a stream whose masks are read."""
    settings = stage.streams[stream]
    assert settings.weights is not None
    yield from _fitted(settings.weights, place, known, ("transferability",), "weights")
    fit = known.fits.get(settings.weights)
    if fit is not None and fit.what.kind == "transferability":
        # A copy with a split is a fault by itself.
        whole = [it for it in listed(settings.data) if it.partition("/")[0] not in known.copied or "/" not in it]
        others = [it for it in whole if not _same_images(recipe, it, fit.data)]
        if others:
            yield place, f"stage {settings.weights!r} has weights for the images of {fit.data}, none for {others[0]}"
    if stage.method.name in METHODS:
        needs = find_settings(stage.method.name).streams.get(stream)
        if needs is not None and not needs.labels:
            yield place, f"stream {stream!r} reads no masks; weights are for labelled images"


def _same_images(recipe: Recipe, one: str, other: str) -> bool:
    """Whether two references lead to one data set; a split that is left out is the only one."""
    parts = [source_of(recipe, reference).partition("/") for reference in (one, other)]
    splits = {split for _, _, split in parts} - {""}
    return parts[0][0] == parts[1][0] and len(splits) < 2


def source_of(recipe: Recipe, reference: str) -> str:
    """The data set that images come from, through the stages that copied or labelled them."""
    seen = {reference}
    stage = recipe.stages.get(reference)
    while isinstance(stage, AnnotateStage | TransformStage):
        reference = stage.data
        if reference in seen:
            break
        seen.add(reference)
        stage = recipe.stages.get(reference)
    return reference


def _ladder(recipe: Recipe, ladder: LadderSettings, known: _Known) -> Iterator[Fault]:
    """Faults of a ladder; what its rungs say of the training that they share is said once."""
    if ladder.student not in known.nets:
        yield ("ladder", "student"), f"no net {ladder.student!r}{nearest(ladder.student, known.nets)}"
    if ladder.teacher is not None:
        yield from _reference(ladder.teacher, ("ladder", "teacher"), known)
    yield from _data(ladder.score.data, ("ladder", "score", "data"), known)
    if ladder.tune is not None:
        yield from _data(ladder.tune.data, ("ladder", "tune", "data"), known)
        if ladder.tune.data == ladder.score.data:
            yield ("ladder", "tune", "data"), "values that are chosen on the scored data flatter; name other data"
        if "steps" in ladder.tune.values:
            yield ("ladder", "tune", "values"), "trials compare at an equal number of steps; a rung may have its own"
    if ladder.plain not in ladder.rungs:
        where = "plain" if "plain" in ladder.model_fields_set else "rungs"
        yield ("ladder", where), f"no rung {ladder.plain!r}{nearest(ladder.plain, ladder.rungs)}"
    if ladder.oracle is not None and ladder.oracle not in ladder.rungs:
        yield ("ladder", "oracle"), f"no rung {ladder.oracle!r}{nearest(ladder.oracle, ladder.rungs)}"
    elif ladder.oracle == ladder.plain:
        yield ("ladder", "oracle"), "the oracle cannot be the rung that must be beaten: there is no gain between them"
    rungs = {name: rung for name, rung in ladder.rungs.items() if rung.stages or rung.name in known_rungs()}
    labels = [label_stage_name(name) for name, rung in rungs.items() if rung.name == PSEUDO_LABELS]
    known = replace(known, annotated=[*known.annotated, *labels])
    sound = len(rungs) == len(ladder.rungs)
    for name, rung in rungs.items():
        place = ("ladder", "rungs", name)
        if rung.stages:
            found = list(_chain(recipe, ladder, name, known))
            yield from found
            sound = sound and not found and _chain_stages(ladder, name) is not None
            continue
        if "." in rung.scored:
            yield (*place, "scored"), f"{rung.scored!r} is a net of a stage, and this rung has no stages; name its net"
        pseudo = rung.name == PSEUDO_LABELS
        if ladder.teacher is None and (pseudo or "teacher" in find_settings(rung.name).teachers):
            yield place, f"{rung.name} needs a trained net: `teacher: <stage>` beside `student`"
            sound = False
            continue
        try:
            if pseudo:
                yield from _data(label_stage(ladder, name).data, (*place, "data"), known)
            stage = train_stage(ladder, name, 0, {})
        except ValidationError:
            sound = False  # said where settings are checked
            continue
        for path, text in _train(recipe, stage, place, known):
            part = path[3:4]
            if part == ("inputs",) and path[4:5] != ("teacher",):
                yield place, f"{text}; a ladder has one net that teaches, the role `teacher`"
            elif part == ("nets",) and path[4:5] != ("student",):
                yield (*place, *path[3:]), text
            elif part not in (("nets",), ("inputs",)):
                own = part[0] in rung.training
                yield (*((*place, "training") if own else ("ladder", "training")), *path[3:]), text
    if sound:
        yield from _idle_streams(ladder)
        with contextlib.suppress(ValidationError):  # of what the trials change, said there, too
            for name in new_stages(recipe):
                if name in recipe.stages or name in recipe.data:
                    yield ("ladder", "rungs"), f"a stage of the ladder would be called {name!r}, a name that is taken"


def _chain(recipe: Recipe, ladder: LadderSettings, name: str, known: _Known) -> Iterator[Fault]:
    """Faults of a rung's stages: those of the same stages in a recipe, at the places where they are written."""
    rung, place = ladder.rungs[name], ("ladder", "rungs", name)
    for local, content in rung.stages.items():
        kind = content.get("kind", "train")
        if kind not in CHAINED:
            yield (
                (*place, "stages", local, "kind"),
                f"a rung has no stage of kind {kind!r}{nearest(str(kind), CHAINED)}",
            )
            return
        if local in recipe.data or local in recipe.stages:
            yield (
                (*place, "stages", local),
                f"{local!r} is a name of the recipe already; which is meant could not be told",
            )
    stages = _chain_stages(ladder, name)
    if stages is None:
        return  # said where settings are checked
    if not any(isinstance(stage, TrainStage) for stage in stages.values()):
        yield (*place, "stages"), "no stage trains; at least one must"
    left_out = [("data", it) for it in known.data if it not in recipe.data]
    left_out += [("nets", it) for it in known.nets if it not in recipe.nets]
    left_out += [("stages", it) for it in known.unread if it not in known.nets]
    changes = {"stages": {**recipe.stages, **stages}, "ladder": None}
    own = len(f"{name}-")
    for path, text in check_references(recipe.model_copy(update=changes), left_out):
        if path[0] == "stages" and path[1] in stages:
            for made in stages:
                text = text.replace(repr(made), repr(made[own:])).replace(made, made[own:])
            yield (*place, "stages", str(path[1])[own:], *path[2:]), text


def _chain_stages(ladder: LadderSettings, name: str) -> dict[str, Stage] | None:
    """The stages of a rung that has some; ``None`` where their settings cannot be meant."""
    if not METHODS.keys() >= set(methods_of(ladder.rungs[name])):
        return None
    try:
        return rung_stages(ladder, name, name, 0, {})
    except ValidationError:
        return None


def _idle_streams(ladder: LadderSettings) -> Iterator[Fault]:
    """Streams and views that no rung asks for."""
    methods = [find_settings(method) for rung in ladder.rungs.values() for method in methods_of(rung)]
    needed = list(dict.fromkeys(itertools.chain.from_iterable(method.streams for method in methods)))
    for stream, settings in ladder.training.streams.items():
        place = ("ladder", "training", "streams", stream)
        if stream not in needed:
            yield place, f"no rung has a stream {stream!r}{nearest(stream, needed)}"
            continue
        views = {view for method in methods if stream in method.streams for view in method.streams[stream].known}
        for view in settings.views:
            if view not in views:
                yield (*place, "views", view), f"no rung has a view {view!r}{nearest(view, sorted(views))}"
        if settings.draws_of is not None and settings.draws_of not in ladder.training.streams:
            known = ladder.training.streams
            yield (*place, "draws_of"), f"no stream {settings.draws_of!r}{nearest(settings.draws_of, known)}"


def roles(recipe: Recipe, stage: TrainStage) -> dict[str, str]:
    """Role → net of the recipe; where none is named, the student is the net `student`, or the only one."""
    if stage.nets:
        return dict(stage.nets)
    return {"student": "student" if "student" in recipe.nets else next(iter(recipe.nets), "student")}


def listed(data: str | list[str]) -> list[str]:
    """One name or several, as a list."""
    return [data] if isinstance(data, str) else list(data)


def stages_before(recipe: Recipe, name: str) -> list[str]:
    """The stages whose artefacts stage ``name`` reads, directly."""
    stage = recipe.stages[name]
    if isinstance(stage, EvaluateStage):
        references = [*stage.named().values(), stage.data]
    elif isinstance(stage, ReportStage):
        references = [stage.scores, *stages_before(recipe, stage.scores)]
    else:
        references = named_in(stage.kind, stage.model_dump(mode="json"))
    names = dict.fromkeys(it.partition(".")[0] for it in references if not it.endswith(WEIGHT_SUFFIXES))
    return [known for known in names if known in recipe.stages]


def _report(stage: ReportStage, place: tuple[str, str], known: _Known) -> Iterator[Fault]:
    scores = known.scores.get(stage.scores)
    if scores is None:
        if stage.scores not in known.unread:
            hint = nearest(stage.scores, known.scores)
            yield (*place, "scores"), f"no evaluate stage {stage.scores!r} before this{hint}"
        return
    for role in ("baseline", "student", "teacher"):
        label = getattr(stage, role)
        if label is not None and label not in scores.named():
            yield (*place, role), f"stage {stage.scores!r} scores no net {label!r}{nearest(label, scores.named())}"


def _reference(reference: str, place: tuple[str | int, ...], known: _Known) -> Iterator[Fault]:
    stage = reference.partition(".")[0]
    if stage not in known.trained:
        yield place, f"no train stage {stage!r} before this{nearest(stage, known.trained)}"


def _data(name: str, place: tuple[str | int, ...], known: _Known) -> Iterator[Fault]:
    """``name``, ``name/split`` or an annotate stage; whether there is such a split is known when it is opened."""
    head, separator, _ = name.partition("/")
    if head in known.annotated and separator and head not in known.unread:
        yield place, f"{head!r} is an annotate stage, which has no splits; write {head!r} alone"
    elif head in known.copied and separator:
        yield place, f"{head!r} is a transform stage, which has no splits; write {head!r} alone"
    elif head not in known.data and head not in known.annotated and head not in known.copied:
        yield place, f"no data set {head!r}{nearest(head, [*known.data, *known.annotated, *known.copied])}"


def _truth(name: str | None, place: tuple[str | int, ...], known: _Known) -> Iterator[Fault]:
    """Labelled data, which pseudo labels are not."""
    if name in known.annotated and name not in known.unread:
        yield place, f"{name!r} is an annotate stage; pseudo labels cannot say whether pseudo labels are right"
    elif name is not None:
        yield from _data(name, place, known)


def nearest(given: str, known: Iterable[str]) -> str:
    """What may have been meant by ``given``, and all that is known; nothing where nothing is known."""
    known = list(known)
    close = difflib.get_close_matches(given, known, n=1, cutoff=0.6)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"{hint} (known: {', '.join(known) or 'none'})"
