"""Class-balanced pseudo labels (CBST) with all confidences kept: the reference for the policy `class_ratio`."""

# Legend: B images, K classes, H W pixels.

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tutelage.data.labels import IGNORE


def pixels_shown(
    confidence: NDArray[np.floating], prediction: NDArray[np.integer], classes: int, stride: int = 1
) -> list[NDArray[np.float64]]:
    """Per class the confidences of one image's pixels that show it, row by row, every ``stride``-th of them."""
    confidence, prediction = confidence.ravel(), prediction.ravel()
    return [confidence[prediction == class_][::stride].astype(np.float64) for class_ in range(classes)]


def exact_ratio_thresholds(
    images: Iterable[tuple[NDArray[np.floating], NDArray[np.integer]]], classes: int, portion: float, stride: int = 1
) -> NDArray[np.float64]:
    """k (K,): thresholds from (confidence, prediction) of every image, keeping all of each class's confidences.

    ``portion`` q in 0..1; ``stride``: every how many-th pixel of a class is looked at in each image (4 as published).
    1 where no pixel is at or above the rank. Source: CBST and CRST, their code.
    """
    pooled: list[list[NDArray[np.float64]]] = [[] for _ in range(classes)]
    for confidence, prediction in images:
        for class_, own in enumerate(pixels_shown(confidence, prediction, classes, stride)):
            pooled[class_].append(own)
    threshold_K = np.ones(classes)
    for class_, parts in enumerate(pooled):
        own = np.concatenate(parts) if parts else np.zeros(0)
        rank = math.floor(portion * own.size)
        if rank:
            place = own.size - rank
            threshold_K[class_] = np.partition(own, place)[place]
    return threshold_K


@torch.no_grad()
def ratio_labels(probability_BKHW: Tensor, threshold_K: Tensor) -> tuple[Tensor, Tensor]:
    """Pseudo labels (B, H, W) int64 with 255 where nothing reaches its threshold, and the probabilities of the winners.

    ``probability``: 0..1; ``threshold``: k (K,), above 0. The second tensor is p of the class that has the largest
    p / k, kept or not. Source: CBST, equation 5, and its code.
    """
    threshold_1K11 = threshold_K.to(probability_BKHW)[None, :, None, None]
    highest = (probability_BKHW / threshold_1K11).max(1)
    label_BHW = highest.indices.masked_fill(highest.values < 1.0, IGNORE)
    return label_BHW, probability_BKHW.gather(1, highest.indices[:, None])[:, 0]
