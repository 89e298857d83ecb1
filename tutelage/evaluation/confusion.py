"""The confusion matrix and its scores.

Both conventions of the mean IoU are always computed: over the classes that occur (in label or prediction), and over
all classes with absent ones counted as 0, as in several published codes. On COCO-Stuff, where 11 of 182 ids never
occur, the two differ by a factor of 171 / 182.

Letters: B images, H x W pixels, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tutelage.errors import TutelageError
from tutelage.evaluation.histogram import IGNORE, check_class_count, check_maps, histogram, sum_over_ranks

_VALUES = 256
_NO_FAULT = torch.iinfo(torch.int64).min


@dataclass(frozen=True)
class Scores:
    """Scores of a confusion matrix. Fractions are in 0..1; NaN where the denominator is 0."""

    iou: NDArray[np.float64]
    """(C,) intersection over union; NaN for a class that occurs neither in the label nor in the prediction."""
    accuracy: NDArray[np.float64]
    """(C,) recall: fraction of a class's labelled pixels that were found; NaN without labelled pixels."""
    precision: NDArray[np.float64]
    """(C,) precision: fraction of the pixels predicted as a class that are correct; NaN if never predicted."""
    miou: float
    """Mean IoU over the classes that occur."""
    miou_all: float
    """Mean IoU over all C classes with absent ones counted as 0 (the convention of several published codes)."""
    absent: int
    """Number of classes that occur neither in the label nor in the prediction."""
    pixel_accuracy: float
    """Fraction of the labelled pixels that are correct."""
    mean_accuracy: float
    """Mean of ``accuracy`` over the classes with labelled pixels."""
    frequency_weighted_iou: float
    """IoU weighted by each class's fraction of the labelled pixels."""
    pixels: int
    """Number of labelled pixels."""


class Confusion:
    """A streaming confusion matrix: rows are the label, columns the prediction; ignored pixels are not counted.

    On an accelerator counting does not synchronise with the device, so that an invalid id is reported when the matrix
    is read, not when it is counted.
    """

    def __init__(self, num_classes: int, device: torch.device | str = "cpu") -> None:
        check_class_count(num_classes)
        self.num_classes = num_classes
        self._matrix = torch.zeros((num_classes, num_classes), dtype=torch.int64, device=device)
        self._faults = torch.full((2,), _NO_FAULT, dtype=torch.int64, device=device)

    def update(self, prediction: Tensor, label: Tensor) -> None:
        """Count one image (H, W) or a batch (B, H, W) of class ids: uint8, int16, int32 or int64, 255 = ignored.

        Raises :class:`TutelageError` for a label outside 0..C-1 other than 255, or a prediction outside 0..C-1.
        """
        matrix, faults = _count(prediction, label, self.num_classes)
        if matrix.device.type == "cpu":
            _raise_faults(faults, self.num_classes)
        self._matrix += matrix.to(self._matrix.device)
        self._faults = torch.maximum(self._faults, faults.to(self._faults.device))

    def add(self, matrix: Tensor) -> None:
        """Add a (C, C) matrix that :func:`confusion_of` counted."""
        if matrix.shape != self._matrix.shape:
            raise TutelageError(
                "counts-mismatch",
                f"cannot add a confusion matrix {tuple(matrix.shape)} to one of {self.num_classes} classes",
                "count both with the same classes",
            )
        self._matrix += matrix.to(self._matrix)

    def all_reduce(self) -> Confusion:
        """The exact sum over all ranks as a new object; a copy without a process group. Every rank must call it."""
        _raise_faults(self._faults, self.num_classes)
        total = Confusion(self.num_classes, self._matrix.device)
        total._matrix = sum_over_ranks(self._matrix)
        return total

    @property
    def matrix(self) -> Tensor:
        """(C, C) int64, rows = label, columns = prediction. Synchronises with the device to check the ids."""
        _raise_faults(self._faults, self.num_classes)
        return self._matrix

    def scores(self) -> Scores:
        """The scores of everything counted so far."""
        return scores_of(self.matrix)


def confusion_of(prediction: Tensor, label: Tensor, num_classes: int) -> Tensor:
    """The confusion matrix (C, C) int64 of one image or batch; shapes and errors as in :meth:`Confusion.update`."""
    check_class_count(num_classes)
    matrix, faults = _count(prediction, label, num_classes)
    _raise_faults(faults, num_classes)
    return matrix


def counts_of(matrix: Tensor) -> Tensor:
    """(..., C, C) confusion -> (..., C, 3) int64: true positives, false positives, false negatives of each class."""
    hit = matrix.diagonal(dim1=-2, dim2=-1)
    return torch.stack([hit, matrix.sum(-2) - hit, matrix.sum(-1) - hit], dim=-1)


def scores_of(matrix: Tensor) -> Scores:
    """Scores of a confusion matrix (C, C), rows = label, columns = prediction."""
    counts = matrix.cpu().numpy().astype(np.float64)
    hit, truth, predicted = counts.diagonal(), counts.sum(1), counts.sum(0)
    union = truth + predicted - hit
    iou, accuracy, precision = _share(hit, union), _share(hit, truth), _share(hit, predicted)
    total = float(truth.sum())
    return Scores(
        iou=iou,
        accuracy=accuracy,
        precision=precision,
        miou=_mean(iou),
        miou_all=float(np.nan_to_num(iou).mean()),
        absent=int((union == 0).sum()),
        pixel_accuracy=float(hit.sum() / total) if total else float("nan"),
        mean_accuracy=_mean(accuracy),
        frequency_weighted_iou=float((truth * np.nan_to_num(iou)).sum() / total) if total else float("nan"),
        pixels=int(total),
    )


def subset_mean(values_C: NDArray[np.float64], classes: Sequence[int]) -> float:
    """Mean of a score over those of ``classes`` (ids) that have one; NaN if none has.

    With the IoU, the mIoU-16 and mIoU-13 of papers on Cityscapes' 19 classes. Nothing is counted again: pixels
    predicted as an excluded class are still errors of their own class.
    """
    return _mean(values_C[list(classes)])


def merged(matrix: Tensor, groups: Sequence[Sequence[int]]) -> Tensor:
    """The confusion matrix (C, C) with each group of classes (ids) merged into one: (G, G), groups before the rest.

    A class in no group remains, in order of ids. Raises ``ValueError`` for a class in two groups.
    """
    grouped = [one for group in groups for one in group]
    if len(set(grouped)) < len(grouped):
        raise ValueError(f"class in two groups: {[list(group) for group in groups]}")
    rest = [[one] for one in range(len(matrix)) if one not in grouped]
    own_C = torch.empty(len(matrix), dtype=torch.int64)
    for number, group in enumerate([*groups, *rest]):
        own_C[list(group)] = number
    count = len(groups) + len(rest)
    own_C = own_C.to(matrix.device)
    rows_GC = matrix.new_zeros(count, len(matrix)).index_add_(0, own_C, matrix)
    return matrix.new_zeros(count, count).index_add_(1, own_C, rows_GC)


def _share(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.divide(part, whole, out=np.full_like(part, np.nan), where=whole > 0)


def _mean(values: NDArray[np.float64]) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")


def _count(prediction: Tensor, label: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """The matrix (C, C), and one invalid id each of prediction and label (``_NO_FAULT`` if there is none)."""
    check_maps(prediction, label)
    return (_count_on_cpu if label.device.type == "cpu" else _count_on_device)(prediction, label, num_classes)


def _count_on_cpu(prediction: Tensor, label: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """On bytes: ignored pixels get an extra row (255 + 1 is 0), invalid ids another row and column."""
    faults = torch.full((2,), _NO_FAULT, dtype=torch.int64)
    small = []
    for position, values in enumerate((prediction, label)):
        if values.dtype != torch.uint8 and values.numel():
            low, high = (int(bound) for bound in torch.aminmax(values))
            if low < 0 or high >= _VALUES:
                faults[position] = low if low < 0 else high
        small.append(values.to(torch.uint8))
    rows, columns = num_classes + 2, num_classes + 1
    dtype = torch.int16 if rows * columns <= torch.iinfo(torch.int16).max else torch.int32
    row = small[1].add(1).clamp_(max=min(num_classes + 1, 255)).to(dtype)
    pairs = row.mul_(columns).add_(small[0].clamp(max=num_classes))
    counts = histogram(pairs, rows * columns).view(rows, columns)
    if counts[:, -1].any() and faults[0] == _NO_FAULT:
        faults[0] = small[0].max()
    if counts[-1].any() and faults[1] == _NO_FAULT:
        faults[1] = small[1].masked_fill(small[1] == IGNORE, 0).max()
    return counts[1:-1, :-1].clone(), faults


def _count_on_device(prediction: Tensor, label: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """The same in a fixed number of kernels without synchronisation: uncounted pixels go into an extra bin."""
    pairs = num_classes * num_classes
    prediction, label = prediction.long(), label.long()
    wrong_prediction = (prediction < 0) | (prediction >= num_classes)
    unlabelled = (label < 0) | (label >= num_classes)
    wrong_label = unlabelled & (label != IGNORE)
    index = torch.where(wrong_prediction | unlabelled, pairs, label * num_classes + prediction)
    counts = histogram(index, pairs + 1)[:pairs].view(num_classes, num_classes)
    if not label.numel():
        return counts, torch.full((2,), _NO_FAULT, dtype=torch.int64, device=label.device)
    wrong = [
        torch.where(found, values, _NO_FAULT).amax()
        for found, values in ((wrong_prediction, prediction), (wrong_label, label))
    ]
    return counts, torch.stack(wrong)


def _raise_faults(faults: Tensor, num_classes: int) -> None:
    prediction, label = faults.tolist()
    if label != _NO_FAULT:
        raise TutelageError(
            "label-value",
            f"label value {label} is not in [0, {num_classes - 1}]",
            "map the file's values to class indices, and unscored pixels to 255",
        )
    if prediction != _NO_FAULT:
        raise TutelageError(
            "label-value",
            f"prediction value {prediction} is not in [0, {num_classes - 1}]",
            "score predictions of a net with the same classes; every pixel needs a class",
        )
