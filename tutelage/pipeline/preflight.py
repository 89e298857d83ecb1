"""What is refused before the first step of the first stage: no run fails after hours for what was there to see."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from tutelage.data.checks import format_findings, poisons
from tutelage.data.dataset import Dataset
from tutelage.errors import DataError, TutelageError
from tutelage.nets.checkpoints import require_file
from tutelage.nets.encoders import check_name
from tutelage.nets.storage import check_classes, read_metadata
from tutelage.pipeline.builder import Builder, named
from tutelage.recipe.references import WEIGHT_SUFFIXES, listed, roles
from tutelage.recipe.schema import EvaluateStage, ImportStage, TrainStage, find_method


def preflight(builder: Builder, stages: Iterable[str]) -> None:
    """Look at the nets and the masks of the stages that are about to run; masks are read once.

    Raises :class:`TutelageError` for an encoder or a weight file that is not there, and :class:`DataError` with all
    findings for masks that are missing, or would poison training or scores.
    """
    stages = list(stages)
    for name in stages:
        stage = builder.recipe.stages[name]
        if isinstance(stage, ImportStage):
            _check_import(builder, name, stage)
    for name in dict.fromkeys(net for stage in stages for net in _nets(builder, stage)):
        _check_net(builder, name)
    masked = (pair for stage in stages for pair in _masked(builder, stage))
    wanted = {reference: user for reference, user in masked if reference not in builder.recipe.stages}
    for reference, user in wanted.items():
        _require_masks(builder.dataset(reference), f"{user}, data {reference}")
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


def _nets(builder: Builder, name: str) -> Iterator[str]:
    """The nets that a stage makes."""
    stage = builder.recipe.stages[name]
    if isinstance(stage, TrainStage):
        yield from roles(builder.recipe, stage).values()


def _masked(builder: Builder, name: str) -> Iterator[tuple[str, str]]:
    """The data whose masks a stage reads, each with what reads it."""
    stage = builder.recipe.stages[name]
    if isinstance(stage, TrainStage):
        needs = find_method(stage.method.name).streams
        for stream, settings in stage.streams.items():
            for reference in listed(settings.data) if needs[stream].labels else ():
                yield reference, f"stage {name!r}, stream {stream!r}"
        if stage.evaluate is not None:
            yield stage.evaluate.data, f"stage {name!r}, evaluate"
    elif isinstance(stage, EvaluateStage):
        yield stage.data, f"stage {name!r}"


def _check_import(builder: Builder, name: str, stage: ImportStage) -> None:
    try:
        check_classes(read_metadata(builder.base / stage.file), builder.classes.names, "this recipe's task")
    except TutelageError as error:
        raise TutelageError(f"stage {name!r}: {error.message}", error.remedy) from error


def _check_net(builder: Builder, name: str) -> None:
    settings = builder.recipe.nets[name]
    try:
        check_name(settings.encoder)
        if settings.weights is not None and settings.weights.endswith(WEIGHT_SUFFIXES):
            require_file(builder.base / settings.weights)
    except TutelageError as error:
        raise TutelageError(f"net {name!r}: {error.message}", error.remedy) from error


def _require_masks(dataset: Dataset, what: str) -> None:
    lacking = [sample.image for sample in dataset.samples if sample.label is None]
    if lacking:
        raise DataError(
            f"{what}: {len(lacking)} of {len(dataset)} images have no mask; the first: {lacking[0]}",
            "write the mask behind the image in the list, or take the line out; or use a method for unlabelled images",
        )
