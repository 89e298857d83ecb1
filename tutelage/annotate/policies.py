"""Label policies of an `annotate` stage: which pixels of an image get a pseudo label, and which one.

    argmax           every pixel
    threshold        pixels whose confidence reaches a threshold, in the 256 levels that are stored
    class_balanced   of each class the most confident portion, in the 256 levels that are stored
    class_quantile   pixels above a quantile of their class's confidences, or above a cap (PBAL, FDA)
    class_ratio      the class of the largest p_c / k_c, where that is 1 or more (CBST)
    mixtures         the class whose mixture gives the features the largest likelihood, if large enough (BiSMAP)

The last three need thresholds over all images before one can be labelled: a histogram of bounded size from a first pass
over the images, in integers, so that neither the order of images nor the number of processes matters.

Each policy's settings stand above it. This module imports torch only inside functions, so that recipes are validated
without it.
"""

# Legend: K classes, L levels (bins), H W pixels, n rows of a band, h w the grid of features.

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from tutelage.annotate.class_quantiles import ClassThresholds, histogram_thresholds
from tutelage.data.labels import IGNORE
from tutelage.errors import TutelageError
from tutelage.evaluation.levels import level_of
from tutelage.settings import Ref, Settings

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from tutelage.annotate.image_scores import ImageScores
    from tutelage.prototypes.gaussians import Mixtures

BINS = 1 << 16
"""Levels of the histograms: a threshold of probabilities is at most 1.6e-5 below the exact one."""

_NATS = 64.0  # log-likelihoods are counted on a scale that is linear up to here and logarithmic beyond
_FARTHEST_NATS = 1e6

_STRANGE = 5.0  # nats per channel below what a mixture's own features have: more than any drift of a domain

Share = Annotated[float, Field(gt=0, le=1)]


class PolicyLabels(NamedTuple):
    """The labels of one image."""

    label_HW: NDArray[np.uint8]
    """The class of every pixel."""
    kept_HW: NDArray[np.bool_] | None
    """Pixels that the policy labels; ``None``: all."""
    confidence_HW: NDArray[np.uint8]
    """Probability of that class, 255 = 1."""


@dataclass(frozen=True)
class PolicyTask:
    """What a policy is built for."""

    classes: tuple[str, ...]
    device: torch.device
    fitted: Callable[[str], Mapping[str, Tensor]]
    """The tensors of a `fit` stage by name. Raises :class:`TutelageError` for a file that cannot be read."""


class PolicySettings(Settings):
    """The base of the policies' settings."""

    of_logits: ClassVar[bool] = True
    """Whether labels follow the net's classifier, under any protocol; otherwise its features of whole images."""
    complete: ClassVar[bool] = False
    """Whether every pixel gets a label."""

    def build(self, task: PolicyTask) -> Policy:
        """The policy. Raises :class:`TutelageError` for fitted inputs that cannot be read."""
        raise NotImplementedError


class Policy(ABC):
    """How images are labelled."""

    name: ClassVar[str]
    complete: ClassVar[bool] = False
    """Whether every pixel gets a label."""
    surveys: bool = False
    """Whether all images must be read once (:meth:`survey`) before one can be labelled."""
    portion_kept: float | None = None
    """Share of each class's pixels that stays, where labels are thinned once all images are labelled."""

    def __init__(self, classes: int) -> None:
        self.classes = classes

    @abstractmethod
    def label(self, scores: ImageScores, threshold_K: NDArray[np.float64]) -> PolicyLabels:
        """Label an image; ``threshold``: that of :meth:`thresholds`."""

    def survey(self, scores: ImageScores) -> NDArray[np.int32]:
        """For every pixel of an image (H, W): class x :data:`BINS` + level."""
        raise NotImplementedError

    def thresholds(self, histogram_KL: NDArray[np.int64]) -> ClassThresholds:
        """The thresholds of each class, from the histogram of all images (of none without a survey)."""
        return ClassThresholds(np.zeros(self.classes), np.zeros(self.classes, dtype=np.int64))

    def levels(self) -> list[int] | None:
        """The lowest of the 256 stored levels that a pixel of each class may have, where they decide."""
        return None

    def judge(self, logits_BKHW: Tensor, threshold_K: NDArray[np.float64]) -> tuple[Tensor, Tensor]:
        """Class and whether it is kept (B, H, W), for policies that depend on logits and on more than stored levels."""
        raise NotImplementedError

    def doubts(self, threshold_K: NDArray[np.float64]) -> list[str]:
        """Reasons to distrust labels by these thresholds, a sentence each."""
        return []


class ArgmaxSettings(PolicySettings):
    """Label every pixel with its most probable class."""

    complete: ClassVar[bool] = True

    kind: Literal["argmax"] = "argmax"

    def build(self, task: PolicyTask) -> Policy:
        return Argmax(len(task.classes))


class Argmax(Policy):
    """Every pixel, its most probable class."""

    name, complete = "argmax", True

    def label(self, scores: ImageScores, threshold_K: NDArray[np.float64]) -> PolicyLabels:
        label_HW, confidence_HW = scores.labels()
        return PolicyLabels(label_HW, None, confidence_HW)

    def levels(self) -> list[int] | None:
        return [0] * self.classes


class ThresholdSettings(PolicySettings):
    """Label pixels above a confidence."""

    kind: Literal["threshold"] = "threshold"
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.9
    """Smallest confidence of a pixel that is labelled."""

    def build(self, task: PolicyTask) -> Policy:
        return Threshold(len(task.classes), self.threshold)


class Threshold(Argmax):
    """Pixels of a confidence of ``threshold`` (0..1) or more, as stored: in 256 levels."""

    name, complete = "threshold", False

    def __init__(self, classes: int, threshold: float) -> None:
        super().__init__(classes)
        self.lowest = level_of(threshold)

    def label(self, scores: ImageScores, threshold_K: NDArray[np.float64]) -> PolicyLabels:
        labels = super().label(scores, threshold_K)
        return labels._replace(kept_HW=labels.confidence_HW >= self.lowest)

    def levels(self) -> list[int] | None:
        return [self.lowest] * self.classes


class ClassBalancedSettings(PolicySettings):
    """Label of each class the most confident portion."""

    kind: Literal["class_balanced"] = "class_balanced"
    portion: Share = 0.5
    """Share of each class's pixels that is labelled."""

    def build(self, task: PolicyTask) -> Policy:
        return ClassBalanced(len(task.classes), self.portion)


class ClassBalanced(Argmax):
    """Of each class the most confident ``portion``, as stored. Labels are thinned at the end: the net runs once."""

    name, complete = "class_balanced", False

    def __init__(self, classes: int, portion: float) -> None:
        super().__init__(classes)
        self.portion_kept = portion

    def levels(self) -> list[int] | None:
        return None


class ByScores(Policy):
    """Policies that read the scores of all classes, band by band."""

    def bands(self, scores: ImageScores) -> Iterator[tuple[int, Tensor]]:
        """(first row, scores (K, n, W)) of an image: probabilities or logits of the net."""
        return scores.bands()

    @abstractmethod
    def ranked(self, scores_KnW: Tensor, probabilities: bool) -> tuple[Tensor, Tensor]:
        """Of each pixel the class and the level that the survey counts (n, W) int64."""

    @abstractmethod
    def picked(self, scores_KnW: Tensor, probabilities: bool, bound_K: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of each pixel the class, whether it is kept, and its confidence in 0..1 (n, W)."""

    def bound(self, threshold_K: NDArray[np.float64], device: torch.device) -> Tensor:
        """The thresholds (K,) as scores are compared with them."""
        return lowest_float32(threshold_K, device)

    def survey(self, scores: ImageScores) -> NDArray[np.int32]:
        import torch

        cells = np.empty(scores.size, dtype=np.int32)
        for start, scores_KnW in self.bands(scores):
            best_nW, level_nW = self.ranked(scores_KnW, scores.are_probabilities)
            cells[start : start + len(best_nW)] = best_nW.mul_(BINS).add_(level_nW).to("cpu", torch.int32).numpy()
        return cells

    def label(self, scores: ImageScores, threshold_K: NDArray[np.float64]) -> PolicyLabels:
        bound_K = self.bound(threshold_K, scores.device)
        label_HW, confidence_HW = np.empty(scores.size, dtype=np.uint8), np.empty(scores.size, dtype=np.uint8)
        kept_HW = np.empty(scores.size, dtype=np.bool_)
        for start, scores_KnW in self.bands(scores):
            best_nW, kept_nW, confidence_nW = self.picked(scores_KnW, scores.are_probabilities, bound_K)
            rows = slice(start, start + len(best_nW))
            label_HW[rows] = best_nW.byte().cpu().numpy()
            kept_HW[rows] = kept_nW.cpu().numpy()
            confidence_HW[rows] = confidence_nW.mul(255).round_().byte().cpu().numpy()
        return PolicyLabels(label_HW, kept_HW, confidence_HW)


class ByConfidence(ByScores):
    """Policies whose survey counts the confidence of the most probable class."""

    surveys = True

    def ranked(self, scores_KnW: Tensor, probabilities: bool) -> tuple[Tensor, Tensor]:
        from tutelage.evaluation.inference import winners

        best_nW, confidence_nW = winners(scores_KnW, probabilities)
        return best_nW, confidence_nW.mul(BINS).clamp_(0, BINS - 1).long()  # a power of two: exact


class ClassQuantileSettings(PolicySettings):
    """Label pixels above a quantile of their class's confidences, or above a cap (PBAL, FDA)."""

    kind: Literal["class_quantile"] = "class_quantile"
    quantile: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of each class's pixels below its threshold."""
    cap: Share = 0.9
    """No threshold is above this confidence."""

    def build(self, task: PolicyTask) -> Policy:
        return ClassQuantile(len(task.classes), self.quantile, self.cap)


class ClassQuantile(ByConfidence):
    """Pixels above a quantile of the confidences of their class, or above a cap. Source: PBAL, 3.3; FDA."""

    name = "class_quantile"

    def __init__(self, classes: int, quantile: float, cap: float) -> None:
        super().__init__(classes)
        self.quantile, self.cap = quantile, cap

    def thresholds(self, histogram_KL: NDArray[np.int64]) -> ClassThresholds:
        return histogram_thresholds(histogram_KL, self.quantile, self.cap)

    def picked(self, scores_KnW: Tensor, probabilities: bool, bound_K: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        from tutelage.evaluation.inference import winners

        best_nW, confidence_nW = winners(scores_KnW, probabilities)
        return best_nW, confidence_nW >= bound_K[best_nW], confidence_nW

    def judge(self, logits_BKHW: Tensor, threshold_K: NDArray[np.float64]) -> tuple[Tensor, Tensor]:
        highest_BHW, best_BHW = logits_BKHW.softmax(1).max(1)
        return best_BHW, highest_BHW >= self.bound(threshold_K, logits_BKHW.device)[best_BHW]


class ClassRatioSettings(PolicySettings):
    """Label the class furthest above the confidence of its most confident portion (CBST)."""

    kind: Literal["class_ratio"] = "class_ratio"
    portion: Share = 0.2
    """Share of each class's pixels whose lowest confidence is the class's reference."""

    def build(self, task: PolicyTask) -> Policy:
        return ClassRatio(len(task.classes), self.portion)


class ClassRatio(ByConfidence):
    """The class of the largest p_c / k_c, where that is 1 or more; k_c by the most confident ``portion``. Source: CBST.

    The published code reads every fourth pixel of a class to save memory; this counts them all.
    """

    name = "class_ratio"

    def __init__(self, classes: int, portion: float) -> None:
        super().__init__(classes)
        self.portion = portion

    def thresholds(self, histogram_KL: NDArray[np.int64]) -> ClassThresholds:
        return ratio_thresholds(histogram_KL, self.portion)

    def bound(self, threshold_K: NDArray[np.float64], device: torch.device) -> Tensor:
        """k (K,), to divide by."""
        import torch

        return torch.from_numpy(threshold_K).to(device, torch.float32)

    def picked(self, scores_KnW: Tensor, probabilities: bool, bound_K: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        probability_KnW = scores_KnW if probabilities else scores_KnW.softmax(0)
        ratio_nW, best_nW = (probability_KnW / bound_K[:, None, None]).max(0)
        return best_nW, ratio_nW >= 1, probability_KnW.gather(0, best_nW[None])[0]

    def judge(self, logits_BKHW: Tensor, threshold_K: NDArray[np.float64]) -> tuple[Tensor, Tensor]:
        threshold_K11 = logits_BKHW.new_tensor(threshold_K)[:, None, None]
        ratio_BHW, best_BHW = (logits_BKHW.softmax(1) / threshold_K11).max(1)
        return best_BHW, ratio_BHW >= 1


class MixturesSettings(PolicySettings):
    """Label the class whose mixture gives the features the largest likelihood, where it is large enough (BiSMAP)."""

    of_logits: ClassVar[bool] = False

    kind: Literal["mixtures"] = "mixtures"
    mixtures: Annotated[str, Ref("fit", fits=("mixtures",))]
    """The `fit` stage that fitted the mixtures, to features of the net that labels."""
    threshold: float | None = None
    """Smallest log-likelihood of a pixel that is labelled, in nats. Give this or `quantile`; the published threshold
    (100) does not carry over to another net."""
    quantile: Annotated[float, Field(ge=0, le=1)] | None = None
    """Share of the pixels that is left out, in place of `threshold`."""
    per_class: bool = True
    """Whether the quantile is one of each class's pixels, or of all pixels."""
    score_at: Literal["image", "feature"] = "image"
    """Features are resized to the image and scored (`image`), or scored on their own grid, which is cheaper and less
    exact at borders (`feature`)."""

    @model_validator(mode="after")
    def _one_threshold(self) -> MixturesSettings:
        if (self.threshold is None) == (self.quantile is None):
            raise ValueError("expected one of `threshold` (in nats) and `quantile`")
        if self.threshold is not None and "per_class" in self.model_fields_set:
            raise ValueError("`per_class` has no effect with `threshold`; it belongs to `quantile`")
        return self

    def written(self, content: dict[str, Any]) -> dict[str, Any]:
        """All but `per_class` where it has no effect, so that it reads back."""
        return {key: value for key, value in content.items() if key != "per_class" or self.threshold is None}

    def build(self, task: PolicyTask) -> Policy:
        from tutelage.prototypes.gaussians import Mixtures

        fitted = task.fitted(self.mixtures)
        mixtures = Mixtures(task.classes, *(fitted[name] for name in ("present", "weight", "mean", "variance")))
        options: dict[str, Any] = self.model_dump(exclude={"kind", "mixtures"})
        return MixtureLabels(mixtures, task.device, **options)


class MixtureLabels(ByScores):
    """The class c of the largest ln p(f | c), f being the net's features, where it reaches a threshold.

    The threshold is one in nats, or the ``quantile`` of the log-likelihoods of each class's pixels (``per_class``) or
    of all. Stored confidences are p(c | f) for classes of equal frequency. Source: BiSMAP, 3.3.
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
        import torch

        from tutelage.prototypes.likelihood import Scorer

        super().__init__(len(mixtures.classes))
        if (threshold is None) == (quantile is None):
            raise ValueError("expected one of threshold and quantile")
        self.threshold, self.quantile, self.per_class, self.score_at = threshold, quantile, per_class, score_at
        self.surveys = quantile is not None
        self.names = mixtures.classes
        self.typical_K = typical_likelihood(mixtures)
        self._scorer = Scorer(mixtures, device)
        self._edges_L = torch.from_numpy(likelihood_edges()).to(device)

    def bands(self, scores: ImageScores) -> Iterator[tuple[int, Tensor]]:
        """(first row, ln p(f | c) (K, n, W)) of an image."""
        features_1Chw = scores.features()
        if features_1Chw.shape[1] != self._scorer.channels:
            raise TutelageError(
                "fit-of-other-net",
                f"the mixtures have {self._scorer.channels} channels, the features of the net that labels "
                f"{features_1Chw.shape[1]}",
                "label with the net whose features the mixtures were fitted to",
            )
        for start, band_BKnW in self._scorer.image_bands(features_1Chw, scores.size, self.score_at):
            yield start, band_BKnW[0]

    def ranked(self, scores_KnW: Tensor, probabilities: bool) -> tuple[Tensor, Tensor]:
        import torch

        highest_nW, best_nW = scores_KnW.max(0)
        return best_nW, torch.bucketize(highest_nW, self._edges_L, right=True).sub_(1).clamp_(min=0)

    def thresholds(self, histogram_KL: NDArray[np.int64]) -> ClassThresholds:
        if self.quantile is None:
            assert self.threshold is not None
            return ClassThresholds(np.full(self.classes, self.threshold), np.zeros(self.classes, dtype=np.int64))
        return likelihood_thresholds(histogram_KL, self.quantile, self.per_class)

    def doubts(self, threshold_K: NDArray[np.float64]) -> list[str]:
        """Classes whose quantile includes pixels unlike anything that the mixture was fitted to."""
        if self.quantile is None:
            return []
        lowest_K = self.typical_K - _STRANGE * self._scorer.channels
        return [
            f"class {name}: pixels down to {threshold:.0f} nats are labelled, but features that the mixture was fitted "
            f"to have {typical:.0f}: the target's features differ. Raise variance_floor (1e-2 for features of about "
            "1), or fit the mixtures to a source that looks like the target"
            for name, threshold, typical, lowest in zip(self.names, threshold_K, self.typical_K, lowest_K, strict=True)
            if np.isfinite(threshold) and threshold < lowest
        ]

    def picked(self, scores_KnW: Tensor, probabilities: bool, bound_K: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        highest_nW, best_nW = scores_KnW.max(0)
        confidence_nW = scores_KnW.sub_(highest_nW).exp_().sum(0).reciprocal_()
        return best_nW, highest_nW >= bound_K[best_nW], confidence_nW


AnyPolicy = Annotated[
    ArgmaxSettings
    | ThresholdSettings
    | ClassBalancedSettings
    | ClassQuantileSettings
    | ClassRatioSettings
    | MixturesSettings,
    Field(discriminator="kind"),
]
"""The policies by `kind`."""


def typical_likelihood(mixtures: Mixtures) -> NDArray[np.float64]:
    """(K,) ln p of a class's own features, on average, were its components far apart; -inf for an absent class."""
    entropy_KM = 0.5 * (mixtures.variance_KMC.double().log() + np.log(2 * np.pi * np.e)).sum(2)
    typical_K = -(mixtures.weight_KM.double() * entropy_KM).sum(1)
    return np.where(mixtures.present_K.cpu().numpy(), typical_K.cpu().numpy(), -np.inf)


def lowest_float32(threshold_K: NDArray[np.float64], device: torch.device) -> Tensor:
    """The smallest float32 that are at least these: x >= threshold in float64, decided in float32."""
    import torch

    lowest_K = threshold_K.astype(np.float32)
    below_K = lowest_K.astype(np.float64) < threshold_K
    lowest_K[below_K] = np.nextafter(lowest_K[below_K], np.float32(np.inf))
    return torch.from_numpy(lowest_K).to(device)


# Thresholds from histograms


def ratio_thresholds(histogram_KL: NDArray[np.int64], portion: float) -> ClassThresholds:
    """k (K,) of CBST from pixels by class and bin of confidence: the lower end of the bin of the rank floor(q n).

    At most 1 / L below the exact threshold; 1 for a class without pixels, or of rank 0.
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


def thinned(labels: PolicyLabels) -> NDArray[np.uint8]:
    """The label map (H, W) as it is written: 255 where the policy labels nothing."""
    return labels.label_HW if labels.kept_HW is None else np.where(labels.kept_HW, labels.label_HW, np.uint8(IGNORE))
