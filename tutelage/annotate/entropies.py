"""How unsure a net is of the pixels that it takes for a class: the mean entropy of each class over a data set."""

# Legend: K classes, n rows of a band.

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tutelage.annotate.chunks import Progress, in_parts
from tutelage.annotate.fits import EntropiesFit
from tutelage.annotate.net_outputs import OnUnreadable, missing, pictures
from tutelage.data.dataset import Dataset
from tutelage.engine import collectives
from tutelage.evaluation.inference import SegmentationModel, gives_probabilities, score_bands
from tutelage.evaluation.protocol import Protocol
from tutelage.prototypes.storage import save_tensors
from tutelage.prototypes.transferability import entropy_sums


def fit_entropies(
    net: SegmentationModel,
    dataset: Dataset,
    path: Path,
    parts: Path,
    *,
    device: torch.device,
    protocol: Protocol,
    on_unreadable: OnUnreadable = "error",
    progress: Progress = lambda done, total: None,
) -> dict[str, Any]:
    """Write `entropy` (K) float64, 0 where nothing is predicted, and `pixels` (K) to ``path``; give the facts.

    Raises :class:`DataError` for images that cannot be read. Source: BiSMAP, 3.1 of our specification ("compute").
    """
    classes = dataset.classes.names

    def make(part: range) -> dict[str, Tensor]:
        images = []
        sum_K = torch.zeros(len(classes), dtype=torch.float64)
        pixels_K = torch.zeros(len(classes), dtype=torch.int64)
        for picture in pictures(dataset, part, on_unreadable=on_unreadable):
            images.append(picture.index)
            for _, scores_1KnW in score_bands(net, picture.image, protocol, device):
                logits = scores_1KnW.clamp(min=1e-30).log() if gives_probabilities(protocol) else scores_1KnW
                sums, counts = entropy_sums(logits)
                sum_K += sums.cpu()
                pixels_K += counts.cpu()
        return {"images": torch.tensor(images, dtype=torch.int64), "sum": sum_K, "pixels": pixels_K}

    found = list(in_parts(parts, "entropies", len(dataset), make, progress))
    sum_K = torch.stack([part["sum"] for part in found]).sum(0)
    pixels_K = torch.stack([part["pixels"] for part in found]).sum(0)
    entropy_K = sum_K / pixels_K.clamp(min=1)
    facts = {
        "images": sum(part["images"].numel() for part in found),
        "unreadable": missing(dataset, [index for part in found for index in part["images"].tolist()]),
        "without_samples": [name for name, pixels in zip(classes, pixels_K.tolist(), strict=True) if not pixels],
        "classes": {
            name: {"pixels": int(pixels), "entropy": round(float(entropy), 6) if pixels else None}
            for name, pixels, entropy in zip(classes, pixels_K.tolist(), entropy_K.tolist(), strict=True)
        },
    }
    if collectives.rank() == 0:
        tensors = {"entropy": entropy_K, "pixels": pixels_K}
        save_tensors(path, EntropiesFit.file_kind, tensors, {"classes": list(classes), "facts": facts})
    return facts
