"""ProDA's losses on a target without masks: what makes noisy pseudo labels bearable, and what structure adds.

Symmetric cross-entropy adds to cross-entropy its reverse, which is linear in the probability of other classes, so that
a wrong label cannot cost without bound. A regularizer keeps the net from being too sure, on all pixels. The structure
term makes two views agree on how far a pixel is from every prototype.

Labels are 255 where ignored; where all are, what reads labels is exactly 0. All is computed in float32.

Legend: B images, K classes, H W the grid of logits and labels, h w that of features.
"""

from __future__ import annotations

import math

from torch import Tensor

from tutelage.losses.distillation import pixel_kd
from tutelage.losses.options import DivergenceForm, Regularizer
from tutelage.losses.precision import in_float32
from tutelage.losses.segmentation import IGNORE, cross_entropy

_LEAST_PROBABILITY, _LEAST_TRUTH = 1e-7, 1e-4


@in_float32
def reverse_cross_entropy(logits_BKHW: Tensor, label_BHW: Tensor, *, normalizer: Tensor | None = None) -> Tensor:
    """-log 1e-4 = 9.21 times the probability of all classes but the label's, mean over valid labels; 0 without any.

    It is - sum p log q with the one-hot label q held above 1e-4 and the softmax p above 1e-7 (below, no gradient).
    ``normalizer``: what the sum is divided by instead of the number of valid labels; 1e-6 is added, as published.
    Source: symmetric cross-entropy (ICCV 2019), as in ProDA's code.
    """
    valid_BHW = label_BHW != IGNORE
    probability = logits_BKHW.softmax(1).clamp(_LEAST_PROBABILITY, 1.0)
    own_B1HW = label_BHW.masked_fill(~valid_BHW, 0)[:, None]
    # Left out rather than subtracted: near certainty the difference of the sums would be rounding.
    wrong_BHW = probability.scatter(1, own_B1HW, 0.0).sum(1)
    number = valid_BHW.sum() if normalizer is None else normalizer
    return -math.log(_LEAST_TRUTH) * (wrong_BHW * valid_BHW).sum() / (number + 1e-6)


def symmetric_cross_entropy(
    logits_BKHW: Tensor,
    label_BHW: Tensor,
    *,
    alpha: float = 0.1,
    beta: float = 1.0,
    normalizer: Tensor | None = None,
) -> Tensor:
    """alpha times cross-entropy plus beta times reverse cross-entropy, each a mean over valid labels.

    ``normalizer``: what both sums are divided by instead of the number of valid labels. Source: ProDA (CVPR 2021).
    """
    forward = cross_entropy(logits_BKHW, label_BHW, normalizer=normalizer)
    return alpha * forward + beta * reverse_cross_entropy(logits_BKHW, label_BHW, normalizer=normalizer)


@in_float32
def confidence_regularizer(logits_BKHW: Tensor, kind: Regularizer = "mrkld") -> Tensor:
    """Grows as the softmax p gets sure. ``mrkld``: mean over B K H W of -log p; ``mrent``: over B H W of sum p log p.

    All pixels count, labelled or not. Source: confidence regularized self-training (ICCV 2019), as in ProDA's code.
    """
    log_probability = logits_BKHW.log_softmax(1)
    if kind == "mrkld":
        return -log_probability.mean()
    return (log_probability.exp() * log_probability).sum(1).mean()


@in_float32
def structure_divergence(
    student_BKhw: Tensor,
    teacher_BKhw: Tensor,
    counted_BKhw: Tensor,
    temperature: float = 1.0,
    normalizer: Tensor | None = None,
) -> Tensor:
    """KL(softmax(-T teacher) || softmax(-T student)) of distances to prototypes, summed where it counts.

    The divisor is the number of elements that count, classes included: with all K of a pixel it is 1 / K of a mean over
    pixels. ``counted``: (B, K, h, w), or (B, 1, h, w) for all classes alike. ``normalizer``: another divisor. 0 where
    nothing counts. No gradient to the teacher. Source: ProDA (CVPR 2021), structure learning, its code.
    """
    counted_BKhw = counted_BKhw.bool().expand_as(student_BKhw)
    # Whatever stands where nothing counts: NaN would reach the gradient, if only as 0 NaN.
    known_BKhw = teacher_BKhw.detach().masked_fill(~counted_BKhw.any(1, keepdim=True), 0.0)
    target = (-temperature * known_BKhw).log_softmax(1)
    found = (-temperature * student_BKhw).log_softmax(1)
    difference = target.exp() * (target - found)
    number = counted_BKhw.sum() if normalizer is None else normalizer
    return difference.masked_fill(~counted_BKhw, 0.0).sum() / number.clamp(min=1e-12)


@in_float32
def mean_kd(student_BKhw: Tensor, teacher_BKhw: Tensor, form: DivergenceForm = "log") -> Tensor:
    """Mean over B K h w of p_T (log p_T - log p_S), of logits: 1 / K of pixel KD. No gradient to the teacher.

    ``code`` has p_S in place of log p_S: its gradient merely rewards overlap, the loss may be negative.
    Source: ProDA (CVPR 2021), stages 2 and 3, and its code.
    """
    if form == "log":
        return pixel_kd(student_BKhw, teacher_BKhw) / student_BKhw.shape[1]
    target = teacher_BKhw.detach().log_softmax(1)
    return (target.exp() * (target - student_BKhw.softmax(1))).mean()
