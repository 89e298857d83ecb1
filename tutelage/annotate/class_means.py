"""Class means of a net's features over a data set: ProDA's initial prototypes, CAG-UDA's anchors.

One vector an image and class is folded into a running mean, images in the order of the data set. The net is in
evaluation mode and images are as they are, so that a second epoch brings the same vectors: they are computed once.
"""

# Legend: N images, K classes, C channels.

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tutelage.annotate.chunks import Progress, in_parts
from tutelage.annotate.fits import RunningMeanFit
from tutelage.annotate.net_outputs import OnUnreadable, looks, missing
from tutelage.data.dataset import Dataset
from tutelage.engine import collectives
from tutelage.errors import TutelageError
from tutelage.evaluation.protocol import Protocol
from tutelage.losses.regions import class_counts, shrink_labels
from tutelage.nets.segmentor import Segmentor
from tutelage.prototypes.means import ClassMeans, class_vectors


def fit_means(
    net: Segmentor,
    dataset: Dataset,
    settings: RunningMeanFit,
    path: Path,
    parts: Path,
    *,
    device: torch.device,
    protocol: Protocol,
    on_unreadable: OnUnreadable = "error",
    progress: Progress = lambda done, total: None,
) -> dict[str, Any]:
    """Write the class means to ``path`` and give the facts; finished images are kept under ``parts`` meanwhile.

    Raises :class:`DataError` for images that cannot be read, and :class:`TutelageError` where no class has a mean.
    Source: ProDA (CVPR 2021), 3.3 of our specification; unlike its code no image is dropped at the end of an epoch.
    """
    labels, threshold = settings.opens_masks(), settings.least_confidence()
    classes = dataset.classes.names

    def make(part: range) -> dict[str, Tensor]:
        images, vectors, valid, kept, seen = [], [], [], [], []
        found = looks(net, dataset, part, protocol, device, labels=labels, on_unreadable=on_unreadable)
        for look in found:
            grid = (look.logits_1Khw.shape[2], look.logits_1Khw.shape[3])
            label_1hw = shrink_labels(look.label(), grid) if labels else None
            means = class_vectors(
                look.features_1Chw,
                look.logits_1Khw,
                label_1hw,
                threshold=threshold,
                min_pixels=settings.min_pixels,
            )
            before_1hw = look.logits_1Khw.argmax(1) if label_1hw is None else label_1hw
            images.append(look.picture.index)
            vectors.append(means.vectors.cpu())
            valid.append(means.valid.cpu())
            kept.append(means.counts.cpu())
            seen.append(class_counts(before_1hw.flatten(1), len(classes)).cpu())
        empty = torch.zeros(0, len(classes), dtype=torch.int64)
        return {
            "images": torch.tensor(images, dtype=torch.int64),
            "vectors": torch.cat(vectors or [torch.zeros(0, len(classes), net.embedding_channels)]),
            "valid": torch.cat(valid or [empty.bool()]),
            "kept": torch.cat(kept or [empty]),
            "seen": torch.cat(seen or [empty]),
        }

    means = ClassMeans(len(classes), net.embedding_channels, rule="mean", count_cap=settings.count_cap)
    found = list(in_parts(parts, "means", len(dataset), make, progress))
    for _ in range(settings.epochs):
        for part in found:
            means.fold(part["vectors"], part["valid"])
    seen_K, kept_K, images_K = (
        torch.stack([part[name].sum(0) for part in found]).sum(0).tolist() for name in ("seen", "kept", "valid")
    )
    present = means.present.tolist()
    facts = {
        "images": sum(part["images"].numel() for part in found),
        "unreadable": missing(dataset, [index for part in found for index in part["images"].tolist()]),
        "without_samples": [name for name, known in zip(classes, present, strict=True) if not known],
        "classes": {
            name: {
                "images": images_K[number],
                **retained_share(seen_K[number], kept_K[number]),
            }
            for number, name in enumerate(classes)
        },
    }
    if not any(present):
        raise TutelageError(
            "no-class-means",
            f"no class has a mean: no image has {settings.min_pixels} positions of a class that "
            f"{'are predicted correctly' if labels else 'count'}",
            "check that the net predicts anything right; lower `threshold` or `min_pixels`",
        )
    if collectives.rank() == 0:
        means.save(path, classes, facts)
    return facts


def retained_share(seen: int, kept: int) -> dict[str, Any]:
    """Positions of a class before and after the selection, and their quotient (null where there are none)."""
    return {"seen": seen, "kept": kept, "retained": round(kept / seen, 6) if seen else None}
