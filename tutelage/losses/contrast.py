"""U2PL's pieces: which pixels are sure, which are not, and what the latter are still good for.

A pixel that is too uncertain to be a pseudo label is most often certain of what it is not. So it is a negative of the
classes that it is least like, in a memory of keys. Everything has a fixed size: nothing waits for a GPU.

Legend: B images, K classes, H W pixels, P pixels of all images, N anchors and Q negatives of each, C channels,
R rows of the memory, F some ranks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from tutelage.losses.options import Indexing, NegativeRule, OneHot
from tutelage.losses.relations import unit
from tutelage.losses.segmentation import IGNORE

Draws = Callable[[Tensor, int], Tensor]
"""(counts (K,), n) -> n whole numbers (K, n) from 0 up to each count, with replacement; anything where a count is 0."""

_SMALLEST_LENGTH = 1e-8


# Sure and unsure


@torch.no_grad()
def pixel_entropy(logits_BKHW: Tensor) -> Tensor:
    """Entropy of the softmax (B, H, W) in nats. Source: U2PL's code, with its 1e-10 in the logarithm."""
    probability = logits_BKHW.float().softmax(1)
    return -(probability * (probability + 1e-10).log()).sum(1)


@torch.no_grad()
def percentile(values: Tensor, counted: Tensor, percent: float) -> Tensor:
    """The percentile (0..100) of the values that count, between order statistics by a straight line; 0 if none does.

    Exact for any number of values (a sort), on their device.
    """
    ordered = values.float().masked_fill(~counted, float("inf")).flatten().sort().values
    number = counted.sum()
    place = percent / 100 * (number - 1).clamp(min=0).double()
    below = place.floor().long()
    above = torch.minimum(below + 1, (number - 1).clamp(min=0))
    low, high = ordered.gather(0, torch.stack([below, above])).double().unbind()
    return torch.where(number > 0, low + (high - low) * (place - below), 0.0).float()


def reliable(pseudo_BHW: Tensor, entropy_BHW: Tensor, percent: float) -> Tensor:
    """Pseudo labels without those whose entropy reaches the percentile over all of them: these become 255."""
    counted = pseudo_BHW != IGNORE
    return pseudo_BHW.masked_fill(entropy_BHW >= percentile(entropy_BHW, counted, percent), IGNORE)


def reliable_cross_entropy(logits_BKHW: Tensor, pseudo_BHW: Tensor, pixels: Tensor | None = None) -> Tensor:
    """The mean cross-entropy over pseudo labels times ``pixels`` (all B H W) over their number; 0 where there is none.

    The factor is at least 1: the fewer labels are kept, the more the term weighs. Source: U2PL (CVPR 2022), its code.
    """
    kept = (pseudo_BHW != IGNORE).sum().clamp(min=1).float()
    total = F.cross_entropy(logits_BKHW.float(), pseudo_BHW, ignore_index=IGNORE, reduction="sum")
    return total / kept * ((pseudo_BHW.numel() if pixels is None else pixels) / kept)


def entropy_masks(entropy_BHW: Tensor, counted_BHW: Tensor, percent: float) -> tuple[Tensor, Tensor]:
    """Where the entropy is among the lowest, and among the highest ``percent`` of the pixels that count (B, H, W)."""
    low = entropy_BHW <= percentile(entropy_BHW, counted_BHW, percent)
    high = entropy_BHW >= percentile(entropy_BHW, counted_BHW, 100 - percent)
    return low & counted_BHW, high & counted_BHW


def one_hot(label_BHW: Tensor, classes: int, form: OneHot = "correct") -> Tensor:
    """Which class a pixel shows (B, K, H, W), bool; none where it is ignored.

    ``published`` keeps a defect of U2PL's code: the first image shows what any image of the batch shows at that place
    (an ignored pixel counts as class 0), the others show nothing; pixels that are ignored in their own image are
    cleared afterwards.
    """
    number_K11 = torch.arange(classes, device=label_BHW.device)[:, None, None]
    if form == "correct":
        return label_BHW[:, None] == number_K11
    valid_BHW = label_BHW != IGNORE
    union_KHW = (label_BHW.masked_fill(~valid_BHW, 0)[:, None] == number_K11).any(0)
    first_B = torch.arange(len(label_BHW), device=label_BHW.device) == 0
    return union_KHW & first_B[:, None, None, None] & valid_BHW[:, None]


# Contrast


class Candidates(NamedTuple):
    """The parts that pixels may take, for each class (K, P), bool."""

    anchor: Tensor
    """Sure pixels of the class, of which the student's representations are drawn."""
    centre: Tensor
    """Sure pixels of the class, of which the teacher's representations make its centre."""
    negative: Tensor
    """Pixels that are not of the class, but not the least like it either."""


@torch.no_grad()
def candidates(
    member_KP: Tensor,
    probability_KP: Tensor,
    low_P: Tensor,
    high_P: Tensor,
    labeled_P: Tensor,
    *,
    low_rank: int,
    high_rank: int,
    delta_p: float = 0.3,
    delta_n: float = 1.0,
    negatives: NegativeRule = "paper",
) -> Candidates:
    """Who may be what, from (pseudo) labels, low and high entropy, and whether the pixel's image is labelled.

    A class has the rank r at a pixel when r classes are more probable there. Negatives of the paper: uncertain pixels
    of unlabelled images where the class has a rank from ``low_rank`` to below ``high_rank``; pixels of labelled images
    that are of another class while this one has a rank below ``low_rank``. ``published`` also requires that the pixel's
    label is the class, and that its probability is below ``delta_n``: no labelled pixel can be one then.
    Source: U2PL (CVPR 2022) and its code.
    """
    rank_KP = probability_KP.argsort(stable=True, dim=0, descending=True).argsort(0)
    of_labeled = (rank_KP < low_rank) & ~member_KP
    of_unlabeled = (rank_KP >= low_rank) & (rank_KP < high_rank)
    negative = torch.where(labeled_P, of_labeled, of_unlabeled) & high_P
    if negatives == "published":
        negative = negative & member_KP & (probability_KP < delta_n)
    centre = member_KP & low_P
    return Candidates(centre & (probability_KP > delta_p), centre, negative)


def below(numbers_KF: Tensor, count_K: Tensor) -> Tensor:
    """Rounded down, and kept below each count whatever rounding did before."""
    return torch.minimum(numbers_KF.long(), (count_K - 1).clamp(min=0)[:, None])


def positions(mask_KP: Tensor, rank_KF: Tensor) -> Tensor:
    """Where the r-th set place of each row lies (K, F); the last place of all where it has none."""
    found = torch.searchsorted(mask_KP.cumsum(1), rank_KF + 1)
    return found.clamp(max=mask_KP.shape[1] - 1)


@torch.no_grad()
def centres(teacher_PC: Tensor, centre_KP: Tensor) -> Tensor:
    """Mean representation of each class (K, C); 0 for a class without a pixel."""
    return centre_KP.float() @ teacher_PC.float() / centre_KP.sum(1, keepdim=True).clamp(min=1)


def memory_contrast(
    student_PC: Tensor,
    teacher_PC: Tensor,
    chosen: Candidates,
    memory_RC: Tensor,
    first_K: Tensor,
    number_K: Tensor,
    draws: Draws,
    *,
    anchors: int,
    negatives: int,
    temperature: float,
    indexing: Indexing = "corrected",
) -> Tensor:
    """InfoNCE of each class's anchors: towards the centre of the class, away from its remembered negatives.

    The rows of class k lie in ``memory`` from ``first`` on, ``number`` of them. The mean over anchors is summed over
    the classes that have anchors and negatives, and divided by the number of classes with a sure pixel. 0 if that is
    one or none. ``draws`` is called twice: for anchors, and for negatives, those of the first anchor first.

    ``published`` indexing keeps a defect of U2PL's code: where classes are absent, the i-th present class lends its
    negatives to the anchors and the centre of class i. Source: U2PL (CVPR 2022) and its code.
    """
    present_K = chosen.centre.any(1)
    anchor_count_K, number = chosen.anchor.sum(1), present_K.sum()
    own_K = torch.arange(len(present_K), device=present_K.device)
    bank_K, taking_part_K = own_K, present_K
    if indexing == "published":
        bank_K, taking_part_K = (~present_K).long().argsort(stable=True), own_K < number
    active_K = taking_part_K & (anchor_count_K > 0) & (number_K[bank_K] > 0)

    place_KN = positions(chosen.anchor, draws(anchor_count_K, anchors))
    slot_KNQ = draws(number_K[bank_K], anchors * negatives).view(-1, anchors, negatives)
    row_KNQ = (first_K[bank_K, None, None] + slot_KNQ).clamp(0, len(memory_RC) - 1)
    anchor_KNC = unit(student_PC[place_KN])
    negative_KNQC = memory_RC[row_KNQ].float()
    length_KNQ = torch.linalg.vector_norm(negative_KNQC, dim=3).clamp(min=_SMALLEST_LENGTH)
    near_KN1 = (anchor_KNC * unit(centres(teacher_PC, chosen.centre))[:, None]).sum(2, keepdim=True)
    far_KNQ = torch.einsum("knc,knqc->knq", anchor_KNC, negative_KNQC) / length_KNQ
    similarity = torch.cat([near_KN1, far_KNQ], 2) / temperature
    loss_K = (similarity.logsumexp(2) - similarity[..., 0]).mean(1)
    loss = torch.where(active_K, loss_K, 0.0).sum() / number.clamp(min=1)
    return torch.where(number > 1, loss, 0.0)
