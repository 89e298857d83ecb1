"""HRDA: DAFormer on large crops: the whole crop at half scale, and a window of it at full scale.

    source, mixed    L = (1 - d) CE(fused) + d CE(detail, the window's labels and weights)

The net is one of two resolutions (:mod:`tutelage.nets.multi_resolution`): a head on the features of the half-scale
image weighs, class by class, the window against the context. The window is drawn once for each pass and micro-batch.
The average labels target images with windows all over them. The feature distance is that of the half-scale image.
Source: HRDA (ECCV 2022) and its code.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from tutelage.data.batch import View
from tutelage.data.draws import generator
from tutelage.engine.contract import StepContext, TaskInfo
from tutelage.errors import RecipeError
from tutelage.losses.segmentation import cross_entropy
from tutelage.methods.daformer import DAFormer
from tutelage.methods.masked_consistency import mixed_loss, number_of
from tutelage.methods.settings.hrda import HRDASettings
from tutelage.nets.multi_resolution import MultiResolution, Window, WindowedPrediction, in_two_resolutions
from tutelage.nets.segmentor import Segmentor


class HRDA(DAFormer):
    """DAFormer for details and context: a whole image at half scale, a window of it at full scale."""

    Settings = HRDASettings

    def __init__(self, nets: Mapping[str, Segmentor], settings: HRDASettings, info: TaskInfo) -> None:
        super().__init__({"student": in_two_resolutions(nets["student"], settings.multi_resolution)}, settings, info)
        self.detail_weight = settings.detail_weight

    def source_terms(self, view: View, context: StepContext) -> dict[str, Tensor]:
        """The terms of a source batch: of the fused logits, and of the window."""
        output, box = self._forward_with_window(view.image, context)
        terms = self.supervised(output.context._replace(logits=output.logits), view, context)
        terms = {name: (1.0 - self.detail_weight) * value for name, value in terms.items()}
        label_BHW = _part(view.label, box)
        number = number_of(label_BHW) if self.mixing.reduction == "all" else None
        detail = cross_entropy(self._over_window(output, label_BHW), label_BHW, normalizer=number)
        terms["detail"] = self.detail_weight * detail
        net = self._net()
        return {**terms, **self.feature_distance_terms(output.context, net.halved(view.image), view.label)}

    def pseudo_label_loss(
        self, image_B3HW: Tensor, label_BHW: Tensor, weight_BHW: Tensor, context: StepContext
    ) -> Tensor:
        """The loss of the fused logits and of the window against (pseudo) labels."""
        output, box = self._forward_with_window(image_B3HW, context)
        whole = mixed_loss(self.logits_at_image_size(output.logits, image_B3HW), label_BHW, weight_BHW)
        label_BHW = _part(label_BHW, box)
        detail = mixed_loss(self._over_window(output, label_BHW), label_BHW, _part(weight_BHW, box))
        return (1.0 - self.detail_weight) * whole + self.detail_weight * detail

    def _net(self) -> MultiResolution:
        assert isinstance(self.student, MultiResolution)
        return self.student

    def _forward_with_window(self, image_B3HW: Tensor, context: StepContext) -> tuple[WindowedPrediction, Window]:
        """The prediction of images with a random window, and the window."""
        net, size = self._net(), (image_B3HW.shape[2], image_B3HW.shape[3])
        if size[0] % net.unit or size[1] % net.unit:
            raise RecipeError(
                "crop-multiple",
                f"the sides of crops must be multiples of {net.unit}, got {size[0]} x {size[1]}",
                f"set augment.crop to such multiples, e.g. [{_near(size[0], net.unit)}, {_near(size[1], net.unit)}]",
            )
        draw = generator(context.seed, f"hrda/{context.pass_name}/{context.slice}", "window", context.step)
        height, width = net.window_of(size)
        top, left = (
            int(draw.integers((whole - side) // net.unit + 1)) * net.unit
            for whole, side in zip(size, (height, width), strict=True)
        )
        box = Window(top, left, height, width)
        return net.forward_with_window(image_B3HW, box), box

    def _over_window(self, output: WindowedPrediction, label_BHW: Tensor) -> Tensor:
        """The window's logits at the size of its labels."""
        return self.logits_at_image_size(output.detail, label_BHW[:, None])


def _part(map_BHW: Tensor, box: Window) -> Tensor:
    return map_BHW[:, box.top : box.top + box.height, box.left : box.left + box.width]


def _near(side: int, unit: int) -> int:
    return max(round(side / unit), 1) * unit
