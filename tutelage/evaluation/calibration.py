"""Calibration: are 80 % of the pixels right that a net predicts with confidence 80 %?

Expected calibration error after Naeini et al., AAAI 2015, and Guo et al., ICML 2017: pixels are put into 15 bins
of equal width by the confidence of their prediction, (0, 1/15], ..., (14/15, 1]; the error is the mean gap between
confidence and accuracy over the bins, weighted by the bins' sizes.

Letters: B images, C classes, H x W pixels, N labelled pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tutelage.errors import TutelageError
from tutelage.evaluation.bands import rows_of_band
from tutelage.evaluation.histogram import IGNORE, histogram, sum_over_ranks

_LOG_TEMPERATURE_LIMIT = math.log(100.0)


@dataclass(frozen=True)
class CalibrationScores:
    """Scores from the bins. Per-bin values are NaN for an empty bin, all values without labelled pixels."""

    error: float
    """Expected calibration error, in 0..1."""
    largest_gap: float
    """Largest gap between confidence and accuracy of a bin that is not empty."""
    confidence: NDArray[np.float64]
    """(bins,) mean confidence: the horizontal axis of the reliability curve."""
    accuracy: NDArray[np.float64]
    """(bins,) fraction of correct pixels: its vertical axis."""
    count: NDArray[np.float64]
    """(bins,) pixels."""
    negative_log_likelihood: float
    """Mean of -log p(true class) in nats; NaN if only confidences were counted."""


class Calibration:
    """Streaming reliability statistics: (bins, 3) float64 sums of confidence, correct pixels and pixels."""

    def __init__(self, bins: int = 15, device: torch.device | str = "cpu") -> None:
        if bins < 1:
            raise TutelageError(
                "invalid-value", f"number of bins must be at least 1, got {bins}", "use e.g. 15, the usual number"
            )
        self.bins = bins
        self.table = torch.zeros((bins, 3), dtype=torch.float64, device=device)
        self.likelihood = torch.zeros(2, dtype=torch.float64, device=device)
        """Sum of -log p(true class), and its number of pixels."""

    def update(self, logits: Tensor, label: Tensor) -> None:
        """Count logits (B, C, H, W), or log probabilities, against a label (B, H, W), 255 = ignored.

        Labels must be below C; :class:`~tutelage.evaluation.confusion.Confusion` reports others.
        """
        if logits.ndim != 4 or logits.shape[:1] + logits.shape[2:] != label.shape:
            raise TutelageError(
                "shape-mismatch",
                f"logits {tuple(logits.shape)} and label {tuple(label.shape)} do not match",
                "give logits (B, C, H, W) at the size of the label (B, H, W)",
            )
        if not label.numel():
            return
        step = rows_of_band(logits, logits.shape[3])
        for start in range(0, logits.shape[2], step):
            self._update(logits[:, :, start : start + step].detach().float(), label[:, start : start + step].long())

    def _update(self, logits_BCHW: Tensor, label_BHW: Tensor) -> None:
        valid_BHW = label_BHW != IGNORE
        highest_BHW, prediction_BHW = logits_BCHW.max(dim=1)
        total_BHW = logits_BCHW.logsumexp(dim=1)
        self._count((highest_BHW - total_BHW).exp(), prediction_BHW == label_BHW, valid_BHW)
        true_class = label_BHW.clamp(0, logits_BCHW.shape[1] - 1)[:, None]
        surprise = total_BHW - logits_BCHW.gather(1, true_class)[:, 0]
        surprise = torch.where(valid_BHW, surprise, 0.0).double()
        self.likelihood += torch.stack([surprise.sum(), valid_BHW.sum().double()]).to(self.likelihood.device)

    def _count(self, confidence: Tensor, right: Tensor, valid: Tensor) -> None:
        place = (confidence * self.bins).ceil().long().sub_(1).clamp_(0, self.bins - 1)
        place = torch.where(valid, place, self.bins)
        columns = [histogram(place, self.bins + 1, weight) for weight in (confidence, right, None)]
        table = torch.stack([column[: self.bins].double() for column in columns], dim=1)
        self.table += table.to(self.table.device)

    def all_reduce(self) -> Calibration:
        """The sum over all ranks as a new object; a copy without a process group. Every rank must call it."""
        total = Calibration(self.bins, self.table.device)
        total.table, total.likelihood = sum_over_ranks(self.table), sum_over_ranks(self.likelihood)
        return total

    def scores(self) -> CalibrationScores:
        """The scores of everything counted so far."""
        confidence, right, count = self.table.cpu().numpy().T
        gap = np.abs(confidence - right)
        pixels = count.sum()
        confidence, right, gap_of_bin = (
            np.divide(part, count, out=np.full_like(count, np.nan), where=count > 0)
            for part in (confidence, right, gap)
        )
        surprise, scored = self.likelihood.tolist()
        return CalibrationScores(
            error=float(gap.sum() / pixels) if pixels else float("nan"),
            largest_gap=float(np.nanmax(gap_of_bin)) if pixels else float("nan"),
            confidence=confidence,
            accuracy=right,
            count=count.copy(),
            negative_log_likelihood=surprise / scored if scored else float("nan"),
        )


def fit_temperature(logits: Tensor, label: Tensor, steps: int = 50) -> float:
    """The temperature T that maximises the likelihood of softmax(logits / T) (Guo et al., ICML 2017, section 4.2).

    ``logits``: (B, C, H, W) with ``label`` (B, H, W), or (N, C) with (N,); 255 = ignored. Newton steps on log T inside
    a bracket; T is in [0.01, 100], near whose ends it stays for a net that is always or never right.
    Raises :class:`TutelageError` if no pixel is labelled.
    """
    classes = logits.shape[1]
    flat = logits.detach().movedim(1, -1).reshape(-1, classes)
    label = label.flatten().long()
    valid = label != IGNORE
    logits_NC, label_N = flat[valid].double(), label[valid]
    if not label_N.numel():
        raise TutelageError("no-labels", "cannot fit a temperature: no pixel is labelled", "give images with labels")
    logits_NC = logits_NC - logits_NC.gather(1, label_N[:, None])
    low, high = -_LOG_TEMPERATURE_LIMIT, _LOG_TEMPERATURE_LIMIT
    log_temperature = 0.0
    for _ in range(steps):
        sharpness = math.exp(-log_temperature)
        share_NC = (logits_NC * sharpness).softmax(dim=1)
        mean_N = (share_NC * logits_NC).sum(dim=1)
        variance = (share_NC * (logits_NC - mean_N[:, None]).square()).sum(dim=1).mean().item()
        # The likelihood is convex in 1 / T, so the sign of the slope shows on which side of T the optimum is.
        slope = -sharpness * mean_N.mean().item()
        curvature = sharpness**2 * variance - slope
        if slope > 0:
            high = log_temperature
        else:
            low = log_temperature
        proposal = log_temperature - slope / curvature if curvature > 0 else math.nan
        if not low < proposal < high:
            proposal = (low + high) / 2
        if abs(proposal - log_temperature) < 1e-7:
            break
        log_temperature = proposal
    return math.exp(log_temperature)
