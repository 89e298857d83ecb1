"""One mean a class: how ProDA and CAG-UDA find prototypes, and how ProDA moves them while a net trains.

Nothing here waits for a GPU, so that a method may call it in every step.

Legend: B images, K classes, C channels, h w the grid of features and logits, P positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from tutelage.losses.regions import class_counts, class_means, membership
from tutelage.losses.segmentation import IGNORE
from tutelage.prototypes.settings import MEANS_KIND
from tutelage.prototypes.storage import load_tensors, save_tensors

Rule = Literal["mean", "average", "auto"]
"""How a vector is folded into a prototype: as a running mean whose count is capped, into a moving average, or as a mean
as long as there are few vectors and into a moving average afterwards."""


class ClassVectors(NamedTuple):
    """Means of a class in an image."""

    vectors: Tensor
    """(B, K, C) float32; 0 where not valid. Differentiable."""

    valid: Tensor
    """(B, K) bool."""

    counts: Tensor
    """(B, K) int64: the positions that were averaged."""


def correct_labels(logits_BKhw: Tensor, label_Bhw: Tensor | None = None) -> Tensor:
    """The predicted class (B, h, w); with labels 255 where the prediction differs. The first of equal logits counts.

    ``label_Bhw`` lies on the grid of the logits: ``losses.regions.shrink_labels`` brings labels there.
    """
    predicted = logits_BKhw.argmax(1)
    return predicted if label_Bhw is None else predicted.masked_fill(predicted != label_Bhw, IGNORE)


def class_vectors(
    features_BChw: Tensor,
    logits_BKhw: Tensor,
    label_Bhw: Tensor | None = None,
    *,
    threshold: float | None = None,
    min_pixels: int = 10,
) -> ClassVectors:
    """The mean feature of each class in each image, over the positions where it is predicted (and labelled).

    ``threshold``: only positions whose largest probability reaches it. A class is not valid that has no position, or
    fewer than ``min_pixels`` before the threshold is applied. Source: ProDA's code; with labels, CAG-UDA's anchors.
    """
    classes = logits_BKhw.shape[1]
    label_BP = correct_labels(logits_BKhw, label_Bhw).flatten(1)
    before_BK = class_counts(label_BP, classes)
    if threshold is None:
        counts_BK = before_BK
    else:
        confidence_BP = logits_BKhw.detach().float().softmax(1).amax(1).flatten(1)
        label_BP = label_BP.masked_fill(confidence_BP < threshold, IGNORE)
        counts_BK = class_counts(label_BP, classes)
    valid_BK = (counts_BK > 0) & (before_BK >= min_pixels)
    with torch.autocast(features_BChw.device.type, enabled=False):
        vectors_BKC = class_means(features_BChw.flatten(2).transpose(1, 2), label_BP, counts_BK)
    return ClassVectors(vectors_BKC.where(valid_BK[..., None], 0.0), valid_BK, counts_BK)


class ClassMeans(nn.Module):
    """A prototype a class, in buffers: a checkpoint of the method that holds it holds them.

    Vectors are folded in one after the other, images in order; a class without a valid vector stays as it is.
    """

    prototypes: Tensor
    counts: Tensor

    def __init__(
        self,
        classes: int,
        channels: int,
        *,
        rule: Rule = "mean",
        rate: float = 1e-4,
        count_cap: int = 3000,
        mean_until: int = 100,
    ) -> None:
        """``rate``: the weight of a new vector in a moving average; ``count_cap``: beyond it a running mean forgets,
        too; ``mean_until``: vectors after which ``auto`` changes its rule. The defaults are ProDA's.
        """
        super().__init__()
        self.rule: Rule = rule
        self.rate, self.count_cap, self.mean_until = rate, count_cap, mean_until
        self.register_buffer("prototypes", torch.zeros(classes, channels))
        self.register_buffer("counts", torch.zeros(classes))

    @property
    def present(self) -> Tensor:
        """Which classes have a prototype: (K) bool."""
        return self.counts > 0

    @torch.no_grad()
    def fold(self, vectors_BKC: Tensor, valid_BK: Tensor, rule: Rule | None = None) -> None:
        """Fold in vectors, images in order, by ``rule`` or the module's own.

        As published, a vector whose channels sum to exactly 0 is left out; so is one that is not finite. Processes must
        hand over the same vectors: ``collectives.gather_equal`` of both arguments, before the call.
        """
        rule = rule or self.rule
        vectors_BKC = vectors_BKC.float()
        sums_BK = vectors_BKC.sum(2)
        valid_BK = valid_BK.bool() & (sums_BK != 0) & vectors_BKC.isfinite().all(2)
        for vectors_KC, valid_K in zip(vectors_BKC, valid_BK, strict=True):
            count_K1 = self.counts[:, None]
            mean = (self.prototypes * count_K1 + vectors_KC) / (count_K1 + 1)
            average = (1 - self.rate) * self.prototypes + self.rate * vectors_KC
            if rule == "auto":
                average = torch.where(count_K1 < self.mean_until, mean, average)
            folded = mean if rule == "mean" else average
            self.prototypes.copy_(torch.where(valid_K[:, None], folded, self.prototypes))
            self.counts.copy_(torch.where(valid_K, (self.counts + 1).clamp(max=self.count_cap), self.counts))

    def save(self, path: Path, classes: Sequence[str], facts: dict[str, Any] | None = None) -> None:
        """Write prototypes and counts to a safetensors file, atomically, with names, a checksum and JSON-able facts."""
        about = {"classes": list(classes), "facts": facts or {}}
        save_tensors(path, MEANS_KIND, {"prototypes": self.prototypes, "counts": self.counts}, about)

    def load(self, path: Path) -> tuple[tuple[str, ...], dict[str, Any]]:
        """Take over prototypes and counts from a file; its class names and facts.

        TutelageError for a file that is missing, damaged or of another kind; ValueError for other shapes.
        """
        tensors, about = load_tensors(path, MEANS_KIND)
        if tensors["prototypes"].shape != self.prototypes.shape:
            raise ValueError(
                f"{path} holds prototypes {tuple(tensors['prototypes'].shape)}, not {tuple(self.prototypes.shape)}"
            )
        self.prototypes.copy_(tensors["prototypes"])
        self.counts.copy_(tensors["counts"])
        return tuple(about["classes"]), dict(about["facts"])


def class_rows(features_BChw: Tensor, label_Bhw: Tensor, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows (N, C) of the positions that have a class, in float32, their classes and their numbers in the batch.

    For a :class:`~tutelage.prototypes.reservoir.Reservoir`; ``label_Bhw`` from :func:`correct_labels`. A number is
    image x positions + position. Waits for the device. Source: BiSMAP, stage C.
    """
    known = membership(label_Bhw.flatten(1), classes).any(1).flatten()
    number = known.nonzero()[:, 0]
    positions = label_Bhw[0].numel()
    image, place = number // positions, number % positions
    return features_BChw.flatten(2)[image, :, place].float(), label_Bhw.flatten()[number], number
