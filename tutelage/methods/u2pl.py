"""U2PL: unreliable pseudo labels are good negatives.

    L = CE(p_S(x_l), y) + w L_u + w_c L_c

    L_u   (pixels / kept) mean CE(p_S(x_u), argmax p_T(x_u)) over pixels whose entropy is below its q-th percentile,
          q = 100 - (100 - keep) (1 - t)
    L_c   mean over classes of InfoNCE(anchors, centre, remembered negatives) on representations; alpha = a (1 - t)
          percent of the pixels are sure, as many are unsure, and these are negatives of what they are least like

Student and teacher each have a head that represents pixels. The teacher (a moving average) first makes pseudo labels in
evaluation mode; the unlabelled images are mixed; then both nets see labelled and mixed images together, the teacher
with batch statistics and dropout and without a gradient. t is the progress of the stage.

Percentiles, anchors and centres belong to a micro-batch, as they belong to a GPU in the published code: here
micro-batches do not make exactly one batch. Every process gathers what all of them remember, so that the memories are
equal everywhere.
Source: U2PL (CVPR 2022) and its code; its defects stand under the settings that keep them.

Legend: B images, K classes, P pixels of all images on the net's grid, C dimensions, F keys, R rows of the memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tutelage.data.batch import Batch, View
from tutelage.data.draws import generator
from tutelage.data.mixing.inside_batch import class_halves, half_holes
from tutelage.data.mixing.paste import partners, paste
from tutelage.engine import collectives
from tutelage.engine.contract import Method, OptimizerSpec, Pass, StepContext, TaskInfo
from tutelage.errors import RecipeError
from tutelage.losses import contrast
from tutelage.losses.consistency import pseudo_label
from tutelage.losses.options import ResizeRule
from tutelage.losses.regions import shrink_labels
from tutelage.losses.relations import unit
from tutelage.losses.resize import over_image
from tutelage.losses.segmentation import IGNORE
from tutelage.methods.distillation.projection import Projection
from tutelage.methods.distillation.queues import DTYPES, enqueue
from tutelage.methods.ema import average, decay_at, twin
from tutelage.methods.settings.common import QueuePrecision
from tutelage.methods.settings.u2pl import U2PLSettings
from tutelage.methods.supervised import TaskLoss
from tutelage.nets.segmentor import Prediction, Segmentor


class NegativeQueue(nn.Module):
    """The latest negatives of each class: one buffer, in which each class has its own part and goes round in it.

    The published queue drops its oldest rows from the front; going round holds the same rows, without moving them.
    """

    rows_RC: Tensor
    pointer_K: Tensor
    number_K: Tensor
    first_K: Tensor
    capacity_K: Tensor

    def __init__(self, capacities: list[int], channels: int, precision: QueuePrecision) -> None:
        super().__init__()
        capacity_K = torch.tensor(capacities)
        self.smallest = min(capacities)
        self.register_buffer("rows_RC", torch.zeros(sum(capacities), channels, dtype=DTYPES[precision]))
        self.register_buffer("pointer_K", torch.zeros_like(capacity_K))
        self.register_buffer("number_K", torch.zeros_like(capacity_K))
        self.register_buffer("first_K", capacity_K.cumsum(0) - capacity_K, persistent=False)
        self.register_buffer("capacity_K", capacity_K, persistent=False)
        self.parts = _equal_parts(capacities)

    @torch.no_grad()
    def append(self, keys_KFC: Tensor, number_K: Tensor) -> None:
        """Remember the first ``number`` of the keys of each class; ValueError for more than the smallest part holds."""
        if keys_KFC.shape[1] > self.smallest:
            raise ValueError(f"{keys_KFC.shape[1]} keys at once for a part of {self.smallest} rows")
        first_row = 0
        for first, last, capacity in self.parts:
            part = self.rows_RC[first_row : first_row + (last - first) * capacity]
            rows_kNC = part.view(last - first, capacity, -1)
            enqueue(rows_kNC, self.pointer_K[first:last], keys_KFC[first:last], number_K[first:last], wraps=True)
            first_row += (last - first) * capacity
        self.number_K.copy_(torch.minimum(self.number_K + number_K, self.capacity_K))

    def describe(self) -> str:
        """Its size."""
        size = self.rows_RC.numel() * self.rows_RC.element_size()
        return (
            f"{len(self.capacity_K)} classes x {self.smallest} negatives of {self.rows_RC.shape[1]} numbers, "
            f"{size / 2**20:.0f} MiB in the memory and in every checkpoint"
        )


class U2PL(Method):
    """Few labels and many images: sure pixels are pseudo labels, unsure ones are negatives."""

    Settings = U2PLSettings

    def __init__(self, nets: Mapping[str, Segmentor], settings: U2PLSettings, info: TaskInfo) -> None:
        super().__init__()
        if settings.low_rank >= info.classes:
            raise RecipeError(
                "rank-out-of-range",
                f"low_rank must be below the number of classes, {info.classes}, got {settings.low_rank}",
                "set low_rank below the number of classes; 1 for two classes",
            )
        self.student = nets["student"]
        self.representation = representation(self.student.embedding_channels, settings.dimensions)
        self.ema, self.ema_representation = twin(self.student), twin(self.representation)
        self.task = TaskLoss(settings.task, info)
        capacities = [settings.queue_first or settings.queue] + [settings.queue] * (info.classes - 1)
        self.memory = NegativeQueue(capacities, settings.dimensions, settings.precision)
        self.settings = settings

    def passes(self, step: int) -> tuple[Pass, ...]:
        """The student and its head at once."""
        return (Pass("train", {"student", "representation"}),)

    def optimizers(self) -> Mapping[str, OptimizerSpec]:
        """One optimizer for both, as set in the recipe."""
        return {"main": OptimizerSpec(("student", "representation"))}

    def exported(self) -> Mapping[str, nn.Module]:
        """The student, and its average beside it; the heads are of no use afterwards."""
        return {"student": self.student, "ema": self.ema}

    def counts(self, batches: Mapping[str, Batch]) -> Mapping[str, Tensor]:
        """The weight of the valid labels."""
        return {"labeled": self.task.counts(batches["labeled"]["weak"].label)}

    def forward(self, batches: Mapping[str, Batch], pass_name: str, context: StepContext) -> dict[str, Tensor]:
        """One labelled and one unlabelled batch."""
        settings = self.settings
        labeled, unlabeled = batches["labeled"]["weak"], batches["unlabeled"]["weak"]
        if context.step < settings.supervised_steps:
            with torch.no_grad():
                self.ema(labeled.image)  # its running statistics go on
            return self._supervised(self.student(labeled.image), labeled, context)

        image_u, pseudo_BHW, valid_BHW = self._mixed(unlabeled, *self._pseudo_labels(unlabeled), context)
        images = (labeled.image, image_u)
        student = _together(self.student, self.representation, images)
        with torch.no_grad():
            teacher = _together(self.ema, self.ema_representation, images)
            entropy_BHW = contrast.pixel_entropy(self._full(teacher[1][0], image_u))

        terms = self._supervised(student[0][0], labeled, context)
        kept_percent = 100 - (100 - settings.keep_percent) * (1 - context.progress)
        terms["unsupervised"] = settings.weight * contrast.reliable_cross_entropy(
            self._full(student[1][0], image_u),
            contrast.reliable(pseudo_BHW, entropy_BHW, kept_percent),
            valid_BHW.sum(),
        )
        sure = contrast.entropy_masks(entropy_BHW, pseudo_BHW != IGNORE, settings.alpha * (1 - context.progress))
        seen_BHW = labeled.label != IGNORE
        maps = ((labeled.label, seen_BHW, seen_BHW), (pseudo_BHW, *sure))
        terms["contrast"] = settings.weight_contrast * self._contrast(student, teacher, maps, context)
        return terms

    def after_step(self, context: StepContext) -> None:
        """The teacher follows; while labels alone are learned it waits, and at their end it copies."""
        update = context.step - self.settings.supervised_steps
        if update >= -1:
            decay = decay_at(max(update, 0), self.settings.decay, ramp=True)
            average(self.ema, self.student, decay)
            average(self.ema_representation, self.representation, decay)

    def extra_report(self) -> dict[str, Any]:
        """The memory's size."""
        return {"memory of negatives": self.memory.describe()}

    def _supervised(self, prediction: Prediction, labeled: View, context: StepContext) -> dict[str, Tensor]:
        terms: dict[str, Tensor] = self.task(
            prediction, self.student.stride, labeled.label, context.normalizer("labeled")
        )
        return terms

    @torch.no_grad()
    def _pseudo_labels(self, view: View) -> tuple[Tensor, Tensor]:
        """The teacher's labels in evaluation mode (B, H, W), 255 on padding; and where there is no padding."""
        self.ema.eval()
        pseudo_BHW, _ = pseudo_label(over_image(self.ema(view.image).logits, view.image, self._rule, self.ema.stride))
        self.ema.train(self.training)
        return pseudo_BHW.masked_fill(~view.valid, IGNORE), view.valid

    def _mixed(
        self, view: View, pseudo_BHW: Tensor, valid_BHW: Tensor, context: StepContext
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Images, pseudo labels and valid pixels, mixed inside the batch or unchanged."""
        settings = self.settings
        draw = generator(context.seed, "u2pl", "mixing", context.step, context.slice)
        if draw.random() >= settings.mixing_probability:
            return view.image, pseudo_BHW, valid_BHW
        size, images = (view.image.shape[2], view.image.shape[3]), len(view.image)
        if settings.mixing == "classmix":
            labels = len(self.memory.capacity_K) + 1
            score_BL = torch.rand(images, labels, generator=context.generator, device=view.image.device)
            keep_BHW = class_halves(pseudo_BHW, score_BL)
        else:
            keep_BHW = half_holes(draw, images, size, view.image.device)
        if settings.mixing == "cutout":
            # The mean colour, which is 0 to the net.
            erased = paste(view.image, self.student.mean.expand_as(view.image), ~keep_BHW)
            return erased, pseudo_BHW.masked_fill(~keep_BHW, IGNORE), valid_BHW
        image, pseudo, valid = (paste(own, partners(own), ~keep_BHW) for own in (view.image, pseudo_BHW, valid_BHW))
        return image, pseudo, valid

    def _contrast(
        self,
        student: list[tuple[Prediction, Tensor]],
        teacher: list[tuple[Prediction, Tensor]],
        maps: tuple[tuple[Tensor, Tensor, Tensor], ...],
        context: StepContext,
    ) -> Tensor:
        """The contrast of labelled and unlabelled pixels; ``maps``: for both, labels and where they are (un)sure."""
        settings, classes = self.settings, len(self.memory.capacity_K)
        members, lows, highs, labeled = [], [], [], []
        for number, ((prediction, _), (label_BHW, low_BHW, high_BHW)) in enumerate(zip(teacher, maps, strict=True)):
            grid = (prediction.logits.shape[2], prediction.logits.shape[3])
            member_BKhw = contrast.one_hot(shrink_labels(label_BHW, grid), classes, settings.onehot)
            members.append(_pixels(member_BKhw))
            lows.append(shrink_labels(low_BHW, grid).flatten())
            highs.append(shrink_labels(high_BHW, grid).flatten())
            labeled.append(torch.full_like(lows[-1], number == 0))
        chosen = contrast.candidates(
            torch.cat(members).T,
            torch.cat([_pixels(prediction.logits.softmax(1)) for prediction, _ in teacher]).T,
            torch.cat(lows),
            torch.cat(highs),
            torch.cat(labeled),
            low_rank=settings.low_rank,
            high_rank=settings.high_rank,
            delta_p=settings.delta_p,
            delta_n=settings.delta_n,
            negatives=settings.negatives,
        )
        student_PC, teacher_PC = (torch.cat([_pixels(rows) for _, rows in seen]) for seen in (student, teacher))
        self._remember(teacher_PC, chosen.negative, context)

        def draws(count_K: Tensor, number: int) -> Tensor:
            shape, device = (len(count_K), number), count_K.device
            share = torch.rand(shape, generator=context.generator, device=device, dtype=torch.float64)
            return contrast.below(share * count_K[:, None], count_K)

        return contrast.memory_contrast(
            student_PC,
            teacher_PC,
            chosen,
            self.memory.rows_RC,
            self.memory.first_K,
            self.memory.number_K,
            draws,
            anchors=settings.anchors,
            negatives=settings.negatives_per_anchor,
            temperature=settings.temperature,
            indexing=settings.indexing,
        )

    @torch.no_grad()
    def _remember(self, teacher_PC: Tensor, negative_KP: Tensor, context: StepContext) -> None:
        """Append some negatives of each class: every so many-th, from a random one on, so that none is taken twice."""
        limit = min(self.settings.keys or self.memory.smallest, self.memory.smallest, len(teacher_PC))
        count_K = negative_KP.sum(1)
        number_K = count_K.clamp(max=limit)
        stride_K1 = (count_K.double() / number_K.clamp(min=1))[:, None]
        start_K1 = torch.rand(stride_K1.shape, generator=context.generator, device=count_K.device, dtype=torch.float64)
        rank_KF = contrast.below((torch.arange(limit, device=count_K.device) + start_K1) * stride_K1, count_K)
        keys_KFC = unit(teacher_PC[contrast.positions(negative_KP, rank_KF)]).to(self.memory.rows_RC.dtype)
        # As many rows from every process: the number says how many of them are real.
        every_key, every_number = (collectives.gather_equal(part[None]) for part in (keys_KFC, number_K))
        for keys, number in zip(every_key, every_number, strict=True):
            self.memory.append(keys, number)

    def _full(self, prediction: Prediction, image: Tensor) -> Tensor:
        return over_image(prediction.logits, image, self._rule, self.student.stride)

    @property
    def _rule(self) -> ResizeRule:
        rule: ResizeRule = self.settings.task.resize
        return rule


def representation(channels: int, dimensions: int) -> Projection:
    """U2PL's head: twice 3x3 convolution, batch norm, ReLU and dropout of channels, then 1x1 to so many dimensions."""

    def block(given: int) -> list[nn.Module]:
        return [
            nn.Conv2d(given, dimensions, 3, padding=1, bias=False),
            nn.BatchNorm2d(dimensions),
            nn.ReLU(inplace=True),
            nn.Dropout2d(0.1),
        ]

    return Projection(*block(channels), *block(dimensions), nn.Conv2d(dimensions, dimensions, 1))


def _together(net: Segmentor, head: nn.Module, images: tuple[Tensor, Tensor]) -> list[tuple[Prediction, Tensor]]:
    """Predictions and representations of two batches, in one forward where their sizes agree.

    So their norms see both at once, as published.
    """
    first, second = images
    if first.shape[1:] != second.shape[1:]:
        return [(prediction, head(prediction.embedding)) for prediction in (net(first), net(second))]
    whole = net(torch.cat(images))
    rows = head(whole.embedding)
    count = len(first)
    return [(whole.of(part), rows[part]) for part in (slice(count), slice(count, None))]


def _pixels(map_BChw: Tensor) -> Tensor:
    """(B, C, h, w) -> (P, C)."""
    return map_BChw.movedim(1, -1).flatten(0, 2)


def _equal_parts(capacities: list[int]) -> list[tuple[int, int, int]]:
    """Runs of classes with the same capacity: (first, last exclusive, capacity)."""
    starts = [k for k, capacity in enumerate(capacities) if k == 0 or capacity != capacities[k - 1]]
    return [(a, b, capacities[a]) for a, b in zip(starts, [*starts[1:], len(capacities)], strict=True)]
