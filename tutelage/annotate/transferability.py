"""BiSMAP's source transferability maps: how much of each source image looks like anything in the target.

Features of the target give k-means centres; the distance of a source image's cells to the nearest one, relative to the
mean distance, gives a weight, and classes that a net is unsure of have a bonus. One 8-bit map an image is written.
"""

# Legend: I source images in order, h w cells of an image, H W its label, K classes, M centres, C channels.

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tutelage.annotate.chunks import Progress, in_parts
from tutelage.annotate.fits import TransferabilityFit
from tutelage.annotate.net_outputs import OnUnreadable, missing, pictures
from tutelage.annotate.published_classes import by_class
from tutelage.data.dataset import Dataset
from tutelage.data.weights import WeightFolder
from tutelage.engine import collectives
from tutelage.errors import TutelageError
from tutelage.evaluation.image_view import ImageView
from tutelage.nets.segmentor import Segmentor
from tutelage.prototypes.kmeans import kmeans
from tutelage.prototypes.reservoir import Reservoir
from tutelage.prototypes.storage import save_tensors
from tutelage.prototypes.transferability import (
    ENTROPY_GTA5,
    ENTROPY_SYNTHIA,
    as_bytes,
    cell_distances,
    cell_weights,
    class_bonus,
    running_mean,
    weight_map,
)

_BATCH = 8
_PART = 256
_CELLS = 1 << 20  # a row's number is image x this + its cell


def fit_transferability(
    net: Segmentor,
    source: Dataset,
    target: Dataset,
    settings: TransferabilityFit,
    path: Path,
    folder: WeightFolder,
    parts: Path,
    *,
    device: torch.device,
    seed: int,
    entropy: tuple[Tensor, Tensor] | None = None,
    on_unreadable: OnUnreadable = "error",
    progress: Progress = lambda done, total: None,
) -> tuple[list[Path], dict[str, Any]]:
    """Write centres, distances and scales to ``path`` and one map an image into ``folder``; the files, and the facts.

    ``net`` is in evaluation mode; only its encoder is used. ``entropy``: mean entropy (K) and pixels (K) of the
    classes, computed by a fit. Raises :class:`DataError` for images that cannot be read, :class:`TutelageError` for a
    pool that is larger than the features. Source: BiSMAP, 3.1 of our specification.
    """
    bonus_K = _bonus(settings, entropy, source.classes.names)
    total = len(target) + 2 * len(source)
    before = [0]

    def counted(done: int, of: int) -> None:
        progress(before[0] + done, total)

    def see_target(part: range) -> dict[str, Tensor]:
        found = _features(net, target, part, settings, device, on_unreadable)
        return {"images": _numbers(found), "features": _stacked([features for _, features in found])}

    sample, target_seen = None, []
    for part in in_parts(parts, "target", len(target), see_target, counted, _PART):
        features_IChw = part["features"]
        if not features_IChw.shape[0]:
            continue
        sample = sample or Reservoir(1, features_IChw.shape[1], settings.rows, seed=seed)
        cells = features_IChw[0, 0].numel()
        rows_NC = features_IChw.movedim(1, -1).flatten(0, 2)
        number_N = (part["images"][:, None] * _CELLS + torch.arange(cells)).flatten()
        sample.add(rows_NC, torch.zeros(rows_NC.shape[0], dtype=torch.int64), number_N)
        target_seen += part["images"].tolist()
    if sample is None:
        raise TutelageError(
            "image-unreadable", f"no image of {target.name} could be read", "run `tutelage check` on it"
        )
    clusters = kmeans(sample.rows(0), settings.centres, seed=seed, owner="the target's features")
    centres_MC = clusters.centres_MC
    before[0] = len(target)

    def see_source(part: range) -> dict[str, Tensor]:
        found = _features(net, source, part, settings, device, on_unreadable, labels=True)
        features_IChw = _stacked([features for _, features in found])
        distance = cell_distances(features_IChw, centres_MC) if found else torch.zeros(0, 1, 1)
        return {"images": _numbers(found), "distance": distance}

    found = [part for part in in_parts(parts, "source", len(source), see_source, counted, _PART) if len(part["images"])]
    if not found:
        raise TutelageError(
            "image-unreadable", f"no image of {source.name} could be read", "run `tutelage check` on it"
        )
    seen = torch.cat([part["images"] for part in found])
    distance_Ihw = torch.cat([part["distance"] for part in found])
    if settings.scale == "ema":
        scale_I = running_mean(distance_Ihw, momentum=settings.momentum)
    else:
        scale_I = distance_Ihw.double().mean().expand(len(seen))
    weight_Ihw = cell_weights(distance_Ihw, scale_I)
    before[0] += len(source)
    _write_maps(source, seen, weight_Ihw, bonus_K, folder, on_unreadable, counted)
    collectives.barrier()
    names = [source.samples[index].name for index in seen.tolist()]
    facts = {
        "images": len(seen),
        "unreadable": missing(source, seen.tolist()),
        "unreadable_target": missing(target, target_seen),
        "features": sample.counts()[0],
        "centres": int(centres_MC.shape[0]),
        "rounds": clusters.rounds,
        "mean_distance": round(float(distance_Ihw.double().mean()), 6),
        "mean_weight": round(float(weight_Ihw.double().mean()), 6),
        "bonus": dict(zip(source.classes.names, (round(value, 6) for value in bonus_K.tolist()), strict=True)),
    }
    if collectives.rank():
        return [], facts
    tensors = {"centres": centres_MC, "images": seen, "distance": distance_Ihw, "scale": scale_I, "bonus": bonus_K}
    save_tensors(path, TransferabilityFit.file_kind, tensors, {"classes": list(source.classes.names), "facts": facts})
    return [path, *folder.finish(names)], facts


def _bonus(settings: TransferabilityFit, entropy: tuple[Tensor, Tensor] | None, classes: Sequence[str]) -> Tensor:
    """What is added to the weight of each class (K), 0..1."""
    if entropy is not None:
        # A class that nothing is predicted as has no entropy: it has no bonus, and is not the lowest.
        entropy_K, known_K = entropy[0].double(), entropy[1] > 0
        bonus_K = torch.zeros_like(entropy_K)
        if bool(known_K.any()):
            bonus_K[known_K] = class_bonus(entropy_K[known_K])
        return bonus_K
    if settings.bonus == "none":
        return torch.zeros(len(classes), dtype=torch.float64)
    published = {"gta5": ENTROPY_GTA5, "synthia": ENTROPY_SYNTHIA}
    given_K = by_class(published, settings.bonus, classes, "bonus")
    assert given_K is not None
    return class_bonus(given_K)


@torch.no_grad()
def _features(
    net: Segmentor,
    dataset: Dataset,
    part: range,
    settings: TransferabilityFit,
    device: torch.device,
    on_unreadable: OnUnreadable,
    *,
    labels: bool = False,
) -> list[tuple[int, Tensor]]:
    """Number and features (1, C, h, w), on the CPU, of each image of the part that can be read."""
    waiting: list[tuple[int, Tensor]] = []
    result: list[tuple[int, Tensor]] = []

    def see() -> None:
        if waiting:
            features_BChw = _pooled(net, torch.cat([image for _, image in waiting]).to(device), settings).cpu()
            result.extend((waiting[place][0], features_BChw[place : place + 1]) for place in range(len(waiting)))
            waiting.clear()

    for picture in pictures(dataset, part, labels=labels, on_unreadable=on_unreadable):
        waiting.append((picture.index, ImageView(picture.image, settings.size).whole()))
        if len(waiting) == _BATCH:
            see()
    see()
    return result


def _pooled(net: Segmentor, image_B3HW: Tensor, settings: TransferabilityFit) -> Tensor:
    """The encoder's last level, cut to the image and averaged over the pool, float32."""
    stride = net.feature_strides[-1]
    height, width = (-(-side // stride) for side in image_B3HW.shape[2:])
    level_BChw = net.encode(image_B3HW).levels[-1][..., :height, :width].float()
    down, across = settings.pool
    if down > level_BChw.shape[2] or across > level_BChw.shape[3]:
        raise TutelageError(
            "invalid-value",
            f"pool {list(settings.pool)} is larger than the features of images of {list(settings.size)}: "
            f"{list(level_BChw.shape[2:])}",
            "choose a larger size or a smaller pool",
        )
    return F.avg_pool2d(level_BChw, settings.pool)


def _stacked(features: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(features)) if features else torch.zeros(0, 1, 1, 1)


def _numbers(found: Sequence[tuple[int, Tensor]]) -> Tensor:
    return torch.tensor([index for index, _ in found], dtype=torch.int64)


def _write_maps(
    source: Dataset,
    seen: Tensor,
    weight_Ihw: Tensor,
    bonus_K: Tensor,
    folder: WeightFolder,
    on_unreadable: OnUnreadable,
    progress: Progress,
) -> None:
    """One map for each image that was seen; those that are there already are left."""
    mine = list(range(len(seen)))[collectives.rank() :: collectives.world()]
    place_of = {int(seen[place]): place for place in mine}
    todo = [index for index in place_of if not folder.map(source.samples[index].name).is_file()]
    for done, picture in enumerate(pictures(source, todo, labels=True, on_unreadable=on_unreadable), 1):
        assert picture.label is not None
        label_1HW = torch.from_numpy(picture.label)[None]
        weight_1hw = weight_Ihw[place_of[picture.index]][None]
        map_1HW = as_bytes(weight_map(weight_1hw, label_1HW, bonus_K))
        folder.write(source.samples[picture.index].name, map_1HW[0].numpy())
        progress(len(mine) - len(todo) + done, len(mine))
