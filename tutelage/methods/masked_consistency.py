"""Masked consistency: the net predicts the hidden blocks of a target image from their context.

    L = w sum over pixels of q CE(student(m x_T), y_T) / their number

m hides most blocks of the target image; y_T and q are pseudo labels of the whole image by a moving average of the
student, and the share of them that is sure. Hidden and visible pixels count alike. A method that holds this term has a
pass `masked` for it; every method that mixes domains can hold it, and so can AdvEnt and MinEnt.
Source: MIC (CVPR 2023) and its code.

Legend: B images, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from tutelage.data.batch import Batch, View
from tutelage.data.mixing.blocks import block_masks, draw_grids, hidden
from tutelage.data.mixing.recolour import draw_colours, recoloured
from tutelage.data.settings import ColourSettings
from tutelage.engine.contract import StepContext
from tutelage.losses.consistency import pseudo_label
from tutelage.losses.segmentation import weighted_cross_entropy
from tutelage.methods.settings.masked_consistency import MaskedConsistencySettings


class TargetPseudoLabels(NamedTuple):
    """Pseudo labels of the target images of a micro-batch."""

    label_BHW: Tensor
    """int64 classes."""
    sure_BHW: Tensor
    """bool: whether the confidence reaches the threshold, and the image is not padding."""
    valid_BHW: Tensor
    """bool: where the image is not padding."""

    def share(self, context: StepContext) -> Tensor:
        """The weight q of every pixel (B, H, W): the share of sure pixels in the whole step; 0 in the padding."""
        return self.valid_BHW * (context.totals["sure"] / context.totals["shown"].clamp(min=1))


class AverageLabels:
    """Pseudo labels by a moving average, computed once for each micro-batch of a step."""

    def __init__(self, threshold: float, logits_of: Callable[[View], Tensor]) -> None:
        self.threshold = threshold
        self.logits_of = logits_of
        self._known: dict[int, tuple[Batch, TargetPseudoLabels]] = {}

    def counts(self, target: Batch) -> dict[str, Tensor]:
        """Label the images anew: how many pixels are shown, and how many of them are sure."""
        pseudo = self._label(target)
        return {"sure": pseudo.sure_BHW.sum(), "shown": pseudo.valid_BHW.sum()}

    def of(self, target: Batch) -> TargetPseudoLabels:
        """The pseudo labels that the counts of this step were made of."""
        batch, pseudo = self._known.get(id(target), (None, None))
        return self._label(target) if pseudo is None or batch is not target else pseudo

    def forget(self) -> None:
        """Drop the labels of a step, before the average follows the student."""
        self._known.clear()

    def _label(self, target: Batch) -> TargetPseudoLabels:
        view = target["weak"]
        with torch.no_grad():
            label_BHW, confidence_BHW = pseudo_label(self.logits_of(view))
        pseudo = TargetPseudoLabels(label_BHW, (confidence_BHW >= self.threshold) & view.valid, view.valid)
        self._known[id(target)] = (target, pseudo)
        return pseudo


def masked_images(
    target: Batch, settings: MaskedConsistencySettings, colour: ColourSettings, fill_13: Tensor, context: StepContext
) -> Tensor:
    """The target images (B, 3, H, W), recoloured, with most blocks hidden; ``fill``: the mean colour of the net."""
    image_B3HW, positions = target["weak"].image, target.positions.tolist()
    if settings.colours:
        image_B3HW = recoloured(image_B3HW, draw_colours(colour, context.seed, "masked", context.step, positions))
    size = (image_B3HW.shape[2], image_B3HW.shape[3])
    uniform_Bhw = draw_grids(context.seed, "masked", positions, size, settings.block, image_B3HW.device)
    return hidden(image_B3HW, block_masks(uniform_Bhw, size, settings.ratio), fill_13)


def mixed_loss(logits_BKHW: Tensor, label_BHW: Tensor, weight_BHW: Tensor) -> Tensor:
    """Sum of weight times cross-entropy over valid labels, divided by the number of ALL pixels, valid or not.

    It grows with the weights and with the share of valid labels; exactly 0 without any. Source: DACS (WACV 2021),
    equation 5 and its code.
    """
    return weighted_cross_entropy(logits_BKHW, label_BHW, weight_BHW, normalizer=number_of(label_BHW))


def number_of(label_BHW: Tensor) -> Tensor:
    """The number of all pixels, labelled or not (0-d float)."""
    return torch.full((), float(label_BHW.numel()), device=label_BHW.device)
