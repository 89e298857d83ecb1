"""Distillation losses on logits and features. The teacher's maps get no gradient; all is computed in float32."""

# Legend: B batch, K classes, C channels, h w positions of a map's grid, P = h w, H W the label's grid.

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from tutelage.losses.precision import in_float32
from tutelage.losses.regions import class_counts, class_means, membership, shrink_labels
from tutelage.losses.relations import unit


@in_float32
def pixel_kd(student_BKhw: Tensor, teacher_BKhw: Tensor, temperature: float = 1.0) -> Tensor:
    """T^2 times the mean over all B h w positions of KL(softmax(teacher/T) || softmax(student/T)).

    No ignore mask: padded and unlabelled positions count. Source: the classic 2015 form, per pixel, as in CIRKD.
    """
    positions = student_BKhw.numel() // student_BKhw.shape[1]
    return temperature**2 * _divergence(student_BKhw / temperature, teacher_BKhw / temperature, 1) / positions


@in_float32
def probability_mse(student_BKhw: Tensor, teacher_BKhw: Tensor) -> Tensor:
    """Mean over all B K h w elements of the squared difference of softmax probabilities; no gradient to the teacher."""
    with torch.no_grad():
        target = teacher_BKhw.softmax(1)
    return F.mse_loss(student_BKhw.softmax(1), target)


@in_float32
def cwd(
    student_BChw: Tensor,
    teacher_BChw: Tensor,
    temperature: float = 4.0,
    divisor: int | None = None,
    mode: Literal["channel", "spatial", "channel_mean"] = "channel",
) -> Tensor:
    """T^2 / (B divisor) times the sum over images and channels of KL(softmax_hw(teacher/T) || softmax_hw(student/T)).

    ``divisor``: by default the channels that are compared; the published code takes the student's before alignment.
    ``mode``: ``spatial`` is softmax over channels instead, mean over B h w (pixel KD). ``channel_mean`` feeds means
    over positions, divided by T, to KL as they are: no distribution, negative or NaN, kept for its golden file.
    Source: channel-wise distillation (ICCV 2021).
    """
    if mode == "spatial":
        return pixel_kd(student_BChw, teacher_BChw, temperature)
    images, channels = teacher_BChw.shape[:2]
    scale = temperature**2 / (images * (divisor or channels))
    student, teacher = student_BChw.flatten(2) / temperature, teacher_BChw.flatten(2) / temperature
    if mode == "channel":
        return scale * _divergence(student, teacher, 2)
    mean_S, mean_T = student.mean(2), teacher.detach().mean(2)
    return scale * (mean_T * (mean_T.log() - mean_S.log())).sum()


def _divergence(student: Tensor, teacher: Tensor, dim: int) -> Tensor:
    """KL(softmax(teacher) || softmax(student)) along ``dim``, summed over everything else."""
    target = F.log_softmax(teacher.detach(), dim)
    return F.kl_div(F.log_softmax(student, dim), target, reduction="sum", log_target=True)


@in_float32
def dist(
    student_BKhw: Tensor, teacher_BKhw: Tensor, inter: float = 1.0, intra: float = 1.0, temperature: float = 1.0
) -> Tensor:
    """T^2 (inter (1 - mean over positions of r over classes) + intra (1 - mean over classes of r over positions)).

    r is Pearson's correlation of softmax(teacher/T) and softmax(student/T), with 1e-8 added to the product of both
    lengths; positions are those of the whole batch. A vector that does not vary (one position alone) has no
    correlation: 0 without gradient, and nothing to learn where it is the teacher's.
    Source: DIST (NeurIPS 2022), and hunto/DIST_KD, segmentation/losses/dist_kd.py.
    """
    student = (student_BKhw / temperature).softmax(1).transpose(0, 1).flatten(1)  # (K, B h w)
    teacher = (teacher_BKhw.detach() / temperature).softmax(1).transpose(0, 1).flatten(1)
    between, within = _uncorrelated(student, teacher, 0), _uncorrelated(student, teacher, 1)
    return temperature**2 * (inter * between + intra * within)


def _uncorrelated(student: Tensor, teacher: Tensor, dim: int) -> Tensor:
    """1 - the mean of Pearson's correlations along ``dim``."""
    mine, varies = _centred(student, dim)
    theirs, matters = _centred(teacher, dim)
    # Clamped, since a root at 0 has no gradient, and 0 times infinity is NaN.
    lengths = mine.square().sum(dim).clamp(min=1e-24).sqrt() * theirs.square().sum(dim).clamp(min=1e-24).sqrt()
    correlation = torch.where(varies, (mine * theirs).sum(dim) / (lengths + 1e-8), 0.0)
    return torch.where(matters, 1.0 - correlation, 0.0).mean()


def _centred(values: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Values less their mean along ``dim``, and where these are more than rounding."""
    centred = values - values.mean(dim, keepdim=True)
    with torch.no_grad():
        varies = centred.square().sum(dim) > 1e-12 * values.square().sum(dim)
    return centred, varies


@in_float32
def fitnet(student_BChw: Tensor, teacher_BChw: Tensor) -> Tensor:
    """Mean over all B C h w elements of the squared difference. Source: FitNets (ICLR 2015), one stage."""
    return F.mse_loss(student_BChw, teacher_BChw.detach())


@in_float32
def mgd(generated_BChw: Tensor, teacher_BChw: Tensor) -> Tensor:
    """Sum of squared differences, divided by the images alone, as published: it grows with the map and its channels.

    Source: masked generative distillation (ECCV 2022), and yzd-v/MGD, seg/mmseg/distillation/losses/mgd.py.
    """
    return F.mse_loss(generated_BChw, teacher_BChw.detach(), reduction="sum") / teacher_BChw.shape[0]


@in_float32
def skd_pairwise(student_BChw: Tensor, teacher_BChw: Tensor, pool: int = 2) -> Tensor:
    """Mean over images and pairs of positions of the squared difference of cosine similarities.

    Maps are max-pooled by ``pool`` first (the last window may be cut). Channels may differ; memory is (h w / pool^2)^2
    an image. A zero vector is similar to nothing and gets no gradient.
    Source: structured knowledge distillation (CVPR 2019), pair-wise term, as in CIRKD.
    """

    def similarities(feature_BChw: Tensor) -> Tensor:
        nodes_BCP = unit(F.max_pool2d(feature_BChw, pool, ceil_mode=True).flatten(2), dim=1)
        return nodes_BCP.transpose(1, 2) @ nodes_BCP

    return F.mse_loss(similarities(student_BChw), similarities(teacher_BChw.detach()))


@in_float32
def ifvd(student_BChw: Tensor, teacher_BChw: Tensor, label_BHW: Tensor, classes: int) -> Tensor:
    """Mean over ALL B h w positions of the squared difference of cos(feature, its class's mean in the same image).

    Gradient flows through the student's means too. Positions whose label is not in 0..classes-1 contribute 0 but count
    in the mean. Channels may differ. Source: intra-class feature variation distillation (ECCV 2020), as in CIRKD.
    """
    label_BP = shrink_labels(label_BHW, (student_BChw.shape[2], student_BChw.shape[3])).flatten(1)
    counts_BK = class_counts(label_BP, classes)
    member_BKP = membership(label_BP, classes)

    def typicality(feature_BChw: Tensor) -> Tensor:
        feature_BPC = feature_BChw.flatten(2).transpose(1, 2)
        # The 1e-6 that the published code adds to the count changes the mean's length, which a cosine does not see.
        mean_BKC = class_means(feature_BPC, label_BP, counts_BK)
        cosine_BKP = unit(mean_BKC) @ unit(feature_BPC).transpose(1, 2)
        return (cosine_BKP * member_BKP).sum(1)

    return F.mse_loss(typicality(student_BChw), typicality(teacher_BChw.detach()))
