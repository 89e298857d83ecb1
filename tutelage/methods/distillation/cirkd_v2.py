"""The terms that CIRKD V2 adds: relations between channels, and a context block before all feature terms.

    mini-batch   mean over pairs of images and channels c of KL(softmax(n_c N_j / tau) || softmax(m_c M_j / tau))
    memory       mean over channels of KL(softmax(n Q / tau) || softmax(m Q / tau)), Q a draw of a queue of channels
    regression   mean of (M - N)^2

M and N are the student's and the teacher's channels: maps averaged over 4 x 4 positions, flattened, of length 1; the
student's go through a projection of their own. Source: the code of CIRKD at dab64db (2025); no paper describes it.

Legend: B images, C the teacher's channels, D positions of an averaged map, N slots.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tutelage.engine import collectives
from tutelage.engine.contract import StepContext
from tutelage.errors import TutelageError
from tutelage.losses.relations import bank_relations, pair_relations, unit
from tutelage.methods.distillation.cirkd import pooled
from tutelage.methods.distillation.projection import Projection, precision_of, two_layers
from tutelage.methods.distillation.queues import DTYPES, distinct, enqueue, random_rows
from tutelage.methods.distillation.term import Pair, Term, TermInputs
from tutelage.methods.settings.distill_terms import ChannelSettings


class ContextBlock(nn.Module):
    """Self-attention over positions beside the map itself; training only.

    e = ReLU(BN(W_e softmax(q k / sqrt(c)) v)), out = ReLU(BN(W_f [f, e])) for f (B, C, h, w), c = C // 2.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.query = nn.Conv2d(channels, half, 1, bias=False)
        self.key = nn.Conv2d(channels, half, 1, bias=False)
        self.value = nn.Conv2d(channels, half, 1, bias=False)
        self.expand = nn.Sequential(nn.Conv2d(half, channels, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU())
        self.fuse = nn.Sequential(nn.Conv2d(2 * channels, channels, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU())

    def forward(self, map_BChw: Tensor) -> Tensor:
        """The map in its context (B, C, h, w), in the precision of the map."""
        with precision_of(map_BChw):
            query, key, value = (
                layer(map_BChw).flatten(2).transpose(1, 2)[:, None] for layer in (self.query, self.key, self.value)
            )
            # One head; the library's kernel keeps no map of all pairs of positions.
            context = F.scaled_dot_product_attention(query, key, value)[:, 0].transpose(1, 2)
            around = self.expand(context.reshape(*context.shape[:2], *map_BChw.shape[2:]))
            fused: Tensor = self.fuse(torch.cat([map_BChw, around], dim=1))
        return fused


class ChannelDraws(Protocol):
    """Where the random choices come from."""

    def rows(self, total: int, count: int) -> Tensor:
        """``count`` distinct rows of ``total`` that are remembered."""
        ...

    def slots(self, total: int, count: int) -> Tensor:
        """``count`` distinct slots of ``total`` that are compared with."""
        ...


class SeededChannelDraws:
    """Both by the generator that all processes share."""

    def __init__(self, context: StepContext) -> None:
        self.shared = context.shared_generator

    def rows(self, total: int, count: int) -> Tensor:
        """See :class:`ChannelDraws`."""
        return distinct(total, count, self.shared)

    def slots(self, total: int, count: int) -> Tensor:
        """See :class:`ChannelDraws`."""
        return self.rows(total, count)


class Channel(Term):
    """Relations between channels."""

    Settings = ChannelSettings
    queue: Tensor
    pointer: Tensor

    def __init__(self, settings: ChannelSettings, pair: Pair) -> None:
        super().__init__(settings, pair)
        self.projection: Projection = two_layers(pair.student.channels, pair.teacher.channels)
        height, width = (-(-side // settings.pool) for side in pair.grid)
        self.register_buffer("queue", random_rows(settings.slots, height * width)[None].to(DTYPES[settings.precision]))
        self.register_buffer("pointer", torch.zeros(1, dtype=torch.int64))

    def forward(self, seen: TermInputs, context: StepContext) -> Mapping[str, Tensor]:
        """The three weighted losses."""
        settings: ChannelSettings = self.settings
        names = ("cirkd_channel_minibatch", "cirkd_channel_memory", "cirkd_channel_regression")
        weights = (settings.minibatch, settings.memory, settings.regression)
        losses = self.relate(seen, SeededChannelDraws(context))
        weighted = (settings.weight * weight * loss for weight, loss in zip(weights, losses, strict=True))
        return dict(zip(names, weighted, strict=True))

    def relate(self, seen: TermInputs, draws: ChannelDraws) -> tuple[Tensor, Tensor, Tensor]:
        """Mini-batch, memory and regression, unweighted."""
        settings: ChannelSettings = self.settings
        feature = seen.student.feature
        # Averaged before the projection, the teacher's beside it: the batch norm sees averaged positions.
        projected = self.projection(pooled(feature, settings.pool).to(feature.dtype))
        student_BCD = unit(projected.flatten(2))
        teacher_BCD = unit(pooled(seen.teacher.feature, settings.pool).flatten(2))
        size = self.queue.shape[2]
        if teacher_BCD.shape[2] != size:
            raise TutelageError(
                "crop-changed",
                f"the channel queue holds maps of {size} positions, got maps of {teacher_BCD.shape[2]}",
                "set a fixed crop for the labelled stream: streams.labeled.augment.crop",
            )
        low = student_BCD.to(feature.dtype)
        minibatch = pair_relations(low, teacher_BCD, settings.temperature, settings.group_size)
        self.remember(teacher_BCD.flatten(0, 1), draws)
        bank = self.queue[0, draws.slots(self.queue.shape[1], min(settings.channels, self.queue.shape[1]))]
        memory = bank_relations(
            low.flatten(0, 1), teacher_BCD.flatten(0, 1), bank, None, settings.temperature, settings.softening
        )
        return minibatch, memory, F.mse_loss(student_BCD, teacher_BCD)

    @torch.no_grad()
    def remember(self, rows_ND: Tensor, draws: ChannelDraws) -> None:
        """Enqueue some of all processes' channels."""
        limit = min(self.settings.enqueue, self.queue.shape[1])
        total = rows_ND.shape[0] * collectives.world()
        chosen = draws.rows(total, min(total, limit))
        # Each process sends what it has of the chosen rows, and zeros for the others': their sum is all of them.
        first = collectives.rank() * rows_ND.shape[0]
        own = (chosen >= first) & (chosen < first + rows_ND.shape[0])
        rows = rows_ND[(chosen - first).clamp(0, rows_ND.shape[0] - 1)] * own[:, None]
        rows = collectives.sum_over_ranks(rows)
        number = torch.full((1,), rows.shape[0], dtype=torch.int64, device=rows.device)
        enqueue(self.queue, self.pointer, rows[None], number, wraps=self.settings.compat == "corrected")

    def describe(self) -> str:
        """The projection, and the queue's memory."""
        first, last = self.projection[0], self.projection[-1]
        return (
            f"student {first.in_channels} -> {last.out_channels} channels by two 1x1 convolutions; queue of "
            f"{self.queue.shape[1]} channels of {self.queue.shape[2]} positions: "
            f"{self.queue.numel() * self.queue.element_size() / 2**20:.0f} MiB ({self.settings.precision})"
        )
