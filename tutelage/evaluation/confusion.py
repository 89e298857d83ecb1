"""The confusion matrix and the scores that are read off it.

Both conventions of the mean IoU are always given: over the classes that occur (in the truth or in the
prediction), and over all classes with an absent one counted as 0, as several published codes do. On COCO-Stuff,
where 11 of 182 ids never occur, the two differ by a factor of 171 / 182.

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
    """What a confusion matrix says. Shares are in 0..1; NaN where there is nothing to divide by."""

    iou: NDArray[np.float64]
    """(C,) intersection over union; NaN for a class that occurs neither in the truth nor in the prediction."""
    accuracy: NDArray[np.float64]
    """(C,) share of a class's true pixels that were found (recall); NaN without true pixels."""
    precision: NDArray[np.float64]
    """(C,) share of the pixels called a class that are it; NaN if it was never predicted."""
    miou: float
    """Mean IoU over the classes that occur."""
    miou_all: float
    """Mean IoU over all C classes, an absent one counting 0 (the convention of several published codes)."""
    absent: int
    """How many classes occur neither in the truth nor in the prediction."""
    pixel_accuracy: float
    """Share of the labelled pixels that are right."""
    mean_accuracy: float
    """Mean of ``accuracy`` over the classes with true pixels."""
    frequency_weighted_iou: float
    """IoU weighted by each class's share of the true pixels."""
    pixels: int
    """How many labelled pixels were counted."""


class Confusion:
    """A streaming confusion matrix: rows are the truth, columns the prediction; ignored truth is left out.

    On an accelerator nothing waits for the device while counting, so that a wrong id is reported when the matrix
    is read, not when it is counted.
    """

    def __init__(self, num_classes: int, device: torch.device | str = "cpu") -> None:
        check_class_count(num_classes)
        self.num_classes = num_classes
        self._matrix = torch.zeros((num_classes, num_classes), dtype=torch.int64, device=device)
        self._faults = torch.full((2,), _NO_FAULT, dtype=torch.int64, device=device)

    def update(self, prediction: Tensor, label: Tensor) -> None:
        """Count one image (H, W) or a batch (B, H, W) of class ids: uint8, int16, int32 or int64, 255 = ignored.

        A label outside 0..C-1 other than 255, or a prediction outside 0..C-1, is a :class:`TutelageError`.
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
        """(C, C) int64, rows = truth, columns = prediction. Waits for the device to check the ids counted so far."""
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
    """Read the scores off a confusion matrix (C, C), rows = truth, columns = prediction."""
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
    """Mean of a score over those of ``classes`` (ids) that have one; NaN where none has.

    With the IoU: what papers call mIoU-16 and mIoU-13 of Cityscapes' 19 classes. Nothing is counted anew, so that
    pixels that were taken for a class that is left out are still errors of the class that they are.
    """
    return _mean(values_C[list(classes)])


def merged(matrix: Tensor, groups: Sequence[Sequence[int]]) -> Tensor:
    """The confusion matrix (C, C) with the classes (ids) of each group taken as one: (G, G), groups before the rest.

    A class in no group stays one by itself, in order of ids. ``ValueError`` for a class in two groups.
    """
    grouped = [one for group in groups for one in group]
    if len(set(grouped)) < len(grouped):
        raise ValueError(f"a class stands in two groups: {[list(group) for group in groups]}")
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
    """The matrix (C, C), and one wrong id each of the prediction and of the label (``_NO_FAULT`` if there is none)."""
    check_maps(prediction, label)
    return (_count_on_cpu if label.device.type == "cpu" else _count_on_device)(prediction, label, num_classes)


def _count_on_cpu(prediction: Tensor, label: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """On bytes: ignored pixels get a row of their own (255 + 1 is 0), wrong ids another row and a column."""
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
    """The same in a fixed number of kernels, none of which waits: what is not counted goes into one bin more."""
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
