"""A teacher's answers, kept: its class probabilities for every whole image, compressed, and replayed on any crop.

Made once, at scale 1 and in plain colours, on the grid of the teacher's logits: at each position the ``top`` likeliest
classes with their probabilities; what remains is shared equally by all others. A step then looks answers up instead of
running the teacher.

    kept       q_c = 1 + floor(p_c (65535 - k)), in units of 2^-16, for the k likeliest classes, p = softmax(z_T / T)
    replayed   p~_c = q_c / 2^16 for those, (1 - their sum) / (K - k) for each other class
    error      sum over c of |p_c - p~_c| <= 2 r (1 - 1 / (K - k)) + (3 k + 2) / 2^16,  r the mass of the others

The gradient of pixel KD to the student's logits is w T (p_S - p_T) / n at each of n positions. So it is wrong by at
most w T / n times that error, as long as the view is the image itself on the teacher's grid. Any other view adds a
difference that no bound covers: the teacher did not see that crop, at that scale, in those colours. It is interpolated
from the teacher's output for the whole image; ``benchmarks/teacher_cache.py`` measures by how much it differs.

Fixed-point numbers and not halves: the error of a gradient is an absolute one. The least kept is 1, and the sum of what
is kept is below 2^16, so that no probability is 0 and every logarithm is finite.
"""

# Legend: B batch, K classes, k those that are kept, M N rows and columns of the teacher's grid over a whole image,
# h w the requested grid, P positions.

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from tutelage.data.batch import Geometries, places

_UNITS = 1 << 16


def compress(logits_KMN: Tensor, top: int, temperature: float = 1.0) -> np.ndarray:
    """Logits (K, M, N) as records (M, N) of the ``top`` likeliest classes: ``id`` (k,) uint8, ``mass`` (k,) uint16."""
    kept = min(top, logits_KMN.shape[0])
    mass_kMN, id_kMN = (logits_KMN.float() / temperature).softmax(0).topk(kept, dim=0)
    units_kMN = 1 + (mass_kMN * (_UNITS - 1 - kept)).floor().int()
    records = np.empty(logits_KMN.shape[1:], dtype=[("id", "u1", (kept,)), ("mass", "<u2", (kept,))])
    records["id"] = id_kMN.movedim(0, -1).cpu().numpy()
    records["mass"] = units_kMN.movedim(0, -1).cpu().numpy()
    return records


def expand(id_Pk: Tensor, mass_Pk: Tensor, classes: int) -> Tensor:
    """Probabilities (P, K) from classes (P, k) int64 and their masses (P, k) in units of 2^-16."""
    mass_Pk = mass_Pk.float() / _UNITS
    others = max(classes - id_Pk.shape[1], 1)
    rest_P1 = (1.0 - mass_Pk.sum(1, keepdim=True)) / others
    probability_PK = rest_P1.repeat(1, classes).scatter_(1, id_Pk, mass_Pk)
    # Changes only rounding, unless all classes are kept and none is left for the remainder.
    return probability_PK / probability_PK.sum(1, keepdim=True)


def error_bound(records_MN: np.ndarray, classes: int) -> np.ndarray:
    """(M, N) the largest possible sum over classes of |p - p~|, given the kept values."""
    kept = records_MN["mass"].shape[-1]
    others = max(classes - kept, 1)
    # The kept values give the remainder to within k + 1 units.
    remainder_MN = (_UNITS - records_MN["mass"].sum(-1, dtype=np.int64) + kept + 1) / _UNITS
    bound: np.ndarray = 2.0 * remainder_MN * (1.0 - 1.0 / others) + (3 * kept + 2) / _UNITS
    return bound


def replay(records: Sequence[np.ndarray], classes: int, geometry: Geometries, grid: tuple[int, int]) -> Tensor:
    """Probabilities (B, K, h, w) of B views from the kept values of their images: bilinear, border repeated outside.

    Equal to expanding each image and sending it through :func:`tutelage.data.batch.warp`, but only what the view shows
    is expanded.
    """
    y_Bhw, x_Bhw = places(geometry, grid)
    result = []
    for number, records_MN in enumerate(records):
        rows, columns = records_MN.shape
        v, u = (
            (place[number] / extent * cells - 0.5).clamp(0, cells - 1)
            for place, extent, cells in (
                (y_Bhw, geometry.source[number, 0], rows),
                (x_Bhw, geometry.source[number, 1], columns),
            )
        )
        above, left = v.floor().long(), u.floor().long()
        below, right = (above + 1).clamp(max=rows - 1), (left + 1).clamp(max=columns - 1)
        down, along = v - above, u - left
        corners = torch.stack([row * columns + column for row in (above, below) for column in (left, right)])
        shares = torch.stack([a * b for a in (1 - down, down) for b in (1 - along, along)])
        id_Pk, mass_Pk = (part.to(corners.device)[corners.flatten()] for part in _tensors(records_MN))
        probability = expand(id_Pk, mass_Pk, classes).view(4, -1, classes)
        mixed_PK = (probability * shares.flatten(1)[..., None].float()).sum(0)
        result.append(mixed_PK.t().view(classes, *grid))
    return torch.stack(result)


def _tensors(records_MN: np.ndarray) -> tuple[Tensor, Tensor]:
    """Classes and masses, (M N, k) int64 and int32."""
    kept = records_MN["id"].shape[-1]
    return (
        torch.from_numpy(records_MN["id"].reshape(-1, kept).astype(np.int64)),
        torch.from_numpy(records_MN["mass"].reshape(-1, kept).astype(np.int32)),
    )


class TeacherCache:
    """The outputs of a teacher for the images of a stream; ``read`` gives the records of a sample by its name."""

    def __init__(self, read: Callable[[str], np.ndarray], classes: int, temperature: float) -> None:
        self.read = read
        self.classes = classes
        self.temperature = temperature

    def probabilities(self, samples: Sequence[str], geometry: Geometries, grid: tuple[int, int]) -> Tensor:
        """The teacher's probabilities (B, K, h, w) at the cache's temperature."""
        return replay([self.read(sample) for sample in samples], self.classes, geometry, grid)

    def logits(self, samples: Sequence[str], geometry: Geometries, grid: tuple[int, int]) -> Tensor:
        """Logits (B, K, h, w) whose softmax at the cache's temperature is the teacher's probabilities."""
        return self.temperature * self.probabilities(samples, geometry, grid).log()


class Replaying(Protocol):
    """A method with a cached teacher: its outputs on the images of one stream may come from a file."""

    cache: TeacherCache | None
    """The stored outputs; ``None``: the teacher runs."""
