"""Metrics of pseudo labels, without ground truth and on a few labelled images.

Without a truth: how many pixels a net is sure of (coverage), which classes it names, how far nets agree, how much has
changed since the last look. On labelled images that training does not use: how often it is right where it is sure
(precision), class by class with intervals, and whether its confidence can be believed. Coverage without precision
praises a net that is sure of nonsense; precision without coverage praises one that labels nothing.

Confidences are taken in 256 levels, as pseudo-label files hold them, and everything is counted in integers: sums do
not depend on the order of images, of processes or of interruptions.

Letters: N images, K classes, H x W pixels, P pixels that were drawn from all images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tutelage.evaluation.calibration import Calibration, CalibrationScores, fit_temperature
from tutelage.evaluation.confusion import counts_of
from tutelage.evaluation.histogram import IGNORE, histogram
from tutelage.evaluation.intervals import Interval, bootstrap_shares, miou_of_counts

LOWEST_SHARE = 0.001
"""A class with a smaller share of the labelled pixels is too rare for its absence to mean anything."""
FALLEN_TO = 0.1
"""A class whose share has fallen below this part of its share in the labels has collapsed."""
ONE_CLASS = 0.95
"""A class with a larger share of the predicted pixels has swallowed the others."""
LOWEST_COVERAGE = 0.01
"""With fewer sure pixels than this, their classes are not judged: early in training there are none."""

_CALIBRATION_PIXELS = 1 << 18
_STORED_PIXELS = 1 << 20
_NO_RISE = 1e-3


# Without a truth


def count_maps(
    label_HW: NDArray[np.uint8], confidence_HW: NDArray[np.uint8], levels_K: Sequence[int]
) -> NDArray[np.int64]:
    """Count one image: (2 K + 2,) pixels of each class, sure pixels of each class, sum of confidences, pixels.

    ``label_HW``: class ids, 255 for no label; ``confidence_HW``: 0..255; ``levels_K``: from which confidence on a pixel
    of each class is sure.
    """
    classes = len(levels_K)
    bound = np.full(256, IGNORE + 1, dtype=np.int64)
    bound[:classes] = levels_K
    named = np.bincount(label_HW.ravel(), minlength=256)[:classes]
    sure = np.bincount(label_HW[confidence_HW >= bound[label_HW]], minlength=256)[:classes]
    return np.concatenate([named, sure, [int(confidence_HW.sum(dtype=np.int64)), label_HW.size]]).astype(np.int64)


@dataclass(frozen=True)
class MapCounts:
    """What :func:`count_maps` counted of N images."""

    table_NC: NDArray[np.int64]

    @property
    def classes(self) -> int:
        """K."""
        return int(self.table_NC.shape[1] - 2) // 2

    @property
    def named(self) -> NDArray[np.int64]:
        """(K,) pixels of each class."""
        total: NDArray[np.int64] = self.table_NC[:, : self.classes].sum(0)
        return total

    @property
    def sure(self) -> NDArray[np.int64]:
        """(K,) sure pixels of each class."""
        total: NDArray[np.int64] = self.table_NC[:, self.classes : 2 * self.classes].sum(0)
        return total

    @property
    def pixels(self) -> int:
        """All pixels."""
        return int(self.table_NC[:, -1].sum())

    @property
    def coverage(self) -> float:
        """Share of all pixels that are sure; NaN without pixels."""
        return _part(int(self.sure.sum()), self.pixels)

    @property
    def labelled(self) -> float:
        """Share of all pixels that have a label; NaN without pixels."""
        return _part(int(self.named.sum()), self.pixels)

    @property
    def confidence(self) -> float:
        """Mean confidence of all pixels in 0..1; NaN without pixels."""
        return _part(int(self.table_NC[:, -2].sum()), 255 * self.pixels)

    @property
    def confidences(self) -> NDArray[np.float64]:
        """(N,) mean confidence of each image in 0..1."""
        return _shares(self.table_NC[:, -2], 255 * self.table_NC[:, -1])

    @property
    def shares(self) -> NDArray[np.float64]:
        """(K,) share of each class among the pixels that have a label; NaN where none has."""
        return _shares(self.named, self.named.sum())

    @property
    def sure_shares(self) -> NDArray[np.float64]:
        """(K,) share of each class among the sure pixels; NaN where there are none."""
        return _shares(self.sure, self.sure.sum())


def thinned(label_HW: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A map as it is kept for the next look: every n-th row and column, so that about a million pixels are left."""
    step = int(np.ceil(np.sqrt(max(label_HW.size / _STORED_PIXELS, 1.0))))
    return np.ascontiguousarray(label_HW[::step, ::step])


def changed(before: NDArray[np.uint8], now: NDArray[np.uint8]) -> tuple[int, int]:
    """How many pixels of two maps differ, and of how many; of those that have a label in both."""
    both = (before != IGNORE) & (now != IGNORE)
    return int((both & (before != now)).sum()), int(both.sum())


@dataclass(frozen=True)
class Agreement:
    """How far two nets say the same of the same pixels."""

    share: float
    """Share of pixels with equal labels."""
    iou: float
    """Mean IoU of one net's classes with the other's, over the classes that either names: rare classes count too."""


def agreement_of(matrix_KK: Tensor) -> Agreement:
    """Read the agreement off a confusion matrix of two nets' labels."""
    total = int(matrix_KK.sum())
    share = _part(int(matrix_KK.diagonal().sum()), total)
    return Agreement(share, float(miou_of_counts(counts_of(matrix_KK).cpu().numpy())))


# With a truth


@dataclass(frozen=True)
class Labelled:
    """Counts of one net on N labelled images."""

    counts_NK4: NDArray[np.int64]
    """By image and named class: pixels wrong and right that are not sure, wrong and right that are."""
    logits_PK: Tensor
    """Logits of pixels spread evenly over the labelled ones of each image."""
    label_P: Tensor
    image_P: Tensor
    """To which image each belongs, from 0."""


class LabelledCounts:
    """Gathers :class:`Labelled`, batch by batch; see ``observe`` of :func:`~tutelage.evaluation.evaluate.evaluate`."""

    def __init__(
        self,
        levels_K: Sequence[int],
        images: int,
        judge: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None,
    ) -> None:
        """``levels_K``: from which confidence (0..255) on a pixel named each class is sure; ``images``: how many come.

        ``judge``, in place of levels: from logits (B, K, H, W) the class of each pixel and whether it is sure.
        The more images, the fewer pixels of each are kept for the calibration: a quarter of a million in all.
        """
        self.levels_K = torch.tensor(levels_K, dtype=torch.int64)
        self._judge = judge
        self._quota = max(_CALIBRATION_PIXELS // max(images, 1), 1)
        self._counts: list[Tensor] = []
        self._logits: list[Tensor] = []
        self._labels: list[Tensor] = []

    def __call__(self, logits_BKHW: Tensor, label_BHW: Tensor) -> None:
        """Count a batch of logits against its labels, 255 = ignored."""
        classes = len(self.levels_K)
        named_BHW, sure_BHW = (self._judge or self._by_level)(logits_BKHW)
        right_BHW = named_BHW == label_BHW
        valid_BHW = label_BHW != IGNORE
        place_BHW = torch.where(valid_BHW, named_BHW * 4 + sure_BHW * 2 + right_BHW, 4 * classes)
        for place_HW, logits_KHW, label_HW in zip(place_BHW, logits_BKHW, label_BHW, strict=True):
            self._counts.append(histogram(place_HW, 4 * classes + 1)[: 4 * classes].view(classes, 4).cpu())
            kept = (label_HW.flatten() != IGNORE).nonzero()[:, 0]
            kept = kept[:: -(-len(kept) // self._quota) or 1]
            self._logits.append(logits_KHW.flatten(1)[:, kept].T.float().cpu())
            self._labels.append(label_HW.flatten()[kept].long().cpu())

    def _by_level(self, logits_BKHW: Tensor) -> tuple[Tensor, Tensor]:
        highest_BHW, named_BHW = logits_BKHW.max(dim=1)
        confidence_BHW = (highest_BHW - logits_BKHW.logsumexp(dim=1)).exp().mul(255).round()
        return named_BHW, confidence_BHW >= self.levels_K.to(named_BHW.device)[named_BHW]

    def rows(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Counts (n, K, 4), logits (P, K), labels (P,) and each of those pixels' image (P,), of this process."""
        classes = len(self.levels_K)
        sizes = torch.tensor([len(one) for one in self._labels], dtype=torch.int64)
        return (
            torch.stack(self._counts) if self._counts else torch.zeros((0, classes, 4), dtype=torch.int64),
            torch.cat([torch.zeros((0, classes)), *self._logits]),
            torch.cat([torch.zeros(0, dtype=torch.int64), *self._labels]),
            torch.repeat_interleave(torch.arange(len(sizes)), sizes),
        )


@dataclass(frozen=True)
class Precision:
    """How often a net is right where it names a class."""

    sure: Interval
    """Where it is sure of any class."""
    every: Interval
    """Wherever there is a label: pixel accuracy."""
    sure_K: list[Interval]
    """Where it is sure of each class."""
    every_K: list[Interval]
    """Wherever it names each class."""
    coverage: float
    """Share of the labelled pixels that it is sure of."""
    sure_N: NDArray[np.float64]
    """Of each image, where at least a hundredth of its labelled pixels is sure; else NaN."""


def precision_of(counts_NK4: NDArray[np.int64], blocks: Sequence[str] | None) -> Precision:
    """Precision by class with intervals of a bootstrap over images, or over blocks of them (the same every time)."""
    sure_right_NK, sure_NK = counts_NK4[..., 3], counts_NK4[..., 2:].sum(-1)
    right_NK, every_NK = counts_NK4[..., 1::2].sum(-1), counts_NK4.sum(-1)
    sure, every = (
        bootstrap_shares(_with_total(part), _with_total(whole), blocks)
        for part, whole in ((sure_right_NK, sure_NK), (right_NK, every_NK))
    )
    sure_N, pixels_N = sure_NK.sum(-1), every_NK.sum(-1)
    own_N = np.where(sure_N >= LOWEST_COVERAGE * pixels_N, _shares(sure_right_NK.sum(-1), sure_N), np.nan)
    coverage = _part(int(sure_N.sum()), int(pixels_N.sum()))
    return Precision(sure[-1], every[-1], sure[:-1], every[:-1], coverage, own_N)


def _with_total(counts_NK: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([counts_NK, counts_NK.sum(1, keepdims=True)], axis=1)


@dataclass(frozen=True)
class CalibrationChange:
    """Calibration before and after temperature scaling, on the half of the images that it was not fitted on."""

    temperature: float
    """Above 1: the net is too sure of itself."""
    before: CalibrationScores
    after: CalibrationScores
    images: tuple[int, int]
    """How many images it was fitted on, and how many it is judged on."""


def halves(images: int, blocks: Sequence[str] | None) -> list[bool]:
    """Which images a temperature is fitted on: every other one, or all images of every other block."""
    if blocks is None:
        return [place % 2 == 0 for place in range(images)]
    order = {block: place for place, block in enumerate(dict.fromkeys(blocks))}
    return [order[block] % 2 == 0 for block in blocks]


def calibration_change(labelled: Labelled, blocks: Sequence[str] | None) -> CalibrationChange | None:
    """Fit a temperature on one half of the images and judge it on the other; ``None`` where a half has no label.

    Source: temperature scaling, Guo et al., ICML 2017, section 4.2. Both errors are those of the kept pixels.
    """
    fits_N = torch.tensor(halves(len(labelled.counts_NK4), blocks), dtype=torch.bool)
    fits_P = fits_N[labelled.image_P] if len(fits_N) else torch.zeros(0, dtype=torch.bool)
    if not fits_P.any() or fits_P.all():
        return None
    temperature = fit_temperature(labelled.logits_PK[fits_P], labelled.label_P[fits_P])
    logits_PK, label_P = labelled.logits_PK[~fits_P], labelled.label_P[~fits_P]
    before, after = (_calibration(logits_PK / scale, label_P) for scale in (1.0, temperature))
    return CalibrationChange(temperature, before, after, (int(fits_N.sum()), int((~fits_N).sum())))


def _calibration(logits_PK: Tensor, label_P: Tensor) -> CalibrationScores:
    calibration = Calibration()
    calibration.update(logits_PK.T[None, :, :, None], label_P[None, :, None])
    return calibration.scores()


# Judgements


@dataclass(frozen=True)
class Collapse:
    """Classes that one net has lost, or the one that has swallowed the others."""

    kind: Literal["fallen", "missing", "never sure", "one class"]
    """A share below a tenth of that in the labels, after it was higher or before it ever was; none among the sure
    pixels; nearly all pixels."""
    classes: tuple[int, ...]


def collapses(
    counts: MapCounts, reference_K: NDArray[np.float64] | None, earlier: Sequence[NDArray[np.float64]] | None = None
) -> list[Collapse]:
    """What is wrong with the classes that a net names.

    ``reference_K``: the share of each class in the labels that training uses, or in the first audit; ``None``: unknown.
    ``earlier``: the shares (K,) of the audits before; a class that has been there in none of them is missing, not
    fallen. ``None``: not known, and all that are missing count as fallen.
    """
    found = []
    share_K, sure_K = counts.shares, counts.sure
    if reference_K is not None:
        common_K = reference_K >= LOWEST_SHARE
        low_K = common_K & (share_K < FALLEN_TO * reference_K)
        was_K = np.full(len(low_K), earlier is None)
        for before_K in earlier or ():
            was_K |= before_K >= FALLEN_TO * reference_K
        found += [_collapse("fallen", low_K & was_K), _collapse("missing", low_K & ~was_K)]
        if counts.coverage >= LOWEST_COVERAGE:
            found.append(_collapse("never sure", common_K & (sure_K == 0) & ~low_K))
    if counts.classes > 1:
        found.append(_collapse("one class", share_K > ONE_CLASS))
    return [one for one in found if one.classes]


def _collapse(kind: Literal["fallen", "missing", "never sure", "one class"], which_K: NDArray[np.bool_]) -> Collapse:
    return Collapse(kind, tuple(map(int, np.flatnonzero(which_K))))


def settled(
    changes: Mapping[str, Sequence[float | None]],
    precisions: Mapping[str, Sequence[float | None]],
    change: float,
    rounds: int,
) -> bool:
    """Whether the labels of every net have settled: the stop rule.

    ``changes``: net → share of pixels that changed, one for each audit so far (``None``: unknown, as at the first).
    ``precisions``: the same of the precision on labelled images; empty where there are none. Settled: in each of the
    last ``rounds`` audits less than ``change`` has changed, and the precision has not risen above what it was before.
    """
    for course in changes.values():
        last = course[-rounds:]
        if len(course) <= rounds or any(value is None or not value < change for value in last):
            return False
    for course in precisions.values():
        earlier, later = (
            [value for value in part if value is not None] for part in (course[:-rounds], course[-rounds:])
        )
        if earlier and later and max(later) > max(earlier) + _NO_RISE:
            return False
    return bool(changes)


def _part(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")


def _shares(part: NDArray[np.int64], whole: NDArray[np.int64] | np.int64) -> NDArray[np.float64]:
    wholes = np.broadcast_to(np.asarray(whole, dtype=np.float64), part.shape)
    share: NDArray[np.float64] = np.divide(part, wholes, out=np.full(part.shape, np.nan), where=wholes > 0)
    return share
