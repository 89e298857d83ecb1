"""ClassMix across domains: the pixels of half of a source image's classes are pasted into a target image.

    chosen   ceil(n / 2) of the n labels that occur, drawn without replacement; the ignored label counts as a label
    mask     true where the source image has a chosen label

The labels that occur are those of the image itself (DACS) or of the whole batch (DAFormer, where an image's mask may
then be nearly empty). A draw is a function of a seed and an image's position in its stream, computed on the host to
avoid synchronising with the device.

Legend: B images, H W pixels, L = K + 1 labels (the last is the ignored one).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from tutelage.data.draws import generator
from tutelage.data.settings import ClassesFrom


def draw_scores(seed: int, stream: str, positions: Iterable[int], labels: int, device: torch.device) -> Tensor:
    """Draw a random score (B, L) for each label at each position of a stream; the smallest scores are chosen."""
    scores = [generator(seed, stream, "classmix", position).random(labels, dtype=np.float32) for position in positions]
    return torch.from_numpy(np.stack(scores)).to(device, non_blocking=True)


def class_masks(label_BHW: Tensor, score_BL: Tensor, classes_from: ClassesFrom = "image") -> Tensor:
    """Masks (B, H, W), bool: true where an image has one of its chosen labels.

    Of the n labels that occur, the ceil(n / 2) with the smallest scores are chosen. Labels from L - 1 on count as one,
    the ignored label. Source: ClassMix (WACV 2021), as in the code of DACS (WACV 2021) and DAFormer (CVPR 2022).
    """
    labels = score_BL.shape[1]
    index_BHW = label_BHW.clamp(max=labels - 1)
    flat_BP = index_BHW.flatten(1)
    # One pass per label: comparing all at once would allocate L maps.
    present_BL = torch.stack([(flat_BP == label).any(1) for label in range(labels)], dim=1)
    if classes_from == "batch":
        present_BL = present_BL.any(0, keepdim=True).expand_as(present_BL)
    number_B1 = present_BL.sum(1, keepdim=True)
    rank_BL = score_BL.masked_fill(~present_BL, float("inf")).argsort(stable=True, dim=1).argsort(1)
    chosen_BL = present_BL & (rank_BL < (number_B1 + 1) // 2)
    mask_BHW: Tensor = chosen_BL.gather(1, flat_BP).view_as(label_BHW)
    return mask_BHW
