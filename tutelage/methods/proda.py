"""ProDA, stage 1: soft labels of a warm-up net, corrected by prototypes, and two views that agree on structure.

    w        = softmax_k(-T |f~ - eta_k|)            f~: features of the moving average, eta: one prototype a class
    y        = argmax_k w p0                         p0: soft labels of the warm-up net, which stays as it is
    L_target = a CE(z, y) + b RCE(z, y) + g REG(z)   on the weak view
    L_struct = KL(softmax(-T |f~ - eta|) || softmax(-T |f_strong - eta|)) / K
    L        = CE(source) + L_target + 10 L_struct

After each step every class mean of f~ in every image moves its prototype by a small share, image by image, and the
average follows the student. The source is a pass of its own, so that its maps are gone before the target's come.
Source: ProDA (CVPR 2021) and its code.

Legend: B batch, K classes, D embedding, H W pixels of a view, h w the grid of targets, N N net's grids.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from tutelage.data.batch import Batch, between, warp
from tutelage.engine.collectives import gather_equal
from tutelage.engine.contract import Method, Pass, StepContext, TaskInfo
from tutelage.errors import RecipeError
from tutelage.losses.prototypes import prototype_distances, prototype_weights, rectify
from tutelage.losses.segmentation import IGNORE
from tutelage.losses.symmetric import (
    confidence_regularizer,
    structure_divergence,
    symmetric_cross_entropy,
)
from tutelage.methods.distillation.cache import TeacherCache
from tutelage.methods.ema import average, twin
from tutelage.methods.settings.proda import ProDASettings
from tutelage.methods.supervised import TaskLoss
from tutelage.methods.target_grid import TargetGrid
from tutelage.nets.segmentor import Segmentor
from tutelage.prototypes.means import ClassMeans, class_vectors


class ProDA(Method):
    """Labels of one domain, images of another: prototypes correct pseudo labels while the net learns them."""

    Settings = ProDASettings

    def __init__(self, nets: Mapping[str, Segmentor], settings: ProDASettings, info: TaskInfo) -> None:
        super().__init__()
        self.student = nets["student"]
        self.labeller = nets["labeller"]
        self.cache: TeacherCache | None = None
        self.ema = twin(self.student)
        if settings.ema_eval:
            self.ema.mode(norm="running", dropout=False)
        self.task = TaskLoss(settings.task, info)
        self.prototypes = started_prototypes(info, self.student.embedding_channels, settings.rate)
        self.grid = TargetGrid(settings.grid, settings.task.resize)
        self.settings = settings

    def passes(self, step: int) -> tuple[Pass, ...]:
        """The source first, by itself; gradients add up."""
        return (Pass("source", {"student"}), Pass("target", {"student"}))

    def exported(self) -> Mapping[str, nn.Module]:
        """The student, and its average beside it."""
        return {"student": self.student, "ema": self.ema}

    def counts(self, batches: Mapping[str, Batch]) -> Mapping[str, Tensor]:
        """Valid labels of the source; cells of the target's weak view; elements that the structure term compares."""
        target = batches["target"]
        return {
            "source": self.task.counts(batches["source"]["weak"].label),
            "weak": self.grid.valid(target["weak"]).sum().float(),
            "strong": len(self.prototypes.prototypes) * self._compared(target).sum().float(),
        }

    def forward(self, batches: Mapping[str, Batch], pass_name: str, context: StepContext) -> dict[str, Tensor]:
        """The terms of the source's labels, or all terms of the target."""
        if pass_name == "source":
            view = batches["source"]["weak"]
            prediction = self.student(view.image)
            terms: dict[str, Tensor] = self.task(
                prediction, self.student.stride, view.label, context.normalizer("source")
            )
            return terms
        return self._target(batches["target"], context)

    def after_step(self, context: StepContext) -> None:
        """Prototypes move image by image, in the order of the whole batch; then the average follows."""
        for carry in context.carries:
            self.prototypes.fold(gather_equal(carry["vectors"]), gather_equal(carry["present"]))
        average(self.ema, self.student, self.settings.decay, buffers="copy")

    def _target(self, batch: Batch, context: StepContext) -> dict[str, Tensor]:
        settings, weak = self.settings, batch["weak"]
        eta_KD, temperature = self.prototypes.prototypes, settings.temperature
        with torch.no_grad():
            distance_BKhw = prototype_distances(self._average_features(batch, context), eta_KD)
            weight_BKhw = prototype_weights(distance_BKhw, temperature)
            label_Bhw, _ = rectify(self._soft_labels(batch), weight_BKhw, settings.threshold)
            label_Bhw = label_Bhw.masked_fill(~self.grid.valid(weak), IGNORE)

        logits_BKhw = self.grid.bring(self.student(weak.image).logits, weak, self.student.stride)
        # How many labels a threshold leaves in the other micro-batches is not known yet.
        normalizer = None if settings.threshold else context.normalizer("weak")
        terms = {
            "symmetric": symmetric_cross_entropy(
                logits_BKhw, label_Bhw, alpha=settings.alpha, beta=settings.beta, normalizer=normalizer
            )
        }
        if settings.regularizer_weight:
            regularizer = confidence_regularizer(logits_BKhw, settings.regularizer)
            terms["regularizer"] = settings.regularizer_weight * regularizer
        if settings.structure:
            strong = batch["strong"]
            feature_BDhw = self.grid.bring(self.student(strong.image).embedding, strong, self.student.stride)
            divergence = structure_divergence(
                prototype_distances(feature_BDhw, eta_KD),
                self._onto_strong(distance_BKhw, batch),
                self._compared(batch)[:, None],
                temperature,
                context.normalizer("strong"),
            )
            terms["structure"] = settings.structure * divergence
        return terms

    def _average_features(self, batch: Batch, context: StepContext) -> Tensor:
        """f~ (B, D, h, w) over the weak view; the class means of what the average saw are kept for the prototypes."""
        seen = batch["full" if "full" in batch.views else "weak"]
        prediction = self.ema(seen.image)
        feature_BDNN = self.grid.bring(prediction.embedding.float(), seen, self.ema.stride)
        logits_BKNN = self.grid.bring(prediction.logits, seen, self.ema.stride)
        found = class_vectors(feature_BDNN, logits_BKNN, min_pixels=self.settings.min_pixels)
        context.carry["vectors"], context.carry["present"] = found.vectors, found.valid
        return self._onto_weak(feature_BDNN, batch) if "full" in batch.views else feature_BDNN

    def _soft_labels(self, batch: Batch) -> Tensor:
        """p0 (B, K, h, w) over the weak view, by the warm-up net, computed or stored."""
        if self.cache is not None:
            weak = batch["weak"]
            return self.cache.probabilities(batch.samples, weak.geometry, self.grid.size(weak))
        if self.settings.labels_from == "full" and "full" not in batch.views:
            raise RecipeError(
                "missing-view",
                "labels_from is full, but the stream `target` has no view `full`",
                "add `views: {full: {augment: {resize: [height, width]}}}` to the stream, or set labels_from: weak",
            )
        seen = batch[self.settings.labels_from]
        soft = self.grid.bring(self.labeller(seen.image).logits.softmax(1), seen, self.labeller.stride)
        return self._onto_weak(soft, batch) if self.settings.labels_from == "full" else soft

    def _onto_weak(self, maps: Tensor, batch: Batch) -> Tensor:
        """Maps of the view `full`, as the weak view shows them."""
        weak, full = batch["weak"], batch["full"]
        return warp(maps, between(weak.geometry, full.geometry), self.grid.size(weak), "bilinear")

    def _onto_strong(self, maps: Tensor, batch: Batch) -> Tensor:
        """Maps of the weak view, as the strong view shows them."""
        weak, strong = batch["weak"], batch["strong"]
        return warp(maps, between(strong.geometry, weak.geometry), self.grid.size(strong), "nearest")

    def _compared(self, batch: Batch) -> Tensor:
        """Which cells of the strong view show something of the weak one: (B, h, w) bool."""
        return self.grid.valid(batch["strong"]) & (self._onto_strong(self.grid.valid(batch["weak"]).float(), batch) > 0)


def started_prototypes(info: TaskInfo, channels: int, rate: float, role: str = "prototypes") -> ClassMeans:
    """Class means of a `fit` stage in buffers, which move by ``rate``. RecipeError where they do not fit the net."""
    fitted = info.fitted_inputs.get(role, {})
    kind = "means" if role == "prototypes" else role
    if not {"prototypes", "counts"} <= fitted.keys():
        raise RecipeError(
            "missing-fit",
            f"the method starts from fitted {role}, and `inputs` has no {role}",
            f"add a stage `{{kind: fit, what: {kind}, net: <stage>, data: <images>}}` and name it: "
            f"`inputs: {{{role}: <stage>}}`",
        )
    means = ClassMeans(info.classes, channels, rule="average", rate=rate)
    if fitted["prototypes"].shape != means.prototypes.shape:
        classes, width = fitted["prototypes"].shape
        raise RecipeError(
            "fit-shape",
            f"the fitted {role} have {classes} classes and {width} channels, expected {info.classes} and {channels}",
            "fit them with the net that the student starts from, or with a net of the same settings",
        )
    means.prototypes.copy_(fitted["prototypes"])
    means.counts.copy_(fitted["counts"])
    return means
