"""Distillation losses on attention, that is on where a map has its energy, and on how similar classes are.

The teacher's maps get no gradient; all is computed in float32.
"""

# Legend: B batch, K classes, C channels, h w positions of a map's grid, P = h w.

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor
from torch.nn import functional as F

from tutelage.losses.precision import in_float32
from tutelage.losses.relations import unit

_SMALLEST_MAP = 1e-6
_SMALLEST_CHANGE = 1e-6


def attention(map_BChw: Tensor, power: float = 2.0, grid: tuple[int, int] | None = None) -> Tensor:
    """Where a map has its energy: the mean over channels of |x|^power, as a unit vector (B, P); zero for a zero map.

    ``grid``: positions (h, w) to average the energy over, where the map has others.
    """
    map_BChw = map_BChw.float()
    # The result does not depend on the scale; without this, powers of large values would leave float32.
    largest = map_BChw.detach().abs().amax((1, 2, 3), keepdim=True).clamp(min=_SMALLEST_MAP)
    energy_Bhw = (map_BChw / largest).abs().pow(power).mean(1)
    if grid is not None and energy_Bhw.shape[1:] != grid:
        energy_Bhw = F.adaptive_avg_pool2d(energy_Bhw, grid)
    return unit(energy_Bhw.flatten(1))


@in_float32
def attention_transfer(student_BChw: Tensor, teacher_BChw: Tensor, power: float = 2.0) -> Tensor:
    """Mean over B h w of the squared difference of attention; channels may differ.

    The mean over positions makes it small (1e-4 or so). Source: attention transfer (ICLR 2017), as in CIRKD.
    """
    return F.mse_loss(attention(student_BChw, power), attention(teacher_BChw.detach(), power))


def dsd_pixel(student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor]) -> Tensor:
    """Mean over pairs of maps and B h w of the squared difference of how attention changes from one to the other.

    The change is a unit vector: normalised at(x_j) - at(x_i), i < j. Maps (B, C, ., .), two or more, in the same order
    on both sides, are taken to the grid of the student's last. Source: double similarity distillation (TIP 2021),
    pixel-wise, as in CIRKD.
    """
    grid = (student_maps[-1].shape[2], student_maps[-1].shape[3])
    student = [attention(map_, grid=grid) for map_ in student_maps]
    teacher = [attention(map_.detach(), grid=grid) for map_ in teacher_maps]
    losses = [
        F.mse_loss(_change(student[i], student[j]), _change(teacher[i], teacher[j]))
        for i, j in combinations(range(len(student)), 2)
    ]
    return torch.stack(losses).mean()


def _change(before_BP: Tensor, after_BP: Tensor) -> Tensor:
    """The direction of a change; none, and no gradient, where it is a millionth of the map's length: rounding."""
    change = after_BP - before_BP
    counts = change.detach().square().sum(1, keepdim=True) > _SMALLEST_CHANGE**2
    return unit(torch.where(counts, change, 0.0))


@in_float32
def dsd_category(student_BKhw: Tensor, teacher_BKhw: Tensor, temperature: float = 4.0, pool: int = 2) -> Tensor:
    """Mean over B K^2 of the squared difference of the inner products of the classes' distributions over positions.

    Logits are averaged by ``pool`` first (the last window may be cut); softmax over positions at the temperature.
    Of order 1e-6. Source: double similarity distillation (TIP 2021), category-wise, as in CIRKD.
    """

    def similarities(logits_BKhw: Tensor) -> Tensor:
        pooled_BKP = F.avg_pool2d(logits_BKhw, pool, ceil_mode=True).flatten(2)
        where_BKP = (pooled_BKP / temperature).softmax(2)
        return where_BKP @ where_BKP.transpose(1, 2)

    return F.mse_loss(similarities(student_BKhw), similarities(teacher_BKhw.detach()))
