"""References for likelihoods: whole maps, components one by one, exact quantiles."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tutelage.losses.segmentation import IGNORE
from tutelage.prototypes.gaussians import Mixture, Mixtures
from tutelage.prototypes.likelihood import Scorer


def image_maps(scorer: Scorer, features: Tensor, size: tuple[int, int], score_at: str = "image") -> Tensor:
    """The bands of a scorer as one map (B, K, H, W)."""
    return torch.cat([band for _, band in scorer.image_bands(features, size, score_at)], 2)


def component_log_density(rows: Tensor, mixture: Mixture) -> Tensor:
    """ln N_m(x), without the weight, of each row and component: (N, M) float64."""
    one = torch.ones(1, dtype=torch.float64)
    parts = [
        Mixture(one, mean[None], variance[None])
        for mean, variance in zip(mixture.mean_MC.double(), mixture.variance_MC.double(), strict=True)
    ]
    return Scorer(Mixtures.of(parts, [str(number) for number in range(len(parts))])).rows(rows.double())


def quantile_thresholds(
    likelihood: Tensor, label: Tensor, classes: int, quantile: float, per_class: bool = True
) -> Tensor:
    """For each class the value at rank min(round(q n), n - 1) from 0, of its own pixels or of all; -inf for none."""
    result = torch.full((classes,), -math.inf, dtype=torch.float64)
    for number in range(classes):
        own = likelihood[label == number if per_class else label != IGNORE].double().sort().values
        if (label == number).any():
            result[number] = own[min(round(quantile * len(own)), len(own) - 1)]
    return result
