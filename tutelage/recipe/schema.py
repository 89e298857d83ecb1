"""The schema of a recipe: data, nets, stages, and the ladder that is made of them.

Only the frame stands here. What a data set, a net, a stream, an optimizer or a protocol may be told is defined beside
its code; a method's settings are found by the method's name, and imported only when a recipe names it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from tutelage.annotate.class_means import AnchorsFit, MeansFit
from tutelage.annotate.entropies import EntropiesFit
from tutelage.annotate.mixtures import MixturesFit
from tutelage.annotate.transferability import TransferabilityFit
from tutelage.data.settings import StreamSettings, StyleSettings
from tutelage.data.sources import DataSettings
from tutelage.engine.settings import FitSettings
from tutelage.evaluation.protocol import Protocol
from tutelage.nets.settings import NetSettings
from tutelage.settings import Settings

FORMAT = 1

Name = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$")]
Reference = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]*(\.[A-Za-z][A-Za-z0-9_-]*)?$")]


class RunSettings(Settings):
    """How the work is done; nothing of this changes what comes out."""

    device: str = "auto"
    """`auto` (the first GPU, else the CPU), `cpu`, `cuda`, `cuda:1`, `mps`."""
    threads: Annotated[int, Field(gt=0)] | None = None
    """CPU threads of torch; null: as many as there are cores. Byte-exact resuming needs the same number."""
    workers: Annotated[int, Field(ge=0)] = 0
    """Processes that prepare batches, per stream; 0: a thread of the training process."""
    ahead: Annotated[int, Field(gt=0)] = 4
    """Batches prepared ahead of the step that needs them."""
    cache: Literal["none", "memory", "disk"] = "none"
    """Keep decoded images: in memory (small data sets), or as files that are mapped (large images, many workers)."""
    cache_folder: str | None = None
    """Where the disk cache lies; null: a folder in the system's place for temporary files."""
    on_unreadable: Literal["error", "skip"] = "error"
    """An image that cannot be read ends the run, or another one takes its place."""
    weak_teacher: Literal["error", "warn"] = "error"
    """A teacher that is hardly better than naming the commonest class everywhere ends the run, or is only named."""
    trackers: list[Literal["tensorboard", "mlflow", "wandb", "trackio"]] = []
    """Where the log goes besides `log.jsonl`; each must be installed (`pip install tutelage[track]`)."""


class MethodChoice(Settings):
    """A method and its settings; which keys there are depends on the name."""

    model_config = {**Settings.model_config, "extra": "allow"}

    name: str
    """The method."""

    def settings(self) -> dict[str, Any]:
        """The settings as written, without the name."""
        return dict(self.model_extra or {})


class EvaluateDuring(Settings):
    """Evaluation while training."""

    data: str
    """Labelled data set (`name/split`) on which checkpoints are compared."""
    every: Annotated[int, Field(gt=0)] | None = None
    """Steps between two evaluations; null: five over the stage."""
    protocol: Protocol = Protocol()
    """How the net is applied."""
    images: Annotated[int, Field(gt=0)] | None = None
    """Only so many images, evenly spread; null: all."""


Threshold = Annotated[float, Field(gt=0, le=1)]


class StopRule(Settings):
    """When pseudo labels have settled: little changes, and the precision on labelled images no longer rises."""

    change: Threshold = 0.002
    """Share of pixels whose label changes between two audits, of every net; less is little."""
    rounds: Annotated[int, Field(gt=0)] = 3
    """In so many audits in a row."""


class AuditSettings(Settings):
    """A look at the pseudo labels while training: coverage, classes, agreement, change, precision, calibration."""

    data: str | list[str] | None = None
    """Images to look at (`name/split`), masks not opened; null: those of the streams without masks, else of all."""
    images: Annotated[int, Field(gt=0)] = 32
    """So many of them, evenly spread."""
    val: str | None = "evaluate"
    """Labelled data (`name/split`) for precision and calibration; `evaluate`: those of `evaluate`; null: none."""
    threshold: Threshold = 0.95
    """Confidence from which on a pixel counts as covered."""
    every: Annotated[int, Field(gt=0)] | None = None
    """Steps between two audits; null: with each evaluation, or five over the stage."""
    stop: StopRule | None = None
    """End the training where the labels have settled; null: only say where (with the rule's defaults)."""
    protocol: Protocol | None = None
    """How nets are applied; null: as in `evaluate`, else to whole images."""


class LabelAudit(Settings):
    """A look at the pseudo labels that were written: coverage, classes, confidence; with `val` precision too."""

    val: str | None = None
    """Labelled data (`name/split`) for precision and calibration; null: none."""
    threshold: Threshold = 0.95
    """Confidence from which on a pixel counts as covered."""


class ChoiceSettings(Settings):
    """On which images weights are chosen without masks (`keep: agreement`, `balance` or `entropy`)."""

    data: str | list[str] | None = None
    """Images (`name/split`), masks not opened; null: those of the streams without masks, else of all."""
    images: Annotated[int, Field(gt=0)] = 64
    """So many of them, evenly spread."""
    every: Annotated[int, Field(gt=0)] | None = None
    """Steps between two looks; null: with each evaluation, or five over the stage."""
    protocol: Protocol | None = None
    """How the net is applied; null: as in `evaluate`, else to whole images."""


Keep = Literal["best", "last", "agreement", "balance", "entropy", "best_on_target"]

LABEL_FREE = ("agreement", "balance", "entropy")
"""The ways to choose weights that open no mask."""


class Course(FitSettings):
    """All of a training but its method: images, start weights, steps, optimizer, which weights are kept."""

    init: dict[str, str] = {}
    """Start weights: role (or `role.encoder`) → earlier stage, or a weight file (ends in .safetensors, .pt, .pth)."""
    streams: dict[Name, StreamSettings]
    """The streams that the method asks for; in a ladder each rung takes those that its method asks for."""
    evaluate: EvaluateDuring | None = None
    """Evaluation while training; null: none, and the last weights are kept."""
    keep: Keep = "best"
    """Which weights the stage hands on: those with the best score in `evaluate`; the last; or those that on images
    without masks agree best with themselves in the mirror (`agreement`), are surest of most different classes
    (`balance`), or simply surest (`entropy`). Where `evaluate` reads masks of a domain that counts as unlabelled,
    `best` is refused and the default is `last`; `best_on_target` does it all the same, and every result says so."""
    choose: ChoiceSettings = ChoiceSettings()
    """The images for a choice without masks."""


class TrainStage(Course):
    """Train nets with a method."""

    kind: Literal["train"] = "train"
    method: MethodChoice
    """Which method, by `name`, with its settings beside it."""
    nets: dict[Name, Name] = {}
    """Role → net of the recipe; by default role `student` is the net `student`."""
    inputs: dict[Name, Reference] = {}
    """Role → trained net of an earlier stage (`stage` or `stage.net`), e.g. `teacher: big`."""
    seed: int | None = None
    """The stage's own seed; null: the recipe's. A fixed one lets several runs share the stage."""
    audit: AuditSettings | None = None
    """A look at the pseudo labels while training; `{}` for the defaults, null: none."""

    @model_validator(mode="before")
    @classmethod
    def _short_method(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("method"), str):
            return {**values, "method": {"name": values["method"]}}
        return values


class Labelling(Settings):
    """Which images get pseudo labels, and which of their pixels."""

    data: str
    """The images (`name/split`); their masks, if they have any, are not opened."""
    policy: Literal["argmax", "threshold", "class_balanced", "class_quantile", "class_ratio", "mixtures"] = "argmax"
    """All pixels; those above `threshold`; of each class the `portion` that is surest; those above a `quantile` of
    their class, but at most `cap` (PBAL, FDA); the class furthest above the confidence of its surest `portion` (CBST);
    the class whose `mixtures` make the features likeliest (BiSMAP)."""
    threshold: float | None = None
    """For `threshold`: smallest confidence (0 to 1) of a pixel that is labelled; null: 0.9. For `mixtures`: smallest
    log-likelihood, in nats."""
    portion: Annotated[float, Field(gt=0, le=1)] | None = None
    """For `class_balanced`: share of each class's pixels that are labelled; null: 0.5. For `class_ratio`: share of each
    class's pixels whose lowest confidence is its reference; null: 0.2."""
    quantile: Annotated[float, Field(ge=0, le=1)] | None = None
    """For `class_quantile`: share of each class's pixels below its threshold; null: 0.5. For `mixtures`, in place of
    `threshold`: share of the pixels that are left out."""
    cap: Annotated[float, Field(gt=0, le=1)] | None = None
    """For `class_quantile`: no threshold is above this confidence; null: 0.9."""
    mixtures: Name | None = None
    """For `mixtures`: the `fit` stage that fitted them to features of the net that labels."""
    per_class: bool | None = None
    """For `mixtures` with a `quantile`: of each class's pixels (null, true), or of all pixels (false)."""
    score_at: Literal["image", "feature"] | None = None
    """For `mixtures`: features are brought to the size of the image and scored (null, `image`), or scored on their own
    grid, which is cheaper and less exact at borders (`feature`)."""
    protocol: Protocol = Protocol()
    """How the net is applied."""

    @model_validator(mode="after")
    def _read_by_the_policy(self) -> Labelling:
        read = _POLICY_DEFAULTS[self.policy]
        idle = sorted({*_POLICY_KEYS} - {*read})
        given = [name for name in idle if getattr(self, name) is not None]
        if given:
            known = f"it reads {', '.join(read)}" if read else "it has no settings"
            raise ValueError(f"policy {self.policy!r} does not read {', '.join(given)}; {known}")
        if self.policy == "threshold" and self.threshold is not None and not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold {self.threshold:g} is no confidence; policy 'threshold' wants one from 0 to 1")
        if self.policy == "mixtures":
            self._check_mixtures()
        return self

    def _check_mixtures(self) -> None:
        if self.mixtures is None:
            raise ValueError("policy 'mixtures' needs the stage that fitted them: `mixtures: <fit stage>`")
        if (self.threshold is None) == (self.quantile is None):
            raise ValueError(
                "policy 'mixtures' needs a threshold in nats or a quantile, one of them; a published threshold (100) "
                "is of no use with another net"
            )
        if self.threshold is not None and self.per_class is not None:
            raise ValueError("per_class would have no effect beside a threshold; it says of which pixels a quantile is")
        if self.protocol.kind != "whole" or len(self.protocol.scales) > 1:
            raise ValueError("policy 'mixtures' scores features of whole images: a protocol of one scale, no windows")

    def rule(self) -> dict[str, Any]:
        """What the policy reads, with defaults filled in; nothing that it does not read."""
        read = {}
        for name, default in _POLICY_DEFAULTS[self.policy].items():
            value = getattr(self, name)
            read[name] = default if value is None else value
        return read


_POLICY_KEYS = ("threshold", "portion", "quantile", "cap", "mixtures", "per_class", "score_at")
_POLICY_DEFAULTS: dict[str, dict[str, Any]] = {
    "argmax": {},
    "threshold": {"threshold": 0.9},
    "class_balanced": {"portion": 0.5},
    "class_quantile": {"quantile": 0.5, "cap": 0.9},
    "class_ratio": {"portion": 0.2},
    "mixtures": {"mixtures": None, "threshold": None, "quantile": None, "per_class": True, "score_at": "image"},
}
"""Policy → the keys that it reads, and what they are where none is given."""


class ImportStage(Settings):
    """Take a trained net from a file, such as a published teacher."""

    kind: Literal["import"] = "import"
    file: Annotated[str, Field(pattern=r"\.safetensors$")]
    """A net that tutelage wrote (`import-checkpoint` makes one of a published checkpoint), relative to the recipe."""


class AnnotateStage(Labelling):
    """Write pseudo labels: what a trained net says of unlabelled images."""

    kind: Literal["annotate"] = "annotate"
    net: Reference
    """The net that labels (`stage` or `stage.net`)."""
    audit: LabelAudit = LabelAudit()
    """A look at what was written."""

    @model_validator(mode="after")
    def _audits_what_it_can(self) -> AnnotateStage:
        if self.policy == "mixtures" and self.audit.val is not None:
            raise ValueError("audit.val judges what the net's classifier says, which labels of 'mixtures' do not go by")
        return self


Fitted = Annotated[MeansFit | AnchorsFit | MixturesFit | TransferabilityFit | EntropiesFit, Field(discriminator="kind")]


class FitStage(Settings):
    """Learn without gradients what a net's features of images look like: means, mixtures, weights of pixels."""

    kind: Literal["fit"] = "fit"
    what: Fitted
    """What is fitted, by `kind`, with its settings beside it; the kind alone for the defaults."""
    net: Reference | None = None
    """The trained net whose features they are (`stage` or `stage.net`)."""
    encoder: Name | None = None
    """For `transferability`, in place of `net`: a net of the recipe as it starts, such as a self-supervised one."""
    data: str
    """The images (`name/split`, or a `transform` stage); masks are opened for `anchors`, `mixtures` and
    `transferability`, and for `means` with `labels`."""
    target: str | None = None
    """For `transferability`: the images of the other domain; their masks are not opened."""
    entropies: Name | None = None
    """For `transferability`: the fit of `entropies` that the bonus of classes is computed of."""
    protocol: Protocol = Protocol()
    """How the net is applied. Features are those of whole images at one scale; `entropies` knows no bounds."""
    seed: int | None = None
    """The stage's own seed; null: the recipe's."""

    @model_validator(mode="before")
    @classmethod
    def _short_what(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("what"), str):
            return {**values, "what": {"kind": values["what"]}}
        return values

    @model_validator(mode="after")
    def _fits_what(self) -> FitStage:
        kind = self.what.kind
        transferable = isinstance(self.what, TransferabilityFit)
        for name in ("encoder", "target", "entropies"):
            if getattr(self, name) is not None and not transferable:
                raise ValueError(f"{name} means nothing for {kind}; it belongs to transferability")
        if transferable and self.target is None:
            raise ValueError("transferability needs the images of the other domain: target: <data>")
        if (self.net is None) == (self.encoder is None):
            raise ValueError(f"{kind} needs a net: net: <stage>" + (", or encoder: <net>" if transferable else ""))
        if isinstance(self.what, TransferabilityFit) and self.entropies is not None and self.what.bonus != "none":
            raise ValueError("bonus and entropies say the same thing; give one of them")
        if transferable and self.protocol != Protocol(precision=self.protocol.precision):
            raise ValueError("of a protocol only precision counts for transferability, which has a size of its own")
        if kind != "entropies" and (self.protocol.kind != "whole" or len(self.protocol.scales) > 1):
            raise ValueError(f"{kind} takes features of whole images at one scale; windows and scales are for scores")
        return self

    def masked(self) -> bool:
        """Whether it opens the masks of its data."""
        return isinstance(self.what, AnchorsFit | MixturesFit | TransferabilityFit) or (
            isinstance(self.what, MeansFit) and self.what.labels
        )


class TransformStage(Settings):
    """Copy a data set in the style of another; the copy keeps the masks, and its name stands where data stand."""

    kind: Literal["transform"] = "transform"
    data: str
    """The images that are copied (`name/split`)."""
    target: str
    """The images whose style the copies take, one drawn for each; their masks are not opened."""
    style: StyleSettings = StyleSettings()
    """How the style is taken over."""
    seed: int | None = None
    """The stage's own seed; null: the recipe's."""


def _check_groups(subsets: dict[Name, list[str]], merged: dict[Name, list[str]]) -> None:
    for key, groups in (("subsets", subsets), ("merged", merged)):
        for name, classes in groups.items():
            if not classes:
                raise ValueError(f"{key}.{name} names no class")
            twice = sorted({one for one in classes if classes.count(one) > 1})
            if twice:
                raise ValueError(f"{key}.{name} names {', '.join(twice)} twice")
    members = [one for classes in merged.values() for one in classes]
    twice = sorted({one for one in members if members.count(one) > 1})
    if twice:
        raise ValueError(f"merged: {', '.join(twice)} can be part of one group only")


class EvaluateStage(Settings):
    """Score trained nets on labelled data."""

    kind: Literal["evaluate"] = "evaluate"
    nets: dict[Name, Reference] | list[Reference]
    """The nets: a list of stages, or label → stage."""
    data: str
    """Labelled data set (`name/split`)."""
    protocol: Protocol = Protocol()
    """How the nets are applied; part of every number's identity."""
    boundary: bool = True
    """Also boundary IoU."""
    calibration: bool = True
    """Also expected calibration error and the reliability curve."""
    subsets: dict[Name, list[str]] = {}
    """Also a mean IoU over some of the classes: a name → theirs. Nothing is counted anew: what is taken for a class
    that is left out is still wrong."""
    merged: dict[Name, list[str]] = {}
    """Also scores with several classes taken as one: a name → theirs; classes in no group stay as they are."""

    @model_validator(mode="after")
    def _groups(self) -> EvaluateStage:
        _check_groups(self.subsets, self.merged)
        return self

    def named(self) -> dict[str, str]:
        """Label → reference."""
        if isinstance(self.nets, dict):
            return dict(self.nets)
        return {reference.replace(".", "-"): reference for reference in self.nets}


class ReportStage(Settings):
    """Write the report: one HTML page."""

    kind: Literal["report"] = "report"
    scores: Name
    """The `evaluate` stage whose nets are compared."""
    baseline: Name | None = None
    """Label of the net that must be beaten; null: the first."""
    student: Name | None = None
    """Label of the net that it is about; null: the last."""
    teacher: Name | None = None
    """Label of the teacher, if there is one."""
    images: Annotated[int, Field(ge=0)] = 6
    """Number of images in each gallery (worst, best, most changed)."""


Stage = Annotated[
    TrainStage | ImportStage | FitStage | TransformStage | AnnotateStage | EvaluateStage | ReportStage,
    Field(discriminator="kind"),
]


PSEUDO_LABELS = "pseudo_labels"
"""The rung that no method is: the teacher labels images, and the plain student trains on them too."""


class Rung(MethodChoice):
    """One way to train the ladder's student: a method by `name` (or `pseudo_labels`) with its settings, or `stages`."""

    name: str = "stages"
    """The method, `pseudo_labels`, or `stages` (which may be left out where there are some)."""
    training: dict[str, Any] = {}
    """What of the ladder's `training` is different here (`steps`, `streams` ...); the table says so."""
    nets: dict[Name, Name] = {}
    """Nets of the recipe that the method trains beside the student, by role; the student's own is `ladder.student`."""
    scored: Reference = "student"
    """Which of the nets that the method keeps is scored: `student`, or for some methods `ema`. Of `stages`: which
    stage, or `stage.net`; by default the last that trains."""
    stages: dict[Name, dict[str, Any]] = {}
    """Several stages, in order: what a `train` stage does not say of its training it has from the ladder's."""

    @model_validator(mode="after")
    def _a_method_or_stages(self) -> Rung:
        if (self.name == "stages") != bool(self.stages):
            raise ValueError("a rung has a method by `name`, or `stages`")
        return self

    def own(self) -> dict[str, Any]:
        """What the rung itself is told, rather than its method."""
        return self.model_dump(mode="json", include=set(RUNG_KEYS), exclude_defaults=True)


RUNG_KEYS = tuple(name for name in Rung.model_fields if name != "name")
"""The keys of a rung that are no settings of its method."""


class LadderScore(Settings):
    """How every rung is scored."""

    data: str
    """Labelled data set (`name/split`) that no rung was trained or chosen on."""
    protocol: Protocol = Protocol()
    """How the nets are applied."""
    subsets: dict[Name, list[str]] = {}
    """Also the mean IoU over some of the classes, in a table of their own: a name → theirs."""
    merged: dict[Name, list[str]] = {}
    """Also scores with several classes taken as one, in a table of their own: a name → theirs; classes in no group stay
    as they are."""

    @model_validator(mode="after")
    def _groups(self) -> LadderScore:
        _check_groups(self.subsets, self.merged)
        return self


class LadderTuning(Settings):
    """The same trials for every rung; the best values are used for all its seeds."""

    data: str
    """Labelled data set (`name/split`) on which the trials are compared; not the one that is scored."""
    values: Annotated[dict[str, list[Any]], Field(min_length=1)]
    """Key of `training` → values to try, e.g. `optimizer.lr: [2.0e-3, 4.0e-3]`; several keys: every combination."""
    steps: Annotated[int, Field(gt=0)] | None = None
    """Optimizer steps of a trial; null: as many as the ladder's."""
    seed: int = 0
    """Seed of all trials."""
    on_target: bool = False
    """Choose by masks of a domain that counts as unlabelled; every result says so."""

    @field_validator("values")
    @classmethod
    def _several_different(cls, values: dict[str, list[Any]]) -> dict[str, list[Any]]:
        for key, tried in values.items():
            if len(tried) < 2 or any(value in tried[:place] for place, value in enumerate(tried)):
                raise ValueError(f"{key} needs two values or more, each once")
        return values


class LadderSettings(Settings):
    """Does teaching pay on these images? The same student trained in several ways, over several seeds, compared."""

    student: Name
    """The net of the recipe that every rung trains."""
    teacher: Reference | None = None
    """The trained net (`stage` or `stage.net`) of all methods that need a teacher."""
    training: Course
    """What all rungs share: the same images, the same number of updates."""
    score: LadderScore
    """On what they are compared."""
    seeds: Annotated[list[int], Field(min_length=1)] = [0, 1, 2]
    """Every rung is trained once with each."""
    rungs: Annotated[dict[Name, Rung], Field(min_length=1)]
    """The ways to train, by name: a method's name, or `{name: ..., settings}`."""
    plain: Name = "plain"
    """The rung that every other must beat."""
    oracle: Name | None = None
    """The rung that has what the others lack, mostly masks: the table says how much of its gain each other has."""
    tune: LadderTuning | None = None
    """Trials before the seeds; null: every rung is trained as `training` says."""
    worth: Annotated[float, Field(ge=0)] = 0.5
    """The smallest gain in points of mIoU that pays for a teacher."""

    @model_validator(mode="before")
    @classmethod
    def _short_rungs(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("rungs"), dict):
            rungs = {name: {"name": it} if isinstance(it, str) else it for name, it in values["rungs"].items()}
            return {**values, "rungs": rungs}
        return values

    @field_validator("seeds")
    @classmethod
    def _each_once(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("each seed once")
        return seeds


class Recipe(Settings):
    """A whole experiment."""

    tutelage: Literal[1]
    """Version of the recipe format."""
    name: Name
    """Name of the recipe; its results lie in `runs/<name>` unless `out` says otherwise."""
    seed: int = 0
    """Decides everything random."""
    out: str | None = None
    """Run folder, relative to the folder in which the command is given."""
    classes: list[str] | None = None
    """The task's classes; null: those of the first data set."""
    data: dict[Name, DataSettings]
    """Data sets by name."""
    nets: dict[Name, NetSettings] = {}
    """Nets by name."""
    stages: dict[Name, Stage]
    """What is done, in order."""
    ladder: LadderSettings | None = None
    """What `tutelage ladder` compares; `tutelage run` leaves it alone."""
    run: RunSettings = RunSettings()
    """How the work is done."""

    def out_folder(self) -> str:
        """The run folder."""
        return self.out or f"runs/{self.name}"
