"""Choosing among checkpoints without labels: figures of a net's predictions; higher is better.

    agreement   mean IoU of its labels with those of the mirrored image, over all K classes
    balance     (H(mean of p) - mean of H(p)) / ln K: certain for each pixel, and many classes over all of them
    entropy     -(mean of H(p)) / ln K: certain

None is a score, and each can be misled. Entropy is lowest for a net that predicts one class everywhere. Balance is
the objective of clustering by information maximisation (Krause, Perona and Gomes, NeurIPS 2010); it rewards many
classes of equal size, whatever the images show. Agreement counts 0 for a class that is never predicted, so that a net
of one class gets 1 / K; but a net may make the same error in the mirrored image.

Figures are collected per image: sums do not depend on how images are distributed over processes.

Letters: N images, K classes, H x W pixels, n rows of a band.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tutelage.evaluation.confusion import confusion_of, counts_of
from tutelage.evaluation.inference import SegmentationModel, gives_probabilities, predict_labels, score_bands
from tutelage.evaluation.protocol import Protocol

Rule = Literal["agreement", "balance", "entropy"]


def mirror_counts(
    net: SegmentationModel, image: NDArray[np.uint8], protocol: Protocol, device: torch.device, classes: int
) -> NDArray[np.float64]:
    """(3 K,) pixels per class of one image's labels: in both, only in the mirrored, only in the plain labels."""
    plain_HW, _ = predict_labels(net, image, protocol, device)
    mirrored_HW, _ = predict_labels(net, np.ascontiguousarray(image[:, ::-1]), protocol, device)
    back_HW = np.ascontiguousarray(mirrored_HW[:, ::-1])
    matrix_KK = confusion_of(torch.from_numpy(back_HW), torch.from_numpy(plain_HW), classes)
    counts: NDArray[np.float64] = counts_of(matrix_KK).cpu().numpy().astype(np.float64).ravel()
    return counts


def agreement(rows_NC: NDArray[np.float64]) -> float:
    """Mean over all K classes of the IoU of two sets of labels, from :func:`mirror_counts` of N images; in 0..1."""
    counts_K3 = rows_NC.sum(0).reshape(-1, 3)
    union_K = counts_K3.sum(1)
    return float(np.divide(counts_K3[:, 0], union_K, out=np.zeros(len(union_K)), where=union_K > 0).mean())


def sureness(
    net: SegmentationModel, image: NDArray[np.uint8], protocol: Protocol, device: torch.device
) -> NDArray[np.float64]:
    """(K + 2,) per image: sum of each class's probability, sum of entropies in nats, number of pixels."""
    total: Tensor | None = None
    for _, scores_1KnW in score_bands(net, image, protocol, device):
        if gives_probabilities(protocol):
            log_KnW = scores_1KnW[0].clamp_min(torch.finfo(scores_1KnW.dtype).tiny).log()
        else:
            log_KnW = scores_1KnW[0].log_softmax(dim=0)
        share_KnW, width = log_KnW.exp(), log_KnW.shape[2]
        entropy_nW = -(share_KnW * log_KnW).sum(0)
        # Band by band on the net's device, then in double precision on the CPU: not every device supports it.
        rows = torch.cat([share_KnW.sum(2), entropy_nW.sum(1)[None], torch.full_like(entropy_nW.sum(1)[None], width)])
        band = rows.cpu().double().sum(1)
        total = band if total is None else total + band
    assert total is not None
    row: NDArray[np.float64] = total.numpy()
    return row


def entropy(rows_NC: NDArray[np.float64]) -> float:
    """Mean entropy of all pixels over its maximum (0: certain everywhere), from :func:`sureness` of N images."""
    total = rows_NC.sum(0)
    return float(total[-2] / total[-1] / _most(len(total) - 2))


def balance(rows_NC: NDArray[np.float64]) -> float:
    """Entropy of the mean prediction minus the mean entropy, over the maximum; in 0..1."""
    total = rows_NC.sum(0)
    share_K = total[:-2] / total[:-2].sum()
    named_K = share_K[share_K > 0]
    return float(-(named_K * np.log(named_K)).sum() / _most(len(share_K))) - entropy(rows_NC)


def _most(classes: int) -> float:
    return math.log(classes) if classes > 1 else 1.0
