"""The scores of one net on one image, computed when a label policy reads them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tutelage.annotate.net_outputs import ImageWithMask, look
from tutelage.evaluation.inference import SegmentationModel, gives_probabilities, predict_labels, score_bands
from tutelage.evaluation.protocol import Protocol
from tutelage.nets.segmentor import Segmentor


@dataclass(frozen=True)
class ImageScores:
    """A net on an image (H, W, 3) under a protocol; evaluated lazily."""

    net: SegmentationModel
    image_HW3: NDArray[np.uint8]
    protocol: Protocol
    device: torch.device

    @property
    def size(self) -> tuple[int, int]:
        """H and W."""
        return self.image_HW3.shape[0], self.image_HW3.shape[1]

    @property
    def are_probabilities(self) -> bool:
        """Whether :meth:`bands` yields probabilities; logits otherwise."""
        return gives_probabilities(self.protocol)

    def labels(self) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Class and confidence (255 = 1) of every pixel, both (H, W)."""
        label_HW, confidence_HW = predict_labels(self.net, self.image_HW3, self.protocol, self.device, confidence=True)
        assert confidence_HW is not None
        return label_HW, confidence_HW

    def bands(self) -> Iterator[tuple[int, Tensor]]:
        """(first row, scores (K, n, W)) from the top to the bottom; a yielded band is the caller's to change."""
        for start, scores_1KnW in score_bands(self.net, self.image_HW3, self.protocol, self.device):
            yield start, scores_1KnW[0]

    def features(self) -> Tensor:
        """The classifier's input (1, C, h, w), float32."""
        image = ImageWithMask(0, self.image_HW3, None)
        return look(cast(Segmentor, self.net), image, self.protocol, self.device).features_1Chw
