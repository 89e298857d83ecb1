"""BiSMAP's source transferability maps: the similarity of a cell of a source image to the target.

k-means centres of target features judge source features; a cell at the mean distance has the weight 1/2, and classes
that a net is unsure of have a bonus. Pure functions; the centres come from :mod:`~tutelage.prototypes.kmeans`.

Legend: I source images in order, h w cells of an image, H W its label, K classes, M centres, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tutelage.losses.regions import shrink_labels
from tutelage.prototypes.kmeans import nearest_distance

# Mean entropies of some model that the code does not name, in the order of Cityscapes' 19 classes; 0: class absent.
ENTROPY_GTA5 = (
    0.1502, 0.2935, 0.1362, 0.4436, 0.4393, 0.2795, 0.3139, 0.3106, 0.1068, 0.3195,
    0.0719, 0.2364, 0.4754, 0.0986, 0.3673, 0.4127, 0.4826, 0.5645, 0.6694,
)  # fmt: skip
ENTROPY_SYNTHIA = (
    0.1039, 0.1333, 0.0960, 0.4322, 0.4646, 0.2801, 0.3994, 0.3480, 0.1437, 0.0,
    0.1032, 0.2556, 0.4076, 0.1399, 0.0, 0.3501, 0.0, 0.5117, 0.4416,
)  # fmt: skip


def cell_distances(features_IChw: Tensor, centres_MC: Tensor) -> Tensor:
    """The distance of each cell's feature to the nearest centre: (I, h, w)."""
    rows = features_IChw.movedim(1, -1)
    return nearest_distance(rows.flatten(0, 2), centres_MC).view(rows.shape[:3])


def running_mean(distance_Ihw: Tensor, *, momentum: float = 0.99, before: float | None = None) -> Tensor:
    """D after each image (I), float64: the first image's mean, then momentum x D + (1 - momentum) x the image's mean.

    It depends on the order of images. ``before``: D after the images that came earlier.
    """
    result = []
    for mean in distance_Ihw.double().mean((1, 2)).tolist():
        before = mean if before is None else momentum * before + (1 - momentum) * mean
        result.append(before)
    return torch.tensor(result, dtype=torch.float64, device=distance_Ihw.device)


def cell_weights(distance_Ihw: Tensor, scale_I: Tensor) -> Tensor:
    """2^-(d / D)^2 (I, h, w): 1/2 at the distance D; 1 at the distance 0, also where D is 0.

    ``scale_I``: :func:`running_mean`, or one mean over all images, which does not depend on their order.
    """
    scale = scale_I.to(distance_Ihw.dtype)[:, None, None]
    ratio = torch.where(distance_Ihw > 0, distance_Ihw / scale, 0.0)
    return torch.exp2(-ratio.square())


def class_bonus(entropy_K: Tensor) -> Tensor:
    """Entropies stretched to 0..1; all 0 where they are equal."""
    lowest, highest = entropy_K.aminmax()
    return (entropy_K - lowest) / (highest - lowest).clamp(min=torch.finfo(entropy_K.dtype).tiny)


def entropy_sums(logits_BKHW: Tensor) -> tuple[Tensor, Tensor]:
    """The summed entropy in nats of the pixels predicted as each class (K) float64, and their number (K) int64.

    Added up over images, their quotient is what :func:`class_bonus` takes, in place of the published numbers.
    """
    classes = logits_BKHW.shape[1]
    log_probability = logits_BKHW.float().log_softmax(1)
    entropy = -(log_probability.exp() * log_probability).sum(1)
    member_KP = logits_BKHW.argmax(1).flatten() == torch.arange(classes, device=logits_BKHW.device)[:, None]
    return member_KP.double() @ entropy.flatten().double(), member_KP.sum(1)


def weight_map(weight_Ihw: Tensor, label_IHW: Tensor, bonus_K: Tensor) -> Tensor:
    """clip(weight + the bonus of the label, 0, 1) at the size of the labels (I, H, W); no bonus for 255 and the like.

    Cells are enlarged by the nearest, index floor(i h / H).
    """
    large = shrink_labels(weight_Ihw, (label_IHW.shape[1], label_IHW.shape[2]))
    label = label_IHW.long()
    known = (label >= 0) & (label < bonus_K.shape[0])
    bonus = torch.where(known, bonus_K.to(large)[label.where(known, 0)], 0.0)
    return (large + bonus).clamp(0, 1)


def as_bytes(weight_IHW: Tensor) -> Tensor:
    """floor(255 w), uint8: how a map is stored. Read it back by dividing by 255."""
    return (weight_IHW * 255).to(torch.uint8)
