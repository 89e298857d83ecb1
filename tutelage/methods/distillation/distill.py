"""Distillation from a frozen teacher: L = L_task + sum over terms of weight * L_term.

Both nets see the same crops. Maps are compared on the student's grid: a finer map of the teacher is averaged over
each of the student's cells, a coarser one is enlarged bilinearly. Feature terms take the embedding, that is the
input of the last 1x1 classifier (with the student's dropout, as published), or a map that the recipe names.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tutelage.data.batch import Batch, View, warp
from tutelage.engine.contract import Method, OptimizerSpec, Pass, StepContext, TaskInfo
from tutelage.engine.settings import MethodSettings, ScheduleSettings
from tutelage.errors import RecipeError
from tutelage.methods.distillation.at import AT
from tutelage.methods.distillation.cache import TeacherCache
from tutelage.methods.distillation.cirkd import Memory, MinibatchPixel
from tutelage.methods.distillation.cirkd_v2 import Channel, ContextBlock
from tutelage.methods.distillation.cwd import CWD, CWDFeatures
from tutelage.methods.distillation.dist import DIST
from tutelage.methods.distillation.dsd import DSDCategory, DSDPixel
from tutelage.methods.distillation.fitnet import FitNet
from tutelage.methods.distillation.ifvd import IFVD
from tutelage.methods.distillation.mgd import MGD
from tutelage.methods.distillation.pixel_kd import PixelKDTerm
from tutelage.methods.distillation.skd import SKDHolistic, SKDPairwise
from tutelage.methods.distillation.term import AdversarialTerm, Maps, NetShape, Pair, Term, TermInputs
from tutelage.methods.settings.distill import DistillSettings
from tutelage.methods.supervised import TaskLoss
from tutelage.nets.segmentor import Prediction, Segmentor


class Distill(Method):
    """A frozen teacher and labels teach the student on the same crops."""

    Settings: ClassVar[type[MethodSettings]] = DistillSettings

    def __init__(self, nets: Mapping[str, Segmentor], settings: Any, info: TaskInfo) -> None:
        super().__init__()
        self.student = nets["student"]
        self.teacher = nets["teacher"]
        self.task = TaskLoss(settings.task, info)
        self.cache: TeacherCache | None = None
        """The teacher's stored outputs, where they are replayed; set before training."""
        self.chosen = (settings.student_feature, settings.teacher_feature)
        chosen = settings.terms().chosen()
        pair, self.sizes = self._pair(info)
        self.terms = nn.ModuleDict({name: TERMS[name](term, pair) for name, term in chosen.items()})
        self.context = ContextBlock(pair.student.channels) if self.context_of(settings) else None
        self.critics = nn.ModuleDict(
            {name: term.make_critic(pair) for name, term in self._terms().items() if isinstance(term, AdversarialTerm)}
        )

    @staticmethod
    def context_of(settings: Any) -> bool:
        """Whether the settings request the context block."""
        return bool(settings.context)

    def passes(self, step: int) -> tuple[Pass, ...]:
        """The student with what the terms learn; then the critics, if any."""
        train = Pass("train", {"student", "terms", *(("context",) if self.context is not None else ())})
        return (train, Pass("judge", {"critics"})) if len(self.critics) else (train,)

    def optimizers(self) -> Mapping[str, OptimizerSpec]:
        """Parameters of terms go with the student; a critic has its own optimizer, at a constant rate."""
        nets = ("student", "terms", *(("context",) if self.context is not None else ()))
        result = {"main": OptimizerSpec(nets)}
        for term in self._terms().values():
            if isinstance(term, AdversarialTerm):
                result["critic"] = OptimizerSpec(("critics",), term.critic_optimizer, ScheduleSettings(kind="constant"))
        return result

    def counts(self, batches: Mapping[str, Batch]) -> Mapping[str, Tensor]:
        """The weight of the valid labels."""
        return {"labeled": self.task.counts(batches["labeled"]["weak"].label)}

    def forward(self, batches: Mapping[str, Batch], pass_name: str, context: StepContext) -> dict[str, Tensor]:
        """One labelled batch, seen by both nets; or the critics' turn."""
        return self._judge(context) if pass_name == "judge" else self._train(batches, context)

    def _train(self, batches: Mapping[str, Batch], context: StepContext) -> dict[str, Tensor]:
        view = batches["labeled"]["weak"]
        with torch.no_grad():
            taught = self._taught(batches["labeled"])
        prediction = self.student(view.image)
        terms: dict[str, Tensor] = self.task(prediction, self.student.stride, view.label, context.normalizer("labeled"))
        mine = self._maps(self.student, prediction, self.chosen[0])
        if self.context is not None:
            mine = mine._replace(feature=self.context(mine.feature))
        theirs = on_grids_of(taught, mine)
        if self.cache is not None:
            theirs = theirs._replace(logits=_only_shown(theirs.logits, mine.logits.detach(), view))
        seen = TermInputs(mine, theirs, view.label)
        for name, term in self._terms().items():
            if isinstance(term, AdversarialTerm):
                terms[name] = term.fool(self.critics[name], seen)
                context.carry["student"], context.carry["teacher"] = seen.student.logits, seen.teacher.logits
            else:
                terms.update(term(seen, context))
        return terms

    def _taught(self, batch: Batch) -> Maps:
        """The teacher's outputs for the view, computed or stored."""
        view = batch["weak"]
        if self.cache is None:
            return self._maps(self.teacher, self.teacher(view.image), self.chosen[1])
        height, width = self.sizes[1].logits.shape[2:]
        logits = self.cache.logits(batch.samples, view.geometry, (int(height), int(width)))
        return Maps(logits, logits, None)  # settings let no term near the others

    def _judge(self, context: StepContext) -> dict[str, Tensor]:
        student, teacher = context.carry["student"], context.carry["teacher"]
        return {
            f"{name}_critic": term.judge(self.critics[name], student, teacher, context)
            for name, term in self._terms().items()
            if isinstance(term, AdversarialTerm)
        }

    def _terms(self) -> dict[str, Term]:
        return {name: term for name, term in self.terms.items() if isinstance(term, Term)}

    def extra_report(self) -> dict[str, Any]:
        """The projections and the memory of the terms, in words."""
        (student_feature, teacher_feature), (mine, theirs) = self.chosen, self.sizes
        lines = [
            f"student {student_feature} {_shown(mine.feature)}, logits {_shown(mine.logits)}; "
            f"teacher {teacher_feature} {_shown(theirs.feature)}, logits {_shown(theirs.logits)}"
        ]
        for what in ("feature", "logits"):
            ours, others = getattr(mine, what).shape[2:], getattr(theirs, what).shape[2:]
            if ours != others:
                how = "averaged" if others[0] > ours[0] else "enlarged"
                lines.append(f"the teacher's {what} is {how} to the student's grid")
        lines += [f"{name}: {text}" for name, term in self._terms().items() if (text := term.describe())]
        return {"distillation": "\n  ".join(lines)}

    def _pair(self, info: TaskInfo) -> tuple[Pair, tuple[Maps, Maps]]:
        """The outputs of both nets for one crop, from shapes alone."""
        if info.size is None:
            raise RecipeError(
                "missing-crop",
                "distillation needs the size of the crops, and streams.labeled.augment.crop is not set",
                "set streams.labeled.augment.crop: [height, width]",
            )
        size = info.size()
        sides = []
        for net, chosen, who in ((self.student, self.chosen[0], "student"), (self.teacher, self.chosen[1], "teacher")):
            level = re.fullmatch(r"level(\d)", chosen)
            if level is not None and int(level[1]) >= len(net.feature_channels):
                raise RecipeError(
                    "unknown-feature",
                    f"invalid {who}_feature {chosen!r}: expected level0 to level{len(net.feature_channels) - 1}",
                    f"set {who}_feature to a level that the encoder of the {who} has",
                )
            if level is None and chosen != "embedding":
                net.tap((*net.taps, chosen))
            shapes = copy.deepcopy(net).to("meta").eval()
            sides.append(self._maps(shapes, shapes(torch.empty(2, 3, *size, device="meta")), chosen))
        mine, theirs = sides
        for maps, who, chosen in zip(sides, ("student", "teacher"), self.chosen, strict=True):
            if maps.feature.dim() != 4:
                raise RecipeError(
                    "feature-not-map",
                    f"invalid {who}_feature {chosen!r}: expected a map (B, C, h, w), got {tuple(maps.feature.shape)}",
                    f"set {who}_feature to a submodule that returns a map, to embedding, or to level0, level1 ...",
                )
        if theirs.logits.shape[1] != info.classes:
            raise RecipeError(
                "teacher-classes",
                f"the teacher has {theirs.logits.shape[1]} classes, expected {info.classes}",
                "use a teacher that was trained on the classes of the task",
            )
        grid, logits_grid = ((int(maps.shape[2]), int(maps.shape[3])) for maps in (mine.feature, mine.logits))
        student = NetShape(int(mine.feature.shape[1]), mine.auxiliary is not None)
        teacher = NetShape(int(theirs.feature.shape[1]), theirs.auxiliary is not None)
        return Pair(info.classes, student, teacher, grid, logits_grid), (mine, theirs)

    @staticmethod
    def _maps(net: Segmentor, prediction: Prediction, chosen: str) -> Maps:
        if chosen == "embedding":
            feature = prediction.embedding
        elif re.fullmatch(r"level\d", chosen):
            feature = prediction.features[int(chosen[-1])]
        else:
            feature = prediction.taps[chosen]
        return Maps(prediction.logits, feature, prediction.auxiliary)


def on_grids_of(theirs: Maps, mine: Maps) -> Maps:
    """The teacher's maps on the grids of the student's."""
    auxiliary = theirs.auxiliary
    if auxiliary is not None and mine.auxiliary is not None:
        auxiliary = on_grid(auxiliary, mine.auxiliary)
    return Maps(on_grid(theirs.logits, mine.logits), on_grid(theirs.feature, mine.feature), auxiliary)


def on_grid(theirs: Tensor, mine: Tensor) -> Tensor:
    """A map (B, C, ., .) on the grid of another: averaged where it is finer, bilinear where it is coarser."""
    size = (mine.shape[2], mine.shape[3])
    if theirs.shape[2:] == mine.shape[2:]:
        return theirs
    if theirs.shape[2] >= size[0] and theirs.shape[3] >= size[1]:
        return F.adaptive_avg_pool2d(theirs, size)
    return F.interpolate(theirs, size, mode="bilinear", align_corners=False)


def _only_shown(theirs: Tensor, mine: Tensor, view: View) -> Tensor:
    """The teacher's logits (B, K, h, w), and the student's own where the view shows padding: nothing to learn there."""
    inside = warp(torch.ones_like(mine[:, :1, :1, :1]), view.geometry, (mine.shape[2], mine.shape[3]))
    return torch.where(inside > 0, theirs, mine)


def _shown(maps: Tensor) -> str:
    return "x".join(str(int(side)) for side in maps.shape[1:])


TERMS: dict[str, type[Term]] = {
    "pixel_kd": PixelKDTerm,
    "skd_pairwise": SKDPairwise,
    "skd_holistic": SKDHolistic,
    "ifvd": IFVD,
    "cwd": CWD,
    "cwd_features": CWDFeatures,
    "dsd_pixel": DSDPixel,
    "dsd_category": DSDCategory,
    "at": AT,
    "fitnet": FitNet,
    "dist": DIST,
    "mgd": MGD,
    "cirkd_minibatch": MinibatchPixel,
    "cirkd_memory": Memory,
    "cirkd_channel": Channel,
}
"""The name of a term in a recipe → its class."""
