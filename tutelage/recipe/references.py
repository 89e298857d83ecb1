"""References in a recipe: dependencies between stages, checks that names exist, renaming.

The types of settings mark references (:class:`tutelage.settings.Ref`); no code here depends on a kind of stage.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tutelage.recipe.base import Fault, StageSettings, nearest
from tutelage.recipe.schema import Recipe
from tutelage.settings import WEIGHT_SUFFIXES, Place, Reference, references, renamed

_SECTIONS = ("data", "nets", "stages")
_OF_STAGES = ("data", "trained", "input", "start", "fit", "scores")
"""The kinds of reference that can name a stage."""


def stages_before(recipe: Recipe, name: str) -> list[str]:
    """The stages whose artefacts stage ``name`` reads, in the recipe's order; for scores also the scored stages."""
    found: set[str] = set()
    for reference in references(recipe.stages[name]):
        if reference.head in recipe.stages and reference.ref.kind in _OF_STAGES:
            found.add(reference.head)
            if reference.ref.kind == "scores":
                found.update(stages_before(recipe, reference.head))
    return [stage for stage in recipe.stages if stage in found]


def all_before(recipe: Recipe, name: str) -> list[str]:
    """The stages that stage ``name`` depends on, directly or not, in the recipe's order."""
    found: set[str] = set()
    waiting = [name]
    while waiting:
        for before in stages_before(recipe, waiting.pop()):
            if before not in found:
                found.add(before)
                waiting.append(before)
    return [stage for stage in recipe.stages if stage in found]


def with_all_before(recipe: Recipe, stage: StageSettings) -> list[StageSettings]:
    """A stage and all stages it depends on, directly or not."""
    found, waiting = [stage], [stage]
    while waiting:
        for reference in references(waiting.pop()):
            before = recipe.stages.get(reference.head)
            if before is not None and reference.ref.kind in _OF_STAGES and not any(before is it for it in found):
                found.append(before)
                waiting.append(before)
    return found


def original(recipe: Recipe, reference: str) -> str:
    """The data whose masks a reference has: the source of a `transform` stage, else the reference itself."""
    stage = recipe.stages.get(reference)
    if stage is None or stage.pseudo or stage.origin is None:
        return reference
    return original(recipe, stage.origin)


def moved(recipe: Recipe, base: Path, place: Path) -> Recipe:
    """The recipe of the folder ``base`` for use in the folder ``place``: relative paths lead to the same files."""

    def path(text: str) -> str:
        if Path(text).is_absolute():
            return text
        try:
            return Path(os.path.relpath(base / text, place)).as_posix()
        except ValueError:  # another drive
            return str(base / text)

    def weights(text: str) -> str:
        return path(text) if text.endswith(WEIGHT_SUFFIXES) else text

    change: Mapping[str, Callable[[str], str]] = {"file": path, "start": weights}
    result = renamed(recipe, lambda it: change[it.ref.kind](it.value) if it.ref.kind in change else it.value)
    if result.ladder is None:
        return result
    rungs = {name: rung.with_files(weights) for name, rung in result.ladder.rungs.items()}
    return result.model_copy(update={"ladder": result.ladder.model_copy(update={"rungs": rungs})})


# Existence


@dataclass
class Known:
    """The names that a stage may use: all data sets and nets, and the stages before it."""

    data: list[str]
    nets: list[str]
    stages: dict[str, StageSettings] = field(default_factory=dict)
    unread: Collection[str] = ()
    """Nets and stages that are themselves invalid: only the name is known, and every use of it is accepted."""

    def making(self, what: str) -> list[str]:
        """The stages whose output is of kind ``what``."""
        return [name for name, stage in self.stages.items() if stage.makes == what]

    def faults(self, reference: Reference) -> Iterator[Fault]:
        """The error of a reference that names nothing, or something of another kind."""
        check = _CHECKS.get(reference.ref.kind)
        if check is not None and reference.head not in self.unread:
            yield from check(self, reference)


def _net(known: Known, reference: Reference) -> Iterator[Fault]:
    if reference.value not in known.nets:
        yield Fault(reference.place, "unknown-net", f"no net {reference.value!r}{nearest(reference.value, known.nets)}")


def _trained(known: Known, reference: Reference) -> Iterator[Fault]:
    trained = known.making("nets")
    if reference.head not in trained:
        text = f"no stage {reference.head!r} that makes nets before this{nearest(reference.head, trained)}"
        yield Fault(reference.place, "unknown-stage", text)


def _input(known: Known, reference: Reference) -> Iterator[Fault]:
    """The role is unknown, so either kind is accepted."""
    if reference.head not in known.making("fit"):
        yield from _trained(known, reference)


def _start(known: Known, reference: Reference) -> Iterator[Fault]:
    if not reference.value.endswith(WEIGHT_SUFFIXES):
        yield from _trained(known, reference)


def _fit(known: Known, reference: Reference) -> Iterator[Fault]:
    fits, accepted = known.making("fit"), reference.ref.fits
    if reference.value not in fits:
        text = f"no fit stage {reference.value!r} before this{nearest(reference.value, fits)}"
        yield Fault(reference.place, "unknown-stage", text)
        return
    kind = known.stages[reference.value].what.kind  # type: ignore[attr-defined]
    if accepted and kind not in accepted:
        text = f"expected a fit of {' or '.join(accepted)}; stage {reference.value!r} fits {kind}"
        yield Fault(reference.place, "fit-kind", text)


def _scores(known: Known, reference: Reference) -> Iterator[Fault]:
    scores = known.making("scores")
    if reference.value not in scores:
        text = f"no evaluate stage {reference.value!r} before this{nearest(reference.value, scores)}"
        yield Fault(reference.place, "unknown-stage", text)


def _data(known: Known, reference: Reference) -> Iterator[Fault]:
    """``name``, ``name/split`` or a stage; splits are checked when the data are opened."""
    head, made = reference.head, known.making("data")
    stage = known.stages.get(head) if head in made else None
    if stage is None and head not in known.data:
        text = f"no data set {head!r}{nearest(head, [*known.data, *made])}"
        yield Fault(reference.place, "unknown-data", text)
    elif stage is not None and "/" in reference.value:
        text = f"stage {head!r} has no splits; write {head!r} alone"
        yield Fault(reference.place, "stage-has-no-splits", text)
    elif stage is not None and stage.pseudo and reference.ref.people:
        text = f"expected labelled data; the masks of {head!r} are pseudo labels"
        yield Fault(reference.place, "pseudo-labels-as-truth", text)


_CHECKS: Mapping[str, Callable[[Known, Reference], Iterator[Fault]]] = {
    "net": _net,
    "trained": _trained,
    "input": _input,
    "start": _start,
    "fit": _fit,
    "scores": _scores,
    "data": _data,
}
"""Kind of a reference → the check that its name exists."""


def check_references(recipe: Recipe, left_out: Collection[tuple[str, str]] = ()) -> tuple[list[Fault], Known]:
    """The errors of all stages, given the rest of the recipe; and all names known at the end.

    ``left_out``: (section, name) of data sets, nets and stages that could not be read and are not in ``recipe``.
    """
    faults: list[Fault] = []
    data, nets, stages = ([name for kind, name in left_out if kind == section] for section in _SECTIONS)
    known = Known([*recipe.data, *data], [*recipe.nets, *nets], unread=[*nets, *stages])
    for name, stage in recipe.stages.items():
        place = ("stages", name)
        if name in recipe.data:
            text = f"ambiguous name: {name!r} is both a stage and a data set"
            faults.append(Fault(place, "name-taken", text))
        faults += [fault.below(place) for fault in stage_faults(recipe, stage, known)]
        known.stages[name] = stage
    return faults, known


def stage_faults(recipe: Recipe, stage: StageSettings, known: Known) -> Iterator[Fault]:
    """The errors of one stage, with places within it; ``known``: the names before it."""
    nets = {role: net for role, net in stage.nets_by_role(recipe).items() if net not in known.nets}
    named = {reference.place for reference in references(stage)}
    for reference in references(stage):
        yield from known.faults(reference)
    for role, net in nets.items():  # the default student
        if ("nets", role) not in named and not known.unread:
            yield Fault(("nets", role), "unknown-net", f"no net {net!r}{nearest(net, known.nets)}")
    yield from stage.faults(recipe)


def rename_stages(stage: StageSettings, change: Callable[[str], str]) -> StageSettings:
    """A stage with every reference to a stage or data set renamed."""

    def one(reference: Reference) -> str:
        return change(reference.value) if reference.ref.kind in _OF_STAGES else reference.value

    return renamed(stage, one)


def place_of(reference: Reference) -> Place:
    """Where a name is written, without its index in a list."""
    return tuple(part for part in reference.place if not isinstance(part, int))
