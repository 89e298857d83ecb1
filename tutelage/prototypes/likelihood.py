"""How likely features are under the mixtures of all classes, and the labels that follow from it (BiSMAP, 3.3).

ln N(f) = constant + A (f - s) + B (f - s)^2 is two products of matrices for the components of all classes. In float32
that cancels where a variance is tiny beside the distance of its mean from s. So s is, in each channel, the mean of the
component with the smallest variance there; that makes nearly all channels safe, among them those of units that are
always 0 for some class. In the channels that are left both products are float64, which is as exact as (f - mu)^2.

Legend: B images, K classes, M components of a class, G = K M components, C channels, P positions, p positions of a
block, h w the grid of the features, H W the image.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from tutelage.prototypes.gaussians import Mixtures

ABSENT = -1e30
"""The log-likelihood of a class without a mixture: finite, so that maps can be resized, and below all others."""

_FARTHEST = 1e15  # of a feature: its square over a variance of 1e-6 is still a float32; infinite features count as this
_STIFF = 256.0  # (mu - s)^2 / var, above which a channel is computed in float64: 2^-24 x 256 = 2e-5 nats
_CPU, _GPU = 1 << 21, 1 << 26  # elements of a block's features and components


class Scorer:
    """Mixtures made ready for scoring on one device.

    Computes in float64 for float64 features, else in float32, whatever the autocast.
    """

    def __init__(self, mixtures: Mixtures, device: torch.device | str = "cpu") -> None:
        self.classes = len(mixtures.classes)
        self.device = torch.device(device)
        present = mixtures.present_K.cpu()
        self._present = present.nonzero()[:, 0].to(self.device)
        self._absent_K11 = (~present).to(self.device)[:, None, None]
        weight_LM, mean, variance = (
            tensor.cpu().double()[present] for tensor in (mixtures.weight_KM, mixtures.mean_KMC, mixtures.variance_KMC)
        )
        self._components = weight_LM.shape[1]
        mean_GC, variance_GC = mean.flatten(0, 1), variance.flatten(0, 1)
        self.channels = mean_GC.shape[1]
        # Components with the weight 0 stay: they add exp(-inf) to a sum.
        missing_G1 = weight_LM.flatten()[:, None] == 0
        narrowest_C = variance_GC.masked_fill(missing_G1, math.inf).argmin(0)
        shift_C = mean_GC.gather(0, narrowest_C[None])[0].float().double()  # representable in float32
        precision_GC = variance_GC.reciprocal()
        mean_GC = (mean_GC - shift_C).masked_fill(missing_G1, 0)
        squared_GC = mean_GC.square() * precision_GC
        stiff_C = (squared_GC > _STIFF).any(0)
        self.stiff = int(stiff_C.sum())
        """How many channels need float64."""
        constant_GC = -0.5 * (squared_GC + variance_GC.log() + math.log(2 * math.pi))
        log_weight_G = weight_LM.flatten().log()
        self._shift = shift_C[:, None].to(self.device)
        self._linear = (mean_GC * precision_GC).to(self.device)
        self._square = (-0.5 * precision_GC).to(self.device)
        self._constant = (constant_GC.sum(1) + log_weight_G)[:, None].to(self.device)
        # The safe channels alone (the others with a coefficient of 0), and the stiff ones alone.
        safe = (~stiff_C).to(self.device)
        self._safe = (
            self._shift.float(),
            (self._linear * safe).float(),
            (self._square * safe).float(),
            (constant_GC[:, ~stiff_C].sum(1) + log_weight_G)[:, None].to(self.device, torch.float32),
        )
        self._which = stiff_C.nonzero()[:, 0].to(self.device)
        self._stiff_constant = constant_GC[:, stiff_C].sum(1)[:, None].to(self.device)

    def rows(self, rows_NC: Tensor) -> Tensor:
        """ln p(x | class), without a prior of the class: rows (N, C) give (N, K); ABSENT for a class without one."""
        return self._positions(rows_NC.T).T

    def maps(self, features_BChw: Tensor) -> Tensor:
        """ln p(f | class) on the features' grid: (B, C, h, w) gives (B, K, h, w)."""
        maps = [self._positions(one).view(self.classes, *features_BChw.shape[2:]) for one in features_BChw.flatten(2)]
        return torch.stack(maps)

    def image_bands(
        self, features_BChw: Tensor, size: tuple[int, int], score_at: str = "image"
    ) -> Iterator[tuple[int, Tensor]]:
        """ln p(f | class) at the size (H, W) of the image, in bands (first row, (B, K, rows, W)) that fit in memory.

        ``image``, as published: features are resized bilinearly with aligned corners, and scored. ``feature``: scored
        on their grid, and the result is resized; at stride 4 it is 16 times cheaper, and labels change near borders.
        ValueError for another word.
        """
        if score_at not in ("image", "feature"):
            raise ValueError(f"score_at must be 'image' or 'feature', got {score_at!r}")
        if score_at == "feature":
            length = max(1, self._block(self.classes) // size[1])
            for start, band in _bands(self.maps(features_BChw), size, length):
                yield start, band.masked_fill_(self._absent_K11, ABSENT)
            return
        length = max(1, self._block(features_BChw.shape[1]) // size[1])
        for start, band in _bands(features_BChw.to(_dtype(features_BChw)), size, length):
            yield start, self.maps(band)

    @torch.no_grad()
    def _positions(self, features_CP: Tensor) -> Tensor:
        if features_CP.shape[0] != self.channels:
            raise ValueError(
                f"features must have {self.channels} channels, as the mixtures, got {features_CP.shape[0]}"
            )
        dtype = _dtype(features_CP)
        score = self._in_float64 if dtype == torch.float64 else self._in_float32
        length = self._block(self.channels)
        result = features_CP.new_full((self.classes, features_CP.shape[1]), ABSENT, dtype=dtype)
        with torch.autocast(features_CP.device.type, enabled=False):
            for start in range(0, features_CP.shape[1], length):
                joint_Gp = score(features_CP[:, start : start + length])
                evidence = joint_Gp.view(-1, self._components, joint_Gp.shape[1]).logsumexp(1)
                result[self._present, start : start + length] = evidence.clamp_(min=0.1 * ABSENT)
        return result

    def _in_float64(self, features_Cp: Tensor) -> Tensor:
        shifted = features_Cp.clamp(-_FARTHEST, _FARTHEST).sub_(self._shift)
        joint = torch.addmm(self._constant, self._linear, shifted)
        return joint.addmm_(self._square, shifted.square_())

    def _in_float32(self, features_Cp: Tensor) -> Tensor:
        shift, linear, square, constant = self._safe
        shifted = features_Cp.float().clamp(-_FARTHEST, _FARTHEST).sub_(shift)
        joint = torch.addmm(constant, linear, shifted)
        if self.stiff:
            rest = features_Cp[self._which].double().clamp_(-_FARTHEST, _FARTHEST).sub_(self._shift[self._which])
            exact = torch.addmm(self._stiff_constant, self._linear[:, self._which], rest)
            exact = exact.addmm_(self._square[:, self._which], rest.square_())
            joint += exact.clamp_(min=ABSENT)
        return joint.addmm_(square, shifted.square_())

    def _block(self, channels: int) -> int:
        elements = _CPU if self.device.type == "cpu" else _GPU
        return max(256, elements // (channels + self._linear.shape[0]))


def _dtype(features: Tensor) -> torch.dtype:
    return torch.float64 if features.dtype == torch.float64 else torch.float32


def _bands(features_BChw: Tensor, size: tuple[int, int], length: int) -> Iterator[tuple[int, Tensor]]:
    """(first row, features (B, C, rows, W)) of the features resized to ``size``, ``length`` rows at a time."""
    height, (rows, width) = features_BChw.shape[2], size
    # Bilinear is a mean of two rows, then one of two columns.
    place = torch.arange(rows, dtype=torch.float64) * ((height - 1) / max(rows - 1, 1))
    above = place.long().clamp(max=height - 1)
    share = (place - above).to(features_BChw)[:, None]
    above, below = above.to(features_BChw.device), (above + 1).clamp(max=height - 1).to(features_BChw.device)
    for start in range(0, rows, length):
        part = slice(start, start + length)
        band = torch.lerp(features_BChw[:, :, above[part]], features_BChw[:, :, below[part]], share[part])
        yield start, F.interpolate(band, (band.shape[2], width), mode="bilinear", align_corners=True)
