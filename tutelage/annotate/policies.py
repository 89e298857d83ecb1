"""Which pixels of an image get a pseudo label, and which one: the policies of an `annotate` stage.

    argmax           all of them
    threshold        those whose confidence is high enough, in the 256 levels that are stored
    class_balanced   of each class the surest portion, in the 256 levels that are stored
    class_quantile   those above a quantile of their class's confidences, or above a cap (PBAL, FDA)
    class_ratio      the class of the largest p_c / k_c, where that is 1 or more (CBST)
    mixtures         the class whose mixture makes the features likeliest, where that is likely enough (BiSMAP)

The last three need thresholds of all images before one can be labelled: a histogram of bounded size, from a first look
at every image, in integers, so that neither the order of images nor the number of processes matters.
"""

# Legend: K classes, L levels (bins), H W pixels, n rows of a band, h w the grid of features.

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import ClassVar, Literal, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tutelage.annotate.class_quantiles import ClassThresholds, histogram_thresholds
from tutelage.annotate.net_outputs import ImageWithMask, look
from tutelage.data.labels import IGNORE
from tutelage.errors import TutelageError
from tutelage.evaluation.audit import level_of
from tutelage.evaluation.inference import SegmentationModel, gives_probabilities, predict_labels, score_bands, winners
from tutelage.evaluation.protocol import Protocol
from tutelage.nets.segmentor import Segmentor
from tutelage.prototypes.gaussians import Mixtures
from tutelage.prototypes.likelihood import Scorer

BINS = 1 << 16
"""Levels of the histograms: a threshold of probabilities is at most 1.6e-5 below the exact one."""

_NATS = 64.0  # log-likelihoods are counted on a scale that is linear up to here and logarithmic beyond
_FARTHEST_NATS = 1e6

_STRANGE = 5.0  # nats a channel below what a mixture's own features have: more than any drift of a domain


class Said(NamedTuple):
    """What is said of an image."""

    label_HW: NDArray[np.uint8]
    """The class of every pixel."""
    kept_HW: NDArray[np.bool_] | None
    """Which pixels the policy labels; ``None``: all."""
    confidence_HW: NDArray[np.uint8]
    """Probability of that class, 255 = 1."""


class Policy(ABC):
    """How images are labelled; the settings are its attributes."""

    name: ClassVar[str]
    complete: ClassVar[bool] = False
    """Whether every pixel gets a label."""
    surveys: bool = False
    """Whether all images must have been looked at (:meth:`survey`) before one can be labelled."""

    def __init__(self, classes: int) -> None:
        self.classes = classes

    @abstractmethod
    def label(
        self,
        net: SegmentationModel,
        image_HW3: NDArray[np.uint8],
        protocol: Protocol,
        device: torch.device,
        threshold_K: NDArray[np.float64],
    ) -> Said:
        """Label an image (H, W, 3); ``threshold``: that of :meth:`thresholds`."""

    def survey(
        self, net: SegmentationModel, image_HW3: NDArray[np.uint8], protocol: Protocol, device: torch.device
    ) -> NDArray[np.int32]:
        """Of every pixel of an image (H, W, 3): class x :data:`BINS` + level."""
        raise NotImplementedError

    def thresholds(self, histogram_KL: NDArray[np.int64]) -> ClassThresholds:
        """What pixels of each class must reach, from the histogram of all images (of none without a survey)."""
        return ClassThresholds(np.zeros(self.classes), np.zeros(self.classes, dtype=np.int64))

    def levels(self) -> list[int] | None:
        """The lowest of the 256 stored levels that a pixel of each class may have, where they decide."""
        return None

    def judge(self, logits_BKHW: Tensor, threshold_K: NDArray[np.float64]) -> tuple[Tensor, Tensor]:
        """Class and whether it is kept (B, H, W), for policies that go by logits and by more than stored levels."""
        raise NotImplementedError

    def doubts(self, threshold_K: NDArray[np.float64]) -> list[str]:
        """What speaks against labels by these thresholds, a sentence each."""
        return []


class Argmax(Policy):
    """Every pixel, its likeliest class."""

    name, complete = "argmax", True

    def label(
        self,
        net: SegmentationModel,
        image_HW3: NDArray[np.uint8],
        protocol: Protocol,
        device: torch.device,
        threshold_K: NDArray[np.float64],
    ) -> Said:
        label, confidence = predict_labels(net, image_HW3, protocol, device, confidence=True)
        assert confidence is not None
        return Said(label, None, confidence)

    def levels(self) -> list[int] | None:
        return [0] * self.classes


class Threshold(Argmax):
    """Pixels of a confidence of ``threshold`` (0..1) or more, as stored: in 256 levels."""

    name, complete = "threshold", False

    def __init__(self, classes: int, threshold: float) -> None:
        super().__init__(classes)
        self.lowest = level_of(threshold)

    def label(
        self,
        net: SegmentationModel,
        image_HW3: NDArray[np.uint8],
        protocol: Protocol,
        device: torch.device,
        threshold_K: NDArray[np.float64],
    ) -> Said:
        said = super().label(net, image_HW3, protocol, device, threshold_K)
        return said._replace(kept_HW=said.confidence_HW >= self.lowest)

    def levels(self) -> list[int] | None:
        return [self.lowest] * self.classes


class ClassBalanced(Argmax):
    """Of each class the surest ``portion``, as stored. Labels are thinned once all are there: the net is run once."""

    name, complete = "class_balanced", False

    def __init__(self, classes: int, portion: float) -> None:
        super().__init__(classes)
        self.portion = portion

    def levels(self) -> list[int] | None:
        return None


class ByScores(Policy):
    """Policies that go by the scores of all classes, band by band: what they share of labelling and of the survey."""

    def bands(
        self, net: SegmentationModel, image_HW3: NDArray[np.uint8], protocol: Protocol, device: torch.device
    ) -> Iterator[tuple[int, Tensor]]:
        """(first row, scores (K, n, W)) of an image: probabilities or logits of the net."""
        for start, scores_1KnW in score_bands(net, image_HW3, protocol, device):
            yield start, scores_1KnW[0]

    @abstractmethod
    def ranked(self, scores_KnW: Tensor, probabilities: bool) -> tuple[Tensor, Tensor]:
        """Of each pixel the class and the level that the survey counts (n, W) int64."""

    @abstractmethod
    def picked(self, scores_KnW: Tensor, probabilities: bool, bound_K: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of each pixel the class, whether it is kept, and its confidence in 0..1 (n, W)."""

    def bound(self, threshold_K: NDArray[np.float64], device: torch.device) -> Tensor:
        """The thresholds (K,) as scores are compared with them."""
        return lowest_float32(threshold_K, device)

    def survey(
        self, net: SegmentationModel, image_HW3: NDArray[np.uint8], protocol: Protocol, device: torch.device
    ) -> NDArray[np.int32]:
        cells = np.empty(image_HW3.shape[:2], dtype=np.int32)
        for start, scores_KnW in self.bands(net, image_HW3, protocol, device):
            best_nW, level_nW = self.ranked(scores_KnW, gives_probabilities(protocol))
            cells[start : start + len(best_nW)] = best_nW.mul_(BINS).add_(level_nW).to("cpu", torch.int32).numpy()
        return cells

    def label(
        self,
        net: SegmentationModel,
        image_HW3: NDArray[np.uint8],
        protocol: Protocol,
        device: torch.device,
        threshold_K: NDArray[np.float64],
    ) -> Said:
        bound_K = self.bound(threshold_K, device)
        said = _Maps(image_HW3)
        for start, scores_KnW in self.bands(net, image_HW3, protocol, device):
            said.put(start, *self.picked(scores_KnW, gives_probabilities(protocol), bound_K))
        return said.said()


class ByConfidence(ByScores):
    """Those whose survey counts how sure the net is of the class that it names."""

    surveys = True

    def ranked(self, scores_KnW: Tensor, probabilities: bool) -> tuple[Tensor, Tensor]:
        best_nW, confidence_nW = winners(scores_KnW, probabilities)
        return best_nW, confidence_nW.mul(BINS).clamp_(0, BINS - 1).long()  # a power of two: exact


class ClassQuantile(ByConfidence):
    """Pixels above a quantile of the confidences of their class, or above a cap. Source: PBAL, 3.3; FDA."""

    name = "class_quantile"

    def __init__(self, classes: int, quantile: float, cap: float) -> None:
        super().__init__(classes)
        self.quantile, self.cap = quantile, cap

    def thresholds(self, histogram_KL: NDArray[np.int64]) -> ClassThresholds:
        return histogram_thresholds(histogram_KL, self.quantile, self.cap)

    def picked(self, scores_KnW: Tensor, probabilities: bool, bound_K: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        best_nW, confidence_nW = winners(scores_KnW, probabilities)
        return best_nW, confidence_nW >= bound_K[best_nW], confidence_nW

    def judge(self, logits_BKHW: Tensor, threshold_K: NDArray[np.float64]) -> tuple[Tensor, Tensor]:
        highest_BHW, best_BHW = logits_BKHW.softmax(1).max(1)
        return best_BHW, highest_BHW >= self.bound(threshold_K, logits_BKHW.device)[best_BHW]


class ClassRatio(ByConfidence):
    """The class of the largest p_c / k_c, where that is 1 or more; k_c by the surest ``portion``. Source: CBST.

    The published code looks at every fourth pixel of a class to save memory; this counts them all.
    """

    name = "class_ratio"

    def __init__(self, classes: int, portion: float) -> None:
        super().__init__(classes)
        self.portion = portion

    def thresholds(self, histogram_KL: NDArray[np.int64]) -> ClassThresholds:
        return ratio_thresholds(histogram_KL, self.portion)

    def bound(self, threshold_K: NDArray[np.float64], device: torch.device) -> Tensor:
        """k (K,), to divide by."""
        return torch.from_numpy(threshold_K).to(device, torch.float32)

    def picked(self, scores_KnW: Tensor, probabilities: bool, bound_K: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        probability_KnW = scores_KnW if probabilities else scores_KnW.softmax(0)
        ratio_nW, best_nW = (probability_KnW / bound_K[:, None, None]).max(0)
        return best_nW, ratio_nW >= 1, probability_KnW.gather(0, best_nW[None])[0]

    def judge(self, logits_BKHW: Tensor, threshold_K: NDArray[np.float64]) -> tuple[Tensor, Tensor]:
        threshold_K11 = torch.from_numpy(threshold_K).to(logits_BKHW)[:, None, None]
        ratio_BHW, best_BHW = (logits_BKHW.softmax(1) / threshold_K11).max(1)
        return best_BHW, ratio_BHW >= 1


class MixtureLabels(ByScores):
    """The class c of the largest ln p(f | c), f being the net's features, where it reaches a threshold.

    The threshold is one in nats, or the ``quantile`` of the log-likelihoods of each class's pixels (``per_class``) or
    of all. Stored confidences are p(c | f) for classes that are equally frequent. Source: BiSMAP, 3.3.
    """

    name = "mixtures"

    def __init__(
        self,
        mixtures: Mixtures,
        device: torch.device,
        threshold: float | None = None,
        quantile: float | None = None,
        per_class: bool = True,
        score_at: Literal["image", "feature"] = "image",
    ) -> None:
        super().__init__(len(mixtures.classes))
        if (threshold is None) == (quantile is None):
            raise ValueError("give a threshold in nats or a quantile, one of them")
        self.threshold, self.quantile, self.per_class, self.score_at = threshold, quantile, per_class, score_at
        self.surveys = quantile is not None
        self.names = mixtures.classes
        self.typical_K = typical_likelihood(mixtures)
        self._scorer = Scorer(mixtures, device)
        self._edges_L = torch.from_numpy(likelihood_edges()).to(device)

    def bands(
        self, net: SegmentationModel, image_HW3: NDArray[np.uint8], protocol: Protocol, device: torch.device
    ) -> Iterator[tuple[int, Tensor]]:
        """(first row, ln p(f | c) (K, n, W)) of an image."""
        features = look(cast("Segmentor", net), ImageWithMask(0, image_HW3, None), protocol, device).features_1Chw
        if features.shape[1] != self._scorer.channels:
            raise TutelageError(
                f"the mixtures are of {self._scorer.channels} features, the net that labels has {features.shape[1]}",
                "let the net label that the mixtures were fitted to",
            )
        size = (image_HW3.shape[0], image_HW3.shape[1])
        for start, band_BKnW in self._scorer.image_bands(features, size, self.score_at):
            yield start, band_BKnW[0]

    def ranked(self, scores_KnW: Tensor, probabilities: bool) -> tuple[Tensor, Tensor]:
        highest_nW, best_nW = scores_KnW.max(0)
        return best_nW, torch.bucketize(highest_nW, self._edges_L, right=True).sub_(1).clamp_(min=0)

    def thresholds(self, histogram_KL: NDArray[np.int64]) -> ClassThresholds:
        if self.quantile is None:
            assert self.threshold is not None
            return ClassThresholds(np.full(self.classes, self.threshold), np.zeros(self.classes, dtype=np.int64))
        return likelihood_thresholds(histogram_KL, self.quantile, self.per_class)

    def doubts(self, threshold_K: NDArray[np.float64]) -> list[str]:
        """Classes whose quantile takes in pixels that are like nothing the mixture was fitted to."""
        if self.quantile is None:
            return []
        lowest_K = self.typical_K - _STRANGE * self._scorer.channels
        return [
            f"class {name}: pixels down to {threshold:.0f} nats are labelled, and features that the mixture was fitted "
            f"to have {typical:.0f}: those of the target are unlike them. Raise variance_floor (1e-2 for features of "
            "about 1), or fit mixtures to a source that looks like the target"
            for name, threshold, typical, lowest in zip(self.names, threshold_K, self.typical_K, lowest_K, strict=True)
            if np.isfinite(threshold) and threshold < lowest
        ]

    def picked(self, scores_KnW: Tensor, probabilities: bool, bound_K: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        highest_nW, best_nW = scores_KnW.max(0)
        confidence_nW = scores_KnW.sub_(highest_nW).exp_().sum(0).reciprocal_()
        return best_nW, highest_nW >= bound_K[best_nW], confidence_nW


def typical_likelihood(mixtures: Mixtures) -> NDArray[np.float64]:
    """(K,) ln p of a class's own features, on average, were its components far apart; -inf for an absent class."""
    entropy_KM = 0.5 * (mixtures.variance_KMC.double().log() + np.log(2 * np.pi * np.e)).sum(2)
    typical_K = -(mixtures.weight_KM.double() * entropy_KM).sum(1)
    return np.where(mixtures.present_K.cpu().numpy(), typical_K.cpu().numpy(), -np.inf)


class _Maps:
    """The maps of an image, filled band by band."""

    def __init__(self, image_HW3: NDArray[np.uint8]) -> None:
        size = image_HW3.shape[:2]
        self._label, self._confidence = np.empty(size, dtype=np.uint8), np.empty(size, dtype=np.uint8)
        self._kept = np.empty(size, dtype=np.bool_)

    def put(self, start: int, best_nW: Tensor, kept_nW: Tensor, confidence_nW: Tensor) -> None:
        rows = slice(start, start + len(best_nW))
        self._label[rows] = best_nW.to("cpu", torch.uint8).numpy()
        self._kept[rows] = kept_nW.cpu().numpy()
        self._confidence[rows] = confidence_nW.mul(255).round_().to("cpu", torch.uint8).numpy()

    def said(self) -> Said:
        return Said(self._label, self._kept, self._confidence)


def lowest_float32(threshold_K: NDArray[np.float64], device: torch.device) -> Tensor:
    """The smallest float32 that are at least these: x >= threshold in float64, decided in float32."""
    lowest_K = threshold_K.astype(np.float32)
    below_K = lowest_K.astype(np.float64) < threshold_K
    lowest_K[below_K] = np.nextafter(lowest_K[below_K], np.float32(np.inf))
    return torch.from_numpy(lowest_K).to(device)


# Thresholds from histograms


def ratio_thresholds(histogram_KL: NDArray[np.int64], portion: float) -> ClassThresholds:
    """k (K,) of CBST from pixels by class and bin of confidence: the lower end of the bin of the rank floor(q n).

    At most 1 / L below :func:`~.class_ratio.exact_ratio_thresholds`; 1 for a class without pixels, or of rank 0.
    """
    threshold_K, pixels_K = np.ones(len(histogram_KL)), histogram_KL.sum(1)
    for class_, counts_L in enumerate(histogram_KL):
        rank = math.floor(portion * int(pixels_K[class_]))
        if rank:
            above = int(np.searchsorted(counts_L[::-1].cumsum(), rank))  # bins above that of the rank
            threshold_K[class_] = (len(counts_L) - 1 - above) / len(counts_L)
    return ClassThresholds(threshold_K, pixels_K)


def likelihood_edges() -> NDArray[np.float32]:
    """(L,) lower ends of the bins of log-likelihoods, in nats, ascending; the first and last bin hold what is beyond.

    They lie 0.02 nats apart around 0, 0.04 at 100, and 0.03 % of the value from 200 on.
    """
    reach = math.asinh(_FARTHEST_NATS / _NATS)
    edges: NDArray[np.float32] = (_NATS * np.sinh(np.linspace(-reach, reach, BINS))).astype(np.float32)
    return edges


def likelihood_thresholds(histogram_KL: NDArray[np.int64], quantile: float, per_class: bool = True) -> ClassThresholds:
    """Thresholds (K,) in nats from pixels by class and bin of log-likelihood: the lower end of the quantile's bin.

    The rank is that of :func:`~tutelage.prototypes.likelihood.quantile_thresholds`; -inf for a class without pixels.
    """
    pixels_K = histogram_KL.sum(1)
    threshold_K = np.full(len(histogram_KL), -np.inf)
    edges_L = likelihood_edges().astype(np.float64)
    edges_L[0] = -np.inf
    pooled_L = histogram_KL.sum(0)
    for class_, counts_L in enumerate(histogram_KL):
        counted_L = counts_L if per_class else pooled_L
        if pixels_K[class_]:
            total = int(counted_L.sum())
            rank = min(round(quantile * total), total - 1)
            threshold_K[class_] = edges_L[int(np.searchsorted(counted_L.cumsum(), rank, side="right"))]
    return ClassThresholds(threshold_K, pixels_K)


def thinned(said: Said) -> NDArray[np.uint8]:
    """The label map (H, W) as it is written: 255 where the policy labels nothing."""
    return said.label_HW if said.kept_HW is None else np.where(said.kept_HW, said.label_HW, np.uint8(IGNORE))
