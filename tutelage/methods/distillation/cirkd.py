"""CIRKD: cross-image relational knowledge distillation (CVPR 2022, arXiv 2204.06986).

    mini-batch   mean over pairs of images (i, j) and pixels of KL(softmax(t_i t_j / tau) || softmax(s_i s_j / tau))
    memory       mean over labelled pixels of KL(softmax(t V / tau) || softmax(s V / tau)), for V a draw of slots of a
                 queue of pixels, and of one of class regions; s = g(f_S), t = f_T, all of length 1

Pixels of an image relate to those of the images of its group, and to pixels and class means of past batches. The
queues hold teacher vectors by class. A step first enqueues, then draws slots, the same ones for all classes.

Every process gathers the few rows that all of them enqueue and draws the same random numbers, so that the queues are
equal everywhere without ever being sent. ``published`` keeps two defects of the published code: the pixel queue of a
class takes pixels from the top of the image, whatever they show; and an overflow writes the last slots of the queue
instead of going round.

Legend: B images, K classes, P = h w positions, C the teacher's channels, N slots, F pixels enqueued per image, class.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from tutelage.engine import collectives
from tutelage.engine.contract import StepContext
from tutelage.losses.regions import class_counts, class_means, positions_of_ranks, random_ranks, shrink_labels
from tutelage.losses.relations import bank_relations, pair_relations, rows_of, unit
from tutelage.methods.distillation.projection import two_layers
from tutelage.methods.distillation.queues import DTYPES, distinct, enqueue, random_rows
from tutelage.methods.distillation.term import Pair, Term, TermInputs
from tutelage.methods.settings.distill_terms import MemorySettings, MinibatchPixelSettings


class MinibatchPixel(Term):
    """Relations between the pixels of a group of images."""

    Settings = MinibatchPixelSettings

    def __init__(self, settings: MinibatchPixelSettings, pair: Pair) -> None:
        super().__init__(settings, pair)
        self.pool = settings.pool or (4 if min(pair.grid) >= 256 else 1)

    def forward(self, seen: TermInputs, context: StepContext) -> Mapping[str, Tensor]:
        """The weighted loss."""
        settings: MinibatchPixelSettings = self.settings
        loss = minibatch_pixel(
            seen.student.feature, seen.teacher.feature, settings.temperature, settings.group_size, self.pool
        )
        return {"cirkd_minibatch": settings.weight * loss}

    def describe(self) -> str:
        """The size of a group."""
        pooled = f", averaged over {self.pool} x {self.pool}" if self.pool > 1 else ""
        return f"pixels of {self.settings.group_size} images compared with one another{pooled}"


def minibatch_pixel(
    student_BChw: Tensor, teacher_BChw: Tensor, temperature: float, group_size: int, pool: int = 1
) -> Tensor:
    """Pair relations of two maps, averaged over ``pool`` x ``pool`` positions (fewer at the border) first."""
    if pool > 1:
        student_BChw, teacher_BChw = pooled(student_BChw, pool), pooled(teacher_BChw, pool)
    student = rows_of(student_BChw).to(student_BChw.dtype)
    return pair_relations(student, rows_of(teacher_BChw), temperature, group_size)


def pooled(map_BChw: Tensor, kernel: int) -> Tensor:
    """Averages of ``kernel`` x ``kernel`` positions, the border's over those that exist, in float32."""
    return F.avg_pool2d(map_BChw.float(), kernel, kernel, ceil_mode=True, count_include_pad=False)


class Draws(Protocol):
    """Where a memory's random choices come from."""

    def ranks(self, counts_BK: Tensor, limit: int) -> Tensor:
        """Distinct ranks (B, K, limit) below each count, in random order; -1 beyond min(count, limit)."""
        ...

    def slots(self, total: int, count: int) -> Tensor:
        """``count`` distinct slots of ``total``."""
        ...

    def anchors(self, total: int, count: int) -> Tensor:
        """``count`` distinct positions of ``total``."""
        ...


class SeededDraws:
    """Pixels by this process's generator, slots by the one that all processes share."""

    def __init__(self, context: StepContext) -> None:
        self.own = context.generator
        self.shared = context.shared_generator

    def ranks(self, counts_BK: Tensor, limit: int) -> Tensor:
        """See :class:`Draws`."""
        return random_ranks(counts_BK, limit, self.own)

    def slots(self, total: int, count: int) -> Tensor:
        """See :class:`Draws`."""
        return distinct(total, count, self.shared)

    def anchors(self, total: int, count: int) -> Tensor:
        """See :class:`Draws`."""
        return distinct(total, count, self.own)


class Memory(Term):
    """Relations to past pixels and class regions; the student through its projection."""

    Settings = MemorySettings
    pixel_queue: Tensor
    region_queue: Tensor
    pixel_pointer: Tensor
    region_pointer: Tensor

    def __init__(self, settings: MemorySettings, pair: Pair) -> None:
        super().__init__(settings, pair)
        self.classes = pair.classes
        channels = pair.teacher.channels
        self.projection = two_layers(pair.student.channels, channels)
        self.any_pixels = settings.compat == "published"
        self.wraps = settings.compat == "corrected"
        # Every class gives as many rows: one more than its whole share.
        self.pixel_draw = min(settings.pixels // pair.classes + 1, settings.pixel_slots)
        self.region_draw = min(settings.regions // pair.classes + 1, settings.region_slots)
        for name, slots in (("pixel", settings.pixel_slots), ("region", settings.region_slots)):
            queue = random_rows(pair.classes * slots, channels).view(pair.classes, slots, channels)
            self.register_buffer(f"{name}_queue", queue.to(DTYPES[settings.precision]))
            self.register_buffer(f"{name}_pointer", torch.zeros(pair.classes, dtype=torch.int64))

    def forward(self, seen: TermInputs, context: StepContext) -> Mapping[str, Tensor]:
        """Both weighted losses."""
        settings: MemorySettings = self.settings
        pixel, region = self.relate(seen, SeededDraws(context))
        return {
            "cirkd_memory_pixel": settings.weight * settings.pixel * pixel,
            "cirkd_memory_region": settings.weight * settings.region * region,
        }

    def relate(self, seen: TermInputs, draws: Draws) -> tuple[Tensor, Tensor]:
        """Remember the teacher's pixels and regions, then compare with a draw of the remembered ones; unweighted."""
        settings: MemorySettings = self.settings
        feature = seen.student.feature
        teacher_BPC = rows_of(seen.teacher.feature)
        label_BP = shrink_labels(seen.label_BHW, (feature.shape[2], feature.shape[3])).flatten(1)
        self.remember(teacher_BPC, label_BP, draws)
        student_BPC = rows_of(self.projection(feature)).to(feature.dtype)
        student, teacher = student_BPC.flatten(0, 1), teacher_BPC.flatten(0, 1)
        valid = label_BP.flatten() < self.classes
        if settings.anchors is not None and settings.anchors < len(valid):
            chosen = draws.anchors(len(valid), settings.anchors)
            student, teacher, valid = student[chosen], teacher[chosen], valid[chosen]
        losses = []
        for queue, count in ((self.pixel_queue, self.pixel_draw), (self.region_queue, self.region_draw)):
            bank = queue[:, draws.slots(queue.shape[1], count)].flatten(0, 1)
            losses.append(bank_relations(student, teacher, bank, valid, settings.temperature, settings.softening))
        return losses[0], losses[1]

    @torch.no_grad()
    def remember(self, teacher_BPC: Tensor, label_BP: Tensor, draws: Draws) -> None:
        """Enqueue each image's class means, and some pixels of each of its classes."""
        counts_BK = class_counts(label_BP, self.classes)
        ranks_BKF = draws.ranks(counts_BK, self.settings.enqueue)
        positions_BKF = ranks_BKF if self.any_pixels else positions_of_ranks(label_BP, ranks_BKF, counts_BK)
        chosen = positions_BKF.clamp(min=0).flatten(1)[..., None].expand(-1, -1, teacher_BPC.shape[2])
        pixels_BKFC = teacher_BPC.gather(1, chosen).view(*ranks_BKF.shape, -1)
        regions_BKC = unit(class_means(teacher_BPC, label_BP, counts_BK))
        # As many rows from every process: those that stand for nothing are marked by their number.
        dtype = self.pixel_queue.dtype
        pixels_BKFC = collectives.gather_equal(unit(pixels_BKFC).to(dtype))
        regions_BKC = collectives.gather_equal(regions_BKC.to(dtype))
        number_BK = collectives.gather_equal((ranks_BKF >= 0).sum(2))
        for pixels_KFC, region_KC, number_K in zip(pixels_BKFC, regions_BKC, number_BK, strict=True):
            enqueue(self.region_queue, self.region_pointer, region_KC[:, None], (number_K > 0).long(), wraps=True)
            enqueue(self.pixel_queue, self.pixel_pointer, pixels_KFC, number_K, wraps=self.wraps)

    def describe(self) -> str:
        """The projection, and the queues' memory."""
        size = sum(queue.numel() * queue.element_size() for queue in (self.pixel_queue, self.region_queue))
        first, last = self.projection[0], self.projection[-1]
        return (
            f"student {first.in_channels} -> {last.out_channels} channels by two 1x1 convolutions; queues of "
            f"{self.classes} classes x {self.pixel_queue.shape[1]} pixels and {self.region_queue.shape[1]} regions: "
            f"{size / 2**20:.0f} MiB ({self.settings.precision}, {self.settings.compat})"
        )
