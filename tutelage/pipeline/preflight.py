"""Checks before the first step of the first stage, so that a run does not fail late for an early error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tutelage.data.checks import format_findings, poisons
from tutelage.errors import DataError, TutelageError
from tutelage.nets.checkpoints import require_file
from tutelage.nets.encoders import check_name
from tutelage.pipeline.builder import Builder, named
from tutelage.recipe.references import original
from tutelage.settings import WEIGHT_SUFFIXES, references


def preflight(builder: Builder, stages: Sequence[str]) -> None:
    """Check the nets and masks of the stages to run, and run each stage's own checks.

    Masks are read once. Raises :class:`TutelageError` for an encoder, weight file or class that does not exist, and
    :class:`DataError` with all findings for masks that are missing or invalid.
    """
    runners = [builder.runner(name) for name in stages]
    for runner in runners:
        runner.preflight()
        _check_start_files(builder, runner.name)
    for name in dict.fromkeys(net for stage in stages for net in _nets(builder, stage)):
        _check_net(builder, name)
    # A copy has the masks of its originals; pseudo labels are always valid.
    masks = {original(builder.recipe, data): user for runner in runners for data, user in runner.masked()}
    _check_masks(builder, {data: user for data, user in masks.items() if data not in builder.recipe.stages})
    stages_by_warning: dict[str, list[str]] = {}
    for name, runner in zip(stages, runners, strict=True):
        for warning in runner.warnings():
            stages_by_warning.setdefault(warning, []).append(name)
    for warning, names in stages_by_warning.items():
        builder.say(f"warning: {warning.replace('<stages>', _listed(names))}")


def _check_start_files(builder: Builder, stage: str) -> None:
    """Raise :class:`TutelageError` for start weights of a stage that are not there."""
    for it in references(builder.recipe.stages[stage]):
        if it.ref.kind == "start" and it.value.endswith(WEIGHT_SUFFIXES):
            try:
                require_file(builder.base / it.value)
            except TutelageError as error:
                place = ".".join(map(str, it.place))
                raise TutelageError(error.code, f"stage {stage!r}, {place}: {error.message}", error.remedy) from error


def _nets(builder: Builder, name: str) -> list[str]:
    """The nets of the recipe that a stage starts from their initial weights."""
    stage = builder.recipe.stages[name]
    named_nets = [it.value for it in references(stage) if it.ref.kind == "net"]
    return [*stage.nets_by_role(builder.recipe).values(), *named_nets]


def _check_net(builder: Builder, name: str) -> None:
    settings = builder.recipe.nets[name]
    try:
        check_name(settings.encoder)
        if settings.weights is not None and settings.weights.endswith(WEIGHT_SUFFIXES):
            require_file(builder.base / settings.weights)
    except TutelageError as error:
        raise TutelageError(error.code, f"net {name!r}: {error.message}", error.remedy) from error


def _check_masks(builder: Builder, users: dict[str, str]) -> None:
    """``users``: data set → the setting that opens its masks."""
    for reference, user in users.items():
        builder.dataset(reference).require_labels(f"{user}, data {reference}")
    findings = [
        replace(finding, dataset=reference, remedy=named(finding.remedy, reference.partition("/")[0]))
        for reference in users
        for finding in poisons(builder.dataset(reference))
    ]
    if findings:
        text = "invalid masks:\n" + format_findings(findings)
        raise DataError("invalid-masks", text, "fix them, or remove them from the list; see `tutelage check`")


def _listed(names: Sequence[str]) -> str:
    """`stage 'a'`, `stages 'a' and 'b'`, `stages 'a', 'b' and 7 more`."""
    if len(names) == 1:
        return f"stage {names[0]!r}"
    if len(names) == 2:
        return f"stages {names[0]!r} and {names[1]!r}"
    return f"stages {names[0]!r}, {names[1]!r} and {len(names) - 2} more"
