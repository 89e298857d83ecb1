"""PBAL: prototypical bidirectional adaptation and learning (IEEE TMM 26, 2024), from a labelled domain to another.

The prototypes are the rows of the classifier's own weight W; nothing is stored.

    pbal_bpl   stage 1, and with weight 0 stage 0, the warm-up
        segment:       L   = CE(source) + l BCE(D(softmax z_t), source) + w (pixel_to_prototype + prototype_to_pixel)
        discriminate:  L_D = 1/2 BCE(D(softmax z_s), source) + 1/2 BCE(D(softmax z_t), target), on detached logits

    pbal_pst   stage 2, on pseudo labels of stage 1
        L = CE(source) + CE(target) + a_s C(source) + a_t C(target)
        C = mean over positions of -log softmax_k( cos(f, W_k) / tau ) at the label, 0 where there is none

Cosine losses lie on the logits' own grid, cross-entropies and the critic at the size of the crop. Both domains pass
the net one after the other, so that batch norm sees one at a time. Between the stages lies an `annotate` stage with
policy `class_quantile`; the third stage is `self_distill`.

Scope of the softmax over pixels: the images of all processes in a step. A micro-batch (`accumulate`) is computed before
the next one is known, so that with several of them each has a softmax of its own.

Legend: B images, K classes, D embedding, h w the logits' grid.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from tutelage.data.batch import Batch, View
from tutelage.engine import collectives
from tutelage.engine.contract import Method, OptimizerSpec, Pass, StepContext, TaskInfo
from tutelage.errors import RecipeError
from tutelage.losses.adversarial import SOURCE, TARGET, domain_loss
from tutelage.losses.prototype_contrast import prototype_contrast
from tutelage.losses.regions import shrink_labels
from tutelage.losses.resize import over_image
from tutelage.losses.segmentation import IGNORE
from tutelage.losses.transport import cosine_cost, merged, pixel_sums, pixel_to_prototype, prototype_to_pixel
from tutelage.methods.settings.pbal import PBALBidirectionalSettings, PBALSelfTrainingSettings
from tutelage.methods.supervised import TaskLoss
from tutelage.nets.discriminators import OutputDiscriminator
from tutelage.nets.segmentor import Prediction, Segmentor


class PBALBidirectional(Method):
    """Labels of one domain, images of another: target features and the classifier's weights are drawn together."""

    Settings = PBALBidirectionalSettings

    def __init__(self, nets: Mapping[str, Segmentor], settings: PBALBidirectionalSettings, info: TaskInfo) -> None:
        super().__init__()
        self.student = nets["student"]
        prototypes_of(self.student)  # it must have them
        self.critic = OutputDiscriminator(info.classes)
        self.task = TaskLoss(settings.task, info)
        self.settings = settings

    def passes(self, step: int) -> tuple[Pass, ...]:
        """The net first, then the discriminator on its maps."""
        segment = Pass("segment", {"student"})
        return (segment, Pass("discriminate", {"critic"})) if self.settings.adversarial else (segment,)

    def optimizers(self) -> Mapping[str, OptimizerSpec]:
        """The recipe's for the net, one of its own for the discriminator."""
        critic = OptimizerSpec(("critic",), self.settings.critic_optimizer, self.settings.critic_schedule)
        return {"main": OptimizerSpec(("student",)), "critic": critic}

    def counts(self, batches: Mapping[str, Batch]) -> Mapping[str, Tensor]:
        """The weight of the source's valid labels, and the target's positions that show its images."""
        target = batches["target"]["weak"]
        positions = shrink_labels(target.valid, grid_of(target, self.student.stride)).sum().float()
        return {"source": self.task.counts(batches["source"]["strong"].label), "positions": positions}

    def forward(self, batches: Mapping[str, Batch], pass_name: str, context: StepContext) -> dict[str, Tensor]:
        """One pass over a source and a target batch."""
        source, target = batches["source"]["strong"], batches["target"]["weak"]
        if pass_name == "segment":
            return self._segment(source, target, context)
        return self._discriminate(source, target, context)

    def _segment(self, source: View, target: View, context: StepContext) -> dict[str, Tensor]:
        settings = self.settings
        on_source = self.student(source.image)
        terms: dict[str, Tensor] = self.task(on_source, self.student.stride, source.label, context.normalizer("source"))
        on_target = self.student(target.image)
        if settings.adversarial:
            context.carry["source"], context.carry["target"] = on_source.logits, on_target.logits
            # The net is trained so that its target maps are classified as source.
            scores = self.critic(self._map(on_target.logits, target))
            terms["adversarial"] = settings.adversarial * domain_loss(scores, SOURCE)
        if settings.weight:
            directions = self._bidirectional(on_target, target, context)
            terms |= {name: settings.weight * value for name, value in directions.items()}
        return terms

    def _bidirectional(self, prediction: Prediction, target: View, context: StepContext) -> dict[str, Tensor]:
        settings = self.settings
        logits_BKhw, features_BDhw = prediction.logits, prediction.embedding
        valid_Bhw = shrink_labels(target.valid, (logits_BKhw.shape[2], logits_BKhw.shape[3]))
        cost_BKhw = cosine_cost(features_BDhw, prototypes_of(self.student), settings.prototype_grad)
        terms = {}
        if settings.pixel_to_prototype:
            share = context.normalizer("positions")
            terms["pixel_to_prototype"] = pixel_to_prototype(logits_BKhw, cost_BKhw, valid_Bhw, share)
        if settings.prototype_to_pixel and settings.scope == "local":
            terms["prototype_to_pixel"] = prototype_to_pixel(logits_BKhw, cost_BKhw, valid_Bhw)
        elif settings.prototype_to_pixel:
            sums_K3 = pixel_sums(logits_BKhw, cost_BKhw, valid_Bhw)
            everywhere_K3 = merged(collectives.gather_equal(sums_K3[None]))
            part = prototype_to_pixel(logits_BKhw, cost_BKhw, valid_Bhw, everywhere_K3)
            # Processes' parts add up to the loss, and the engine averages over processes.
            terms["prototype_to_pixel"] = part * collectives.world()
        return terms

    def _discriminate(self, source: View, target: View, context: StepContext) -> dict[str, Tensor]:
        terms = {}
        for side, view, domain in (("source", source, SOURCE), ("target", target, TARGET)):
            scores = self.critic(self._map(context.carry[side], view))
            terms[f"critic_{side}"] = 0.5 * domain_loss(scores, domain)
        return terms

    def _map(self, logits_BKhw: Tensor, view: View) -> Tensor:
        """The input of the discriminator: probabilities at the size of the crop."""
        return over_image(logits_BKhw, view.image, self.settings.task.resize, self.student.stride).softmax(1)


class PBALSelfTraining(Method):
    """Labels of one domain, pseudo labels of another: pixels of both are pulled to the prototype of their class."""

    Settings = PBALSelfTrainingSettings

    projection: nn.Conv2d | None

    def __init__(self, nets: Mapping[str, Segmentor], settings: PBALSelfTrainingSettings, info: TaskInfo) -> None:
        super().__init__()
        self.student = nets["student"]
        prototypes_of(self.student)  # it must have them
        channels = self.student.classifier.in_channels
        self.projection = nn.Conv2d(channels, channels, 1, bias=False) if settings.projection == "linear" else None
        self.task = TaskLoss(settings.task, info)
        self.settings = settings
        self.contrast = {"source": settings.contrast_source, "target": settings.contrast_target}

    def passes(self, step: int) -> tuple[Pass, ...]:
        """One pass."""
        return (Pass("train", self._trained()),)

    def optimizers(self) -> Mapping[str, OptimizerSpec]:
        """The recipe's for everything."""
        return {"main": OptimizerSpec(self._trained())}

    def counts(self, batches: Mapping[str, Batch]) -> Mapping[str, Tensor]:
        """The weight of the valid labels of both domains, at the size of the crop and on the logits' grid."""
        counts = {}
        for side in self.contrast:
            view = batches[side]["strong"]
            small_Bhw = shrink_labels(view.label, grid_of(view, self.student.stride))
            counts[side] = self.task.counts(view.label)
            counts[f"{side}_positions"] = (small_Bhw != IGNORE).sum().float()
        return counts

    def forward(self, batches: Mapping[str, Batch], pass_name: str, context: StepContext) -> dict[str, Tensor]:
        """One labelled source batch, one target batch with pseudo labels."""
        terms: dict[str, Tensor] = {}
        for side, weight in self.contrast.items():
            view = batches[side]["strong"]
            raw = side == "target" and not self.settings.normalise_target
            # The net subtracts its mean and divides by its deviation: this undoes both beforehand.
            image = view.image * self.student.std + self.student.mean if raw else view.image
            prediction = self.student(image)
            supervised = self.task(prediction, self.student.stride, view.label, context.normalizer(side))
            terms |= {f"{side}_{name}": value for name, value in supervised.items()}
            if weight:
                terms[f"{side}_contrast"] = weight * self._contrast(prediction, view.label, side, context)
        return terms

    def _contrast(self, prediction: Prediction, label_BHW: Tensor, side: str, context: StepContext) -> Tensor:
        settings = self.settings
        features_BDhw = prediction.embedding
        return prototype_contrast(
            features_BDhw,
            shrink_labels(label_BHW, (features_BDhw.shape[2], features_BDhw.shape[3])),
            prototypes_of(self.student),
            settings.temperature,
            prototype_grad=settings.prototype_grad,
            projection_EC=None if self.projection is None else self.projection.weight.flatten(1),
            normalizer=context.normalizer(f"{side}_positions") if settings.reduction == "valid" else None,
        )

    def _trained(self) -> tuple[str, ...]:
        return ("student",) if self.projection is None else ("student", "projection")


def prototypes_of(net: Segmentor) -> Tensor:
    """The prototypes (K, D): the rows of the classifier's weight, live. RecipeError for a net of DeepLabV2."""
    classifier = net.classifier
    if not isinstance(classifier, nn.Conv2d):
        raise RecipeError(
            "classifier-not-pointwise",
            f"invalid decoder {net.settings.decoder} for PBAL: its classifier is not a 1x1 convolution, whose weights "
            "are the prototypes",
            "use a decoder with a 1x1 classifier, e.g. deeplabv3plus_pbal",
        )
    return classifier.weight.flatten(1)


def grid_of(view: View, stride: int) -> tuple[int, int]:
    """Height and width of the grid of logits at this stride."""
    return -(-view.image.shape[2] // stride), -(-view.image.shape[3] // stride)
