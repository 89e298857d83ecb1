"""The `train` stage: nets, a method, images, steps, and which weights are kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from tutelage.audit.settings import AuditSettings, UnlabeledData
from tutelage.data.settings import StreamSettings
from tutelage.engine.settings import FitSettings, MethodSettings
from tutelage.evaluation.protocol import Protocol
from tutelage.methods import METHODS, find_settings
from tutelage.recipe.base import Fault, Name, NetName, StageSettings, listed, nearest, short_form
from tutelage.settings import WEIGHT_SUFFIXES, Ref, Reference, Settings

if TYPE_CHECKING:
    from tutelage.recipe.schema import Recipe


class MethodChoice(Settings):
    """A method and its settings; the keys depend on the name."""

    model_config = {**Settings.model_config, "extra": "allow"}

    name: str
    """The method."""

    def own(self) -> dict[str, Any]:
        """The method's settings as written, without the name."""
        return dict(self.model_extra or {})

    def written(self, content: dict[str, Any]) -> dict[str, Any]:
        """The name and all settings, defaults filled in."""
        return {**content, **find_settings(self.name).model_validate(self.own()).model_dump(mode="json")}


class EvaluateDuring(Settings):
    """Evaluation while training."""

    data: Annotated[str, Ref("data", masks=True, use="val")]
    """Labelled data set (`name/split`) on which checkpoints are compared."""
    every: Annotated[int, Field(gt=0)] | None = None
    """Steps between two evaluations; null: five evaluations per stage."""
    protocol: Protocol = Protocol()
    """How the net is applied."""
    images: Annotated[int, Field(gt=0)] | None = None
    """Number of images, evenly spread; null: all."""


class ChoiceSettings(Settings):
    """Images on which weights are chosen without masks (`keep: agreement`, `balance` or `entropy`)."""

    data: UnlabeledData | None = None
    """Images (`name/split`), masks not opened; null: those of the streams without masks, else of all."""
    images: Annotated[int, Field(gt=0)] = 64
    """Number of those images, evenly spread."""
    every: Annotated[int, Field(gt=0)] | None = None
    """Steps between two comparisons; null: with each evaluation, or five per stage."""
    protocol: Protocol | None = None
    """How the net is applied; null: as in `evaluate`, or to whole images without it."""


Keep = Literal["best", "last", "agreement", "balance", "entropy", "best_on_target"]

LABEL_FREE = ("agreement", "balance", "entropy")
"""The ways to choose weights without opening masks."""


class Course(FitSettings):
    """The settings of a training except its method: images, start weights, steps, optimizer, which weights are kept."""

    init: dict[str, Annotated[str, Ref("start")]] = {}
    """Start weights: role (or `role.encoder`) → earlier stage, or a weight file (ends in .safetensors, .pt, .pth)."""
    streams: dict[Name, StreamSettings]
    """The streams that the method reads; in a ladder each rung uses only those its method reads."""
    evaluate: EvaluateDuring | None = None
    """Evaluation while training; null: none; the last weights are kept."""
    keep: Keep = "best"
    """Which weights the stage keeps: those with the best score in `evaluate`; the last; or those that, on images
    without masks, agree best with their predictions on the mirrored images (`agreement`), are confident of most
    different classes (`balance`), or have the lowest entropy (`entropy`). Where `evaluate` reads masks of a domain that
    counts as unlabelled, `best` is an error and the default is `last`; `best_on_target` is allowed and marks every
    result."""
    choose: ChoiceSettings = ChoiceSettings()
    """The images for a choice without masks."""

    @property
    def evaluates_every(self) -> int:
        """Steps between two evaluations; without a number in the recipe, five evaluations per stage."""
        five = max(self.steps // 5, 1)
        return five if self.evaluate is None else self.evaluate.every or five


class TrainStage(Course, StageSettings):
    """Train nets with a method."""

    makes: ClassVar[str] = "nets"
    trains: ClassVar[bool] = True

    kind: Literal["train"] = "train"
    method: MethodChoice
    """The method: its `name` and its settings."""
    nets: dict[Name, Annotated[Name, Ref("net")]] = {}
    """Role → net of the recipe; by default role `student` is the net `student`."""
    inputs: dict[Name, Annotated[NetName, Ref("input")]] = {}
    """Role → trained net of an earlier stage (`stage` or `stage.net`), e.g. `teacher: big`."""
    seed: int | None = None
    """The stage's own seed; null: the recipe's. With a fixed seed several runs share the stage."""
    audit: AuditSettings | None = None
    """An audit of the pseudo labels while training; `{}`: the defaults, null: none."""

    @model_validator(mode="before")
    @classmethod
    def _short_method(cls, values: Any) -> Any:
        return short_form(values, "method", "name")

    @property
    def updates(self) -> int:
        return self.steps

    @property
    def method_spec(self) -> type[MethodSettings] | None:
        """The settings class of the method; ``None`` for an unknown name."""
        return find_settings(self.method.name) if self.method.name in METHODS else None

    @property
    def spec(self) -> type[MethodSettings]:
        """The settings class of a known method."""
        return find_settings(self.method.name)

    def method_settings(self) -> MethodSettings:
        """The checked settings of the method, defaults filled in."""
        return self.spec.model_validate(self.method.own())

    def nets_by_role(self, recipe: Recipe) -> dict[str, str]:
        """Role → net of the recipe; by default the student is the net `student`, or the only net."""
        if self.nets:
            return dict(self.nets)
        return {"student": "student" if "student" in recipe.nets else next(iter(recipe.nets), "student")}

    def refined(self, reference: Reference) -> Reference | None:
        """References with their kinds: inputs by role, data of streams by whether the method reads their masks."""
        if reference.place == ("audit", "val") and reference.value == "evaluate":
            return None
        section, spec = reference.place[0], self.method_spec
        role = str(reference.place[1]) if len(reference.place) > 1 else ""
        if section == "inputs":
            fits = {} if spec is None else spec.fitted_inputs
            if role in fits:
                return reference.of(Ref("fit", fits=fits[role]))
            return reference.of(Ref("trained")) if spec is not None and role in spec.teachers else reference
        if section == "streams" and reference.place[2] == "data":
            masks = spec is not None and role in spec.streams and spec.streams[role].labels
            use = {"labeled": "train", "source": "source", "target": "target"}.get(role, "unlabeled")
            return reference.of(Ref("data", masks=masks, use=use, trains=True))
        return reference

    @property
    def audit_val(self) -> str | None:
        """The labelled data of the audit; ``None``: none."""
        if self.audit is None or self.audit.val != "evaluate":
            return None if self.audit is None else self.audit.val
        return None if self.evaluate is None else self.evaluate.data

    def faults(self, recipe: Recipe) -> Iterator[Fault]:
        """Names that the method does not have, and names it needs that are missing."""
        roles = self.nets_by_role(recipe)
        for target in self.init:
            role, _, part = target.partition(".")
            if role not in roles:
                yield Fault(("init", target), "unknown-role", f"no net has the role {role!r}{nearest(role, roles)}")
            if part not in ("", "encoder"):
                text = f"cannot start {target!r}; expected {role} or {role}.encoder"
                yield Fault(("init", target), "invalid-start", text)
        for name, stream in self.streams.items():
            if stream.draws_of is not None and stream.draws_of not in self.streams:
                text = f"no stream {stream.draws_of!r}{nearest(stream.draws_of, self.streams)}"
                yield Fault(("streams", name, "draws_of"), "unknown-stream", text)
            if isinstance(stream.repeat, list) and len(stream.repeat) != len(listed(stream.data)):
                text = f"{len(stream.repeat)} numbers for {len(listed(stream.data))} data sets"
                yield Fault(("streams", name, "repeat"), "repeat-count", text)
        if self.method_spec is not None:
            yield from self._method_faults(self.method_spec)
            yield from self._weight_faults(recipe, self.method_spec)

    def _method_faults(self, spec: type[MethodSettings]) -> Iterator[Fault]:
        method = f"method {self.method.name}"
        for name, stream in spec.streams.items():
            if name not in self.streams:
                yield Fault(("streams",), "missing-stream", f"{method} needs a stream {name!r} ({stream.about})")
        for name, settings in self.streams.items():
            if name not in spec.streams:
                text = f"{method} has no stream {name!r}{nearest(name, spec.streams)}"
                yield Fault(("streams", name), "unknown-stream", text)
                continue
            views = spec.streams[name].known
            for view in settings.views:
                if view not in views:
                    text = f"no view {view!r}{nearest(view, views)}"
                    yield Fault(("streams", name, "views", view), "unknown-view", text)
        chosen = {"student": "", **self.nets}  # the student exists by default
        for role in spec.trained_nets:
            if role not in chosen:
                text = f"{method} trains a net {role!r}: `nets: {{{role}: <net>}}`"
                yield Fault(("nets",), "missing-net", text)
        for role in self.nets:
            if role not in spec.trained_nets:
                text = f"{method} has no net {role!r}{nearest(role, spec.trained_nets)}"
                yield Fault(("nets", role), "unknown-role", text)
        for role in (*spec.teachers, *spec.fitted_inputs):
            if role not in self.inputs:
                what = "a fit" if role in spec.fitted_inputs else "a trained net"
                stage = "fit stage" if role in spec.fitted_inputs else "stage"
                text = f"{method} needs {what}: `inputs: {{{role}: <{stage}>}}`"
                yield Fault(("inputs",), "missing-input", text)
        for role in self.inputs:
            if role not in spec.teachers and role not in spec.fitted_inputs:
                hint = nearest(role, (*spec.teachers, *spec.fitted_inputs))
                yield Fault(("inputs", role), "unknown-role", f"{method} has no role {role!r}{hint}")

    def _weight_faults(self, recipe: Recipe, spec: type[MethodSettings]) -> Iterator[Fault]:
        """Weights must be fitted to exactly the stream's images, and only a stream with masks can have them."""
        for name, stream in self.streams.items():
            if stream.weights is None:
                continue
            place = ("streams", name, "weights")
            others = recipe.not_weighted(stream.weights, listed(stream.data))
            if others:
                fitted = recipe.stages[stream.weights].origin
                text = f"stage {stream.weights!r} has weights for the images of {fitted}, but not for {others[0]}"
                yield Fault(place, "weights-of-other-images", text)
            if name in spec.streams and not spec.streams[name].labels:
                text = f"stream {name!r} reads no masks; weights are for labelled images"
                yield Fault(place, "weights-without-masks", text)

    # Masks treated as missing

    @property
    def chosen_on_target(self) -> bool:
        return self.keep == "best_on_target"

    def leaks(self, recipe: Recipe, is_bare: Callable[[str], bool]) -> Iterator[Fault]:
        if self.keep == "best_on_target":
            if self.evaluate is None:
                text = "keep: best_on_target chooses by the scores of `evaluate`, which is missing"
                yield Fault(("keep",), "missing-evaluate", text)
            return
        if self.evaluate is not None and is_bare(self.evaluate.data):
            if self.keep == "best":
                yield _leak(("keep",), "keep: best would choose weights", self.evaluate.data)
            elif self.patience is not None and self.keep not in LABEL_FREE:
                yield _leak(("patience",), "patience would end training", self.evaluate.data)
        if self.audit is not None and self.audit.stop is not None:
            val = self.audit_val
            if val is not None and is_bare(val):
                yield _leak(("audit", "stop"), "audit.stop would end training", val, "; or write audit.val: null")

    def without_leaks(self, is_bare: Callable[[str], bool]) -> StageSettings:
        """`keep: last` where `keep` is not set and `best` would leak."""
        if self.evaluate is None or "keep" in self.model_fields_set or not is_bare(self.evaluate.data):
            return self
        return self.model_copy(update={"keep": "last"})


def _leak(place: tuple[str, ...], what: str, data: str, more: str = "") -> Fault:
    text = (
        f"{what} by masks of {data}, which counts as unlabelled: neither this stage nor one it depends on trains on "
        "its masks. Write keep: agreement, balance or entropy, which open no mask, or keep: last; or keep: "
        f"best_on_target, which marks every result{more}"
    )
    return Fault(place, "target-labels", text)


def starts_from_file(source: str) -> bool:
    """Whether start weights are a file rather than a stage."""
    return source.endswith(WEIGHT_SUFFIXES)
