"""Scoring a net on a data set: one pass over the images, all figures streamed.

True positives, false positives and false negatives by class are kept per image: enough to draw intervals over images
or blocks, and to compare two nets on the same images. Counts of merged classes are kept too: they cannot be computed
from those of their parts.
"""

# Legend: B images, K classes, G classes after merging, H W pixels, N images of the data set.

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tutelage.data.dataset import Dataset
from tutelage.engine import collectives
from tutelage.engine.allocator import keep_freed_memory
from tutelage.errors import DataError, RunError
from tutelage.evaluation.boundary import BoundaryIoU
from tutelage.evaluation.calibration import Calibration
from tutelage.evaluation.class_groups import ClassGroups, class_ids, merged_names
from tutelage.evaluation.confusion import (
    Confusion,
    confusion_of,
    counts_of,
    merged,
    scores_of,
    subset_mean,
)
from tutelage.evaluation.inference import SegmentationModel, predict_logits
from tutelage.evaluation.intervals import bootstrap_miou
from tutelage.evaluation.protocol import Protocol
from tutelage.runs.atomic import write_json, writing

_PIXELS_AT_ONCE = 1 << 20
_AHEAD = 8


@dataclass(frozen=True)
class Evaluation:
    """All results of one pass over a data set."""

    confusion: Confusion
    counts_NK3: NDArray[np.int64]
    names: tuple[str, ...]
    groups: tuple[str, ...]
    boundary: BoundaryIoU | None = None
    calibration: Calibration | None = None
    merged_NG3: NDArray[np.int64] | None = None
    """Per-image counts with several classes merged: the groups, then the classes in none."""

    @property
    def miou(self) -> float:
        """Mean IoU over the classes that occur."""
        return self.confusion.scores().miou


def evaluate(
    net: SegmentationModel,
    dataset: Dataset,
    protocol: Protocol,
    *,
    device: torch.device,
    boundary: bool = False,
    calibration: bool = False,
    merged_as: ClassGroups | None = None,
    indices: Sequence[int] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    observe: Callable[[Tensor, Tensor], None] = lambda logits, label: None,
) -> Evaluation:
    """Score ``net`` (in evaluation mode) on the labelled ``dataset``, or on its samples at ``indices``.

    Several processes share the images, and each gets the exact whole. ``merged_as``: classes to count as one in
    addition. ``observe`` gets the logits (B, K, H, W) and the label (B, H, W) of each batch of this process, in the
    order of its share (every world-th sample from its rank on). Raises :class:`DataError` for unreadable files and for
    images whose mask has another size, :class:`RecipeError` for unknown classes.
    """
    dataset.require_labels(f"evaluation, data set {dataset.name!r}")
    if device.type == "cpu":
        keep_freed_memory()
    chosen = list(range(len(dataset))) if indices is None else list(indices)
    mine = chosen[collectives.rank() :: collectives.world()]
    classes = len(dataset.classes)
    confusion = Confusion(classes, device)
    edges = BoundaryIoU(classes, device=device) if boundary else None
    reliability = Calibration(device=device) if calibration else None
    groups = list(class_ids(merged_as or {}, dataset.classes.names, "merged").values())
    after = merged_names(merged_as, dataset.classes.names, "merged") if merged_as else []
    counts = []
    done = 0
    for image_BHW3, label_BHW in _batches(dataset, mine):
        image = image_BHW3.to(device).permute(0, 3, 1, 2).float().div_(255.0)
        label = label_BHW.to(device)
        logits_BKHW = predict_logits(net, image, protocol)
        prediction = logits_BKHW.argmax(1)
        for one, truth in zip(prediction, label, strict=True):
            matrix = confusion_of(one, truth, classes)
            confusion.add(matrix)
            own_counts = counts_of(matrix)
            counts.append(torch.cat([own_counts, counts_of(merged(matrix, groups))]) if groups else own_counts)
        if edges is not None:
            edges.update(prediction, label)
        if reliability is not None:
            reliability.update(logits_BKHW, label)
        observe(logits_BKHW, label)
        done += len(image)
        progress(min(done * collectives.world(), len(chosen)), len(chosen))
    shape = (0, classes + len(after), 3)
    own = torch.stack(counts) if counts else torch.zeros(shape, dtype=torch.int64, device=device)
    order = torch.tensor([chosen.index(i) for i in mine], dtype=torch.int64, device=device)
    places, gathered = collectives.gather_rows(order), collectives.gather_rows(own)
    all_counts = gathered[places.argsort()].cpu().numpy()
    return Evaluation(
        confusion.all_reduce(),
        all_counts[:, :classes],
        tuple(dataset.samples[i].name for i in chosen),
        tuple(dataset.samples[i].group for i in chosen),
        None if edges is None else edges.all_reduce(),
        None if reliability is None else reliability.all_reduce(),
        all_counts[:, classes:] if groups else None,
    )


def _batches(dataset: Dataset, indices: Sequence[int]) -> Iterator[tuple[Tensor, Tensor]]:
    """Images (B, H, W, 3) and labels (B, H, W), read ahead; neighbours of one size share a batch."""

    def read(index: int) -> tuple[np.ndarray, np.ndarray]:
        image, label = dataset.image(index), dataset.label(index)
        if image.shape[:2] != label.shape:
            sample = dataset.samples[index]
            raise DataError(
                "size-mismatch",
                f"image and mask differ in size: {sample.image} is {image.shape[1]}x{image.shape[0]}, "
                f"{sample.label} is {label.shape[1]}x{label.shape[0]}",
                "run `tutelage check`, which lists all such pairs with likely reasons",
            )
        return image, label

    waiting: list[tuple[np.ndarray, np.ndarray]] = []

    def flush() -> tuple[Tensor, Tensor]:
        images, labels = zip(*waiting, strict=True)
        waiting.clear()
        return torch.from_numpy(np.stack(images)), torch.from_numpy(np.stack(labels))

    with ThreadPoolExecutor(1) as pool:
        pending = [pool.submit(read, index) for index in indices[:_AHEAD]]
        for number in range(len(indices)):
            image, label = pending.pop(0).result()
            if number + _AHEAD < len(indices):
                pending.append(pool.submit(read, indices[number + _AHEAD]))
            if waiting and (label.shape != waiting[0][1].shape or (len(waiting) + 1) * label.size > _PIXELS_AT_ONCE):
                yield flush()
            waiting.append((image, label))
        if waiting:
            yield flush()


def summary(
    evaluation: Evaluation,
    dataset: Dataset,
    protocol: Protocol,
    *,
    subsets: ClassGroups | None = None,
    merged_as: ClassGroups | None = None,
) -> dict[str, Any]:
    """All figures for JSON, with the identity of protocol and data.

    ``subsets``: classes for additional mean IoUs; ``merged_as``: classes to score as one in addition.
    """
    scores = evaluation.confusion.scores()
    result: dict[str, Any] = {
        "protocol": {"key": protocol.key(), "text": protocol.describe(), "settings": protocol.canonical()},
        "data": {"name": dataset.name, "fingerprint": dataset.fingerprint, "images": len(evaluation.names)},
        "classes": list(dataset.classes.names),
        "palette": [list(colour) for colour in dataset.classes.palette],
        "miou": scores.miou,
        "miou_all": scores.miou_all,
        "absent": scores.absent,
        "miou_interval": _interval(evaluation.counts_NK3, evaluation.groups),
        "pixel_accuracy": scores.pixel_accuracy,
        "mean_accuracy": scores.mean_accuracy,
        "frequency_weighted_iou": scores.frequency_weighted_iou,
        "iou": _listed(scores.iou),
        "accuracy": _listed(scores.accuracy),
        "precision": _listed(scores.precision),
        "confusion": evaluation.confusion.matrix.cpu().tolist(),
    }
    if subsets:
        chosen = class_ids(subsets, dataset.classes.names, "subsets")
        result["subsets"] = {
            name: {
                "classes": list(subsets[name]),
                "miou": subset_mean(scores.iou, ids),
                "miou_interval": _interval(evaluation.counts_NK3[:, ids], evaluation.groups),
            }
            for name, ids in chosen.items()
        }
    if merged_as:
        result["merged"] = _merged(evaluation, dataset.classes.names, merged_as)
    if evaluation.boundary is not None:
        edges = evaluation.boundary.scores()
        result["boundary"] = {"miou": edges.miou, "iou": _listed(edges.iou)}
    if evaluation.calibration is not None:
        reliability = evaluation.calibration.scores()
        result["calibration"] = {
            "error": reliability.error,
            "confidence": _listed(reliability.confidence),
            "accuracy": _listed(reliability.accuracy),
            "count": _listed(reliability.count),
            "negative_log_likelihood": reliability.negative_log_likelihood,
        }
    return {name: _plain(value) for name, value in result.items()}


def _interval(counts_NK3: NDArray[np.int64], groups: Sequence[str]) -> dict[str, Any]:
    found = asdict(bootstrap_miou(counts_NK3, blocks_of(groups)))
    return {name: value for name, value in found.items() if name != "estimate"}


def _merged(evaluation: Evaluation, classes: Sequence[str], groups: ClassGroups) -> dict[str, Any]:
    """Scores of the merged classes: the groups, then the classes in none."""
    names = merged_names(groups, classes, "merged")
    scores = scores_of(merged(evaluation.confusion.matrix, list(class_ids(groups, classes, "merged").values())))
    counts_NG3 = evaluation.merged_NG3
    return {
        "classes": names,
        "groups": {name: list(members) for name, members in groups.items()},
        "iou": _listed(scores.iou),
        "miou": scores.miou,
        "miou_interval": None if counts_NG3 is None else _interval(counts_NG3, evaluation.groups),
    }


def under_names(content: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The content of a score file with other names of its classes, in their order."""
    new = dict(zip(content["classes"], names, strict=True))

    def renamed(part: Mapping[str, Any]) -> dict[str, Any]:
        groups = {name: [new.get(one, one) for one in members] for name, members in part.get("groups", {}).items()}
        classes = [one if one in groups else new.get(one, one) for one in part["classes"]]
        return {**part, "classes": classes, **({"groups": groups} if groups else {})}

    merged_classes = content.get("merged")
    return {
        **content,
        "classes": list(names),
        "subsets": {name: renamed(part) for name, part in content.get("subsets", {}).items()},
        "merged": None if merged_classes is None else renamed(merged_classes),
    }


def blocks_of(groups: Sequence[str]) -> list[str] | None:
    """Block names for the bootstrap if the images belong to at least two groups, else ``None``."""
    return list(groups) if len(set(groups)) > 1 else None


def write_evaluation(score: Path, counts: Path, content: dict[str, Any], evaluation: Evaluation) -> None:
    """Write the figures as JSON and the per-image counts as npz; equal content gives equal bytes."""
    arrays: dict[str, Any] = {
        "counts": evaluation.counts_NK3.astype(np.int64),
        "names": np.array(evaluation.names),
        "groups": np.array(evaluation.groups),
    }
    if evaluation.merged_NG3 is not None:
        arrays["merged"] = evaluation.merged_NG3.astype(np.int64)
    with writing(counts) as partial, open(partial, "wb") as file:
        np.savez_compressed(file, **arrays)
    write_json(score, content)


@dataclass(frozen=True)
class Counts:
    """Per-image counts as :func:`write_evaluation` stored them."""

    counts_NK3: NDArray[np.int64]
    names: tuple[str, ...]
    groups: tuple[str, ...]
    merged_NG3: NDArray[np.int64] | None = None
    """With several classes merged into one; None if nothing was merged."""


def read_counts(path: Path) -> Counts:
    """Read per-image counts. Raises :class:`RunError` for a missing or damaged file."""
    try:
        with np.load(path, allow_pickle=False) as content:
            return Counts(
                content["counts"],
                tuple(map(str, content["names"])),
                tuple(map(str, content["groups"])),
                content.get("merged"),
            )
    except (OSError, ValueError, KeyError) as error:
        raise RunError(
            "file-damaged", f"cannot read per-image counts: {path} ({error})", "run the evaluation again"
        ) from None


def _plain(value: Any) -> Any:
    """JSON has no NaN: undefined values become null."""
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    return None if isinstance(value, float) and np.isnan(value) else value


def _listed(values: NDArray[np.float64]) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in values]
