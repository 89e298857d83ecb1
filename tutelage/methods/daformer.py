"""DAFormer: DACS with a slower average, and an encoder kept close to its ImageNet features on thing classes.

    source   L = CE(x_S, y_S) + f mean over cells of things of || F(x_S) - F_0(x_S) ||
    mixed    as DACS; the pasted classes are half of those of the whole source batch

F: the encoder's last features; F_0: those of the encoder as it started (its ImageNet weights). The average follows at
the start of step t >= 1 with min(1 - 1/(t + 1), 0.999), which is at the end of the step before. Sampling rare classes
is a setting of the source stream. See :mod:`tutelage.methods.mixed_self_training`.
Source: DAFormer (CVPR 2022) and its code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from tutelage.engine.contract import TaskInfo
from tutelage.errors import RecipeError
from tutelage.losses.feature_distance import feature_distance, majority_label, things_mask
from tutelage.methods.ema import twin
from tutelage.methods.mixed_self_training import MixedSelfTraining
from tutelage.methods.settings.daformer import DAFormerSettings
from tutelage.nets.segmentor import Prediction, Segmentor


class DAFormer(MixedSelfTraining):
    """DACS with a feature distance that keeps the encoder close to its start on thing classes."""

    Settings = DAFormerSettings
    origin: Segmentor | None
    thing_K: Tensor

    def __init__(self, nets: Mapping[str, Segmentor], settings: DAFormerSettings, info: TaskInfo) -> None:
        super().__init__(nets, settings, info)
        self.distance = settings.feature_distance
        self.origin = None
        if self.distance is not None:
            self.origin = _encoder_of(self.student)
            self.register_buffer("thing_K", _things(self.distance.things, info))

    def feature_distance_terms(
        self, prediction: Prediction, image_B3hw: Tensor, label_BHW: Tensor
    ) -> dict[str, Tensor]:
        """The feature distance."""
        if self.distance is None or self.origin is None:
            return {}
        feature_BChw = prediction.features[-1]
        height, width = feature_BChw.shape[2:]
        with torch.no_grad():
            origin_BChw = self.origin.encode(image_B3hw).levels[-1][..., :height, :width]
        # The features may be those of a smaller image than the labels are.
        stride = self.student.feature_strides[-1] * -(-label_BHW.shape[1] // image_B3hw.shape[2])
        cells_Bhw = majority_label(label_BHW, stride, self.classes, self.distance.share)
        mask_Bhw = things_mask(cells_Bhw, self.thing_K)
        return {"feature_distance": self.distance.weight * feature_distance(feature_BChw, origin_BChw, mask_Bhw)}


def _encoder_of(net: Segmentor) -> Segmentor:
    """A frozen copy of a net that can only encode, in evaluation mode for good."""
    kept = twin(net)
    kept.decoder, kept.classifier, kept.auxiliary = nn.Identity(), nn.Identity(), None  # type: ignore[assignment]
    return kept.mode(norm="running", dropout=False)


def _things(chosen: Sequence[int | str] | None, info: TaskInfo) -> Tensor:
    """(K,) bool: whether a class is a thing."""
    thing_K = torch.full((info.classes,), chosen is None)
    for name in chosen or ():
        number = info.names.index(name) if name in info.names else name
        if not isinstance(number, int) or not 0 <= number < info.classes:
            raise RecipeError(
                "unknown-class",
                f"invalid class {name!r} in feature_distance.things: expected "
                + (f"one of {', '.join(info.names)}" if info.names else f"a number from 0 to {info.classes - 1}"),
                "correct the name, or leave it out",
            )
        thing_K[number] = True
    return thing_K
