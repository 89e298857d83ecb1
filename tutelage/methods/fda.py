"""FDA: the labelled source takes the colours of the target, and the entropy on the target is minimised.

    x' = FFT^-1(low-frequency amplitudes of x_T, everything else of x_S)         x_T: the target image at the same place
    L  = L_task(x', y_S) + w rho(x_T) [+ v L_task(x_T, pseudo label)]
    rho = mean over the target's logits of ((H / ln K)^2 + 1e-8)^eta,  H the entropy

The term in brackets is the second phase (`fda_self_training`): pseudo labels of the target, from nets that were trained
with windows of several widths. Source: Yang and Soatto, FDA: Fourier Domain Adaptation for Semantic Segmentation (CVPR
2020).
"""

# Legend: B batch, 3 channels RGB, K classes, H W pixels, h w the grid of the logits.

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from tutelage.data.batch import Batch, View
from tutelage.data.stylise import stylise
from tutelage.engine.contract import Method, StepContext, TaskInfo
from tutelage.losses.self_training import robust_entropy
from tutelage.methods.settings.fda import FDASelfTrainingSettings, FDASettings
from tutelage.methods.supervised import TaskLoss
from tutelage.nets.segmentor import Prediction, Segmentor


class FDA(Method):
    """Labels of one domain, images of another: the source takes on the target's low frequencies."""

    Settings = FDASettings

    def __init__(self, nets: Mapping[str, Segmentor], settings: FDASettings, info: TaskInfo) -> None:
        super().__init__()
        self.student = nets["student"]
        self.task = TaskLoss(settings.task, info)
        self.settings = settings

    def counts(self, batches: Mapping[str, Batch]) -> Mapping[str, Tensor]:
        """The weight of the source's valid labels."""
        return {"source": self.task.counts(batches["source"]["weak"].label)}

    def forward(self, batches: Mapping[str, Batch], pass_name: str, context: StepContext) -> dict[str, Tensor]:
        """One source batch in the style of one target batch."""
        source, target = batches["source"]["weak"], batches["target"]["weak"]
        on_source = self.student(self._styled(source, target))
        terms: dict[str, Tensor] = self.task(on_source, self.student.stride, source.label, context.normalizer("source"))
        return {**terms, **self._on_target(target, context)}

    def _on_target(self, target: View, context: StepContext) -> dict[str, Tensor]:
        """The terms of the target; the net forwards it from the first step, for the statistics of its norms."""
        if not self.settings.entropy:
            return {}
        counts = context.step >= self.settings.entropy_start
        with torch.set_grad_enabled(counts and torch.is_grad_enabled()):
            prediction = self.student(target.image)
        return {"entropy": self._entropy(prediction, target)} if counts else {}

    def _styled(self, source: View, target: View) -> Tensor:
        """Source images, each in the style of the target image at its place; a smaller target batch goes round."""
        style_B3HW = target.image
        if len(style_B3HW) != len(source.image):
            place = torch.arange(len(source.image), device=style_B3HW.device) % len(style_B3HW)
            style_B3HW = style_B3HW[place]
        return stylise(source.image, style_B3HW, self.settings.style)

    def _entropy(self, prediction: Prediction, target: View) -> Tensor:
        settings, logits_BKhw = self.settings, prediction.logits
        valid_Bhw = F.interpolate(target.valid[:, None].float(), logits_BKhw.shape[-2:], mode="nearest-exact")[:, 0]
        rho = robust_entropy(logits_BKhw, settings.entropy_eta, settings.entropy_normaliser, valid_Bhw)
        return settings.entropy * rho


class FDASelfTraining(FDA):
    """FDA with pseudo labels on the target, as an `annotate` stage wrote them."""

    Settings = FDASelfTrainingSettings
    settings: FDASelfTrainingSettings

    def counts(self, batches: Mapping[str, Batch]) -> Mapping[str, Tensor]:
        """The weight of the valid labels of both."""
        return {name: self.task.counts(batches[name]["weak"].label) for name in ("source", "target")}

    def _on_target(self, target: View, context: StepContext) -> dict[str, Tensor]:
        prediction, settings = self.student(target.image), self.settings
        on_pseudo = self.task(prediction, self.student.stride, target.label, context.normalizer("target"))
        terms = {f"pseudo_{name}": settings.pseudo * term for name, term in on_pseudo.items()}
        if settings.entropy and context.step >= settings.entropy_start:
            terms["entropy"] = self._entropy(prediction, target)
        return terms
