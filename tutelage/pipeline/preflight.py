"""What is refused before the first step of the first stage: no run fails after hours for what was there to see."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from tutelage.data.checks import format_findings, poisons
from tutelage.data.statistics import read_statistics
from tutelage.errors import DataError, TutelageError
from tutelage.evaluation.class_groups import ClassGroups, class_ids, merged_names
from tutelage.methods import find_settings
from tutelage.nets.checkpoints import require_file
from tutelage.nets.encoders import check_name
from tutelage.nets.storage import check_classes, read_metadata
from tutelage.pipeline.builder import Builder, named
from tutelage.recipe.choice import evaluates_on_target
from tutelage.recipe.references import WEIGHT_SUFFIXES, listed, roles
from tutelage.recipe.schema import AnnotateStage, EvaluateStage, FitStage, ImportStage, TrainStage, TransformStage


def preflight(builder: Builder, stages: Iterable[str]) -> None:
    """Look at the nets and the masks of the stages that are about to run; masks are read once.

    Raises :class:`TutelageError` for an encoder, a weight file or a class that is not there, and :class:`DataError`
    with all findings for masks that are missing, or would poison training or scores.
    """
    stages = list(stages)
    for name in stages:
        stage = builder.recipe.stages[name]
        if isinstance(stage, ImportStage):
            _check_import(builder, name, stage)
        elif isinstance(stage, EvaluateStage):
            check_groups(builder, f"stage {name!r}: ", stage.subsets, stage.merged)
    for name in dict.fromkeys(net for stage in stages for net in _nets(builder, stage)):
        _check_net(builder, name)
    masked = (pair for stage in stages for pair in _masked(builder, stage))
    # A copy has the masks of its originals.
    origins = ((_original(builder, reference), user) for reference, user in masked)
    wanted = {reference: user for reference, user in origins if reference not in builder.recipe.stages}
    for reference, user in wanted.items():
        builder.dataset(reference).require_labels(f"{user}, data {reference}")
    findings = [
        replace(finding, dataset=reference, remedy=named(finding.remedy, reference.partition("/")[0]))
        for reference in wanted
        for finding in poisons(builder.dataset(reference))
    ]
    if findings:
        raise DataError(
            "these data would poison training or scores:\n" + format_findings(findings),
            "mend them, or take the files out of the list; `tutelage check` tells more",
        )
    for warning in _warnings(builder, stages):
        builder.say(f"warning: {warning}")


def _nets(builder: Builder, name: str) -> Iterator[str]:
    """The nets that a stage makes."""
    stage = builder.recipe.stages[name]
    if isinstance(stage, TrainStage):
        yield from roles(builder.recipe, stage).values()
    elif isinstance(stage, FitStage) and stage.encoder is not None:
        yield stage.encoder


def _original(builder: Builder, reference: str) -> str:
    """The data whose masks a reference has: those that a `transform` stage copied; else the reference itself."""
    stage = builder.recipe.stages.get(reference)
    return _original(builder, stage.data) if isinstance(stage, TransformStage) else reference


def _masked(builder: Builder, name: str) -> Iterator[tuple[str, str]]:
    """The data whose masks a stage reads, each with what reads it."""
    stage = builder.recipe.stages[name]
    if isinstance(stage, TrainStage):
        needs = find_settings(stage.method.name).streams
        for stream, settings in stage.streams.items():
            for reference in listed(settings.data) if needs[stream].labels else ():
                yield reference, f"stage {name!r}, stream {stream!r}"
        if stage.evaluate is not None:
            yield stage.evaluate.data, f"stage {name!r}, evaluate"
        if stage.audit is not None and stage.audit.val not in ("evaluate", None):
            yield stage.audit.val, f"stage {name!r}, audit"
    elif isinstance(stage, AnnotateStage):
        if stage.audit.val is not None:
            yield stage.audit.val, f"stage {name!r}, audit"
    elif isinstance(stage, FitStage):
        if stage.masked():
            yield stage.data, f"stage {name!r}"
    elif isinstance(stage, EvaluateStage):
        yield stage.data, f"stage {name!r}"


def _warnings(builder: Builder, stages: Iterable[str]) -> list[str]:
    """What is no fault, but may disappoint: said once for all stages that it is true of."""
    users: dict[str, list[str]] = {}
    for name in stages:
        stage = builder.recipe.stages[name]
        if isinstance(stage, TrainStage):
            if stage.evaluate is not None and evaluates_on_target(builder.recipe, stage):
                users.setdefault(_target_scores(stage.evaluate.data, stage.keep), []).append(name)
            labeled, unlabeled = _trained_on(builder, stage)
            for what in (*_unseen_classes(builder, labeled), *_overlaps(builder, labeled, unlabeled)):
                users.setdefault(what, []).append(name)
        elif isinstance(stage, EvaluateStage) and _original(builder, stage.data) in builder.recipe.stages:
            what = f"<stages>: {stage.data} has pseudo labels, which are no truth: a score says how far nets agree"
            users.setdefault(what, []).append(name)
    return [what.replace("<stages>", _stages(names)) for what, names in users.items()]


def _target_scores(data: str, keep: str) -> str:
    if keep == "best_on_target":
        return f"the weights of <stages> are chosen with target labels ({data}); every result says so"
    return (
        f"<stages>: scores on {data} while training read masks that count as missing; they are shown, and choose "
        f"nothing (keep: {keep})"
    )


def _trained_on(builder: Builder, stage: TrainStage) -> tuple[list[str], list[str]]:
    """The data of a stage's labelled and of its unlabelled streams."""
    needs = find_settings(stage.method.name).streams
    found: dict[bool, dict[str, None]] = {True: {}, False: {}}
    for stream, settings in stage.streams.items():
        originals = (_original(builder, reference) for reference in listed(settings.data))
        found[needs[stream].labels].update(dict.fromkeys(originals))
    return list(found[True]), list(found[False])


def _unseen_classes(builder: Builder, labeled: Sequence[str]) -> Iterator[str]:
    # Pseudo labels are not written yet: what they show cannot be known.
    if not labeled or any(reference in builder.recipe.stages for reference in labeled):
        return
    counts = [read_statistics(builder.dataset(reference)).class_pixels() for reference in labeled]
    unseen = [name for i, name in enumerate(builder.classes.names) if not any(pixels[i] for pixels in counts)]
    if unseen:
        yield (
            f"{'class' if len(unseen) == 1 else 'classes'} {', '.join(unseen)} "
            f"{'does' if len(unseen) == 1 else 'do'} not occur in the labelled images of <stages>: what no label shows "
            "cannot be learnt"
        )


def _overlaps(builder: Builder, labeled: Sequence[str], unlabeled: Sequence[str]) -> Iterator[str]:
    for bare in unlabeled:
        for taught in labeled:
            if bare in builder.recipe.stages or taught in builder.recipe.stages:
                continue
            known = {sample.image for sample in builder.dataset(taught).samples}
            images = [sample.image for sample in builder.dataset(bare).samples]
            shared = [image for image in images if image in known]
            if shared:
                more = f" and {len(shared) - 5} more" if len(shared) > 5 else ""
                yield (
                    f"{len(shared)} of the {len(images)} images of {bare}, unlabelled in <stages>, are labelled in "
                    f"{taught}: {', '.join(image.name for image in shared[:5])}{more}; fine if meant, but unlabelled "
                    "images teach most where they are new"
                )


def _stages(names: Sequence[str]) -> str:
    """`stage 'a'`, `stages 'a' and 'b'`, `stages 'a', 'b' and 7 more`."""
    if len(names) == 1:
        return f"stage {names[0]!r}"
    if len(names) == 2:
        return f"stages {names[0]!r} and {names[1]!r}"
    return f"stages {names[0]!r}, {names[1]!r} and {len(names) - 2} more"


def _check_import(builder: Builder, name: str, stage: ImportStage) -> None:
    try:
        check_classes(read_metadata(builder.base / stage.file), builder.classes.names, "this recipe's task")
    except TutelageError as error:
        raise TutelageError(f"stage {name!r}: {error.message}", error.remedy) from error


def check_groups(builder: Builder, where: str, subsets: ClassGroups, merged: ClassGroups) -> None:
    """Raises :class:`RecipeError`, beginning with ``where``, for classes that the task does not have."""
    if not subsets and not merged:
        return
    class_ids(subsets, builder.classes.names, f"{where}subsets")
    merged_names(merged, builder.classes.names, f"{where}merged")


def _check_net(builder: Builder, name: str) -> None:
    settings = builder.recipe.nets[name]
    try:
        check_name(settings.encoder)
        if settings.weights is not None and settings.weights.endswith(WEIGHT_SUFFIXES):
            require_file(builder.base / settings.weights)
    except TutelageError as error:
        raise TutelageError(f"net {name!r}: {error.message}", error.remedy) from error
