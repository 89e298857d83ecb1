"""BiSMAP: a weighted source, sure pseudo labels of the target, and a masked view that shows what the whole one shows.

    source        L_S = 1/|V_S| sum over labelled pixels of w CE(z, y)
    consistency   L_C = l r(t) mean over unmasked pixels and classes of KL(q || p)
    pseudo        L_T = a CE(z, y') + b RCE(z, y'), each a mean over labelled pixels

w, in 0..1, is the similarity of a source pixel to the target (`weights` of the stream; 1 without). p are the student's
probabilities on the masked view, q those of its moving average on the whole one; r(t) = exp(-5 (1 - min(t/T, 1))^2). y'
are pseudo labels that an `annotate` stage wrote, those of the likeliest mixture of source features. The warm-up has no
L_T and reads no labels of the target. The two distillations that follow are :mod:`tutelage.methods.self_distill`.

Each line is a pass of its own, so that BatchNorm sees one domain at a time. The average normalises by the batch, with
the decoder's dropout off; its running statistics are copies of the student's. Averaging at the start of step i + 1, as
published, is averaging at the end of step i.
Source: BiSMAP (ACM MM 2022) and its code; the warm-up is inferred, its configuration was not published.

Legend: B images, K classes, H W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from tutelage.data.batch import Batch, View
from tutelage.engine.contract import Method, Pass, StepContext, TaskInfo
from tutelage.errors import RecipeError
from tutelage.losses.consistency import masked_divergence, ramp_up
from tutelage.losses.options import ResizeRule
from tutelage.losses.resize import over_image
from tutelage.losses.segmentation import label_weight, weighted_cross_entropy
from tutelage.losses.symmetric import symmetric_cross_entropy
from tutelage.methods.ema import average, twin
from tutelage.methods.settings.bismap import BiSMAPSettings, BiSMAPWarmUpSettings
from tutelage.nets.segmentor import Segmentor


class BiSMAPWarmUp(Method):
    """Weighted labels of one domain; on images of another, the student agrees with its average through a mask."""

    Settings = BiSMAPWarmUpSettings

    def __init__(self, nets: Mapping[str, Segmentor], settings: BiSMAPWarmUpSettings, info: TaskInfo) -> None:
        super().__init__()
        self.student = nets["student"]
        self.ema: Segmentor | None = None
        if settings.consistency:
            self.ema = twin(self.student)
            self.ema.mode(norm=settings.teacher_norm, dropout=False)
        self.settings = settings

    def passes(self, step: int) -> tuple[Pass, ...]:
        """The terms that have a weight, in the published order; each goes backward before the next begins."""
        return tuple(Pass(name, {"student"}) for name, weight in self.settings.weights().items() if weight)

    def exported(self) -> Mapping[str, nn.Module]:
        """The student, and its average beside it where there is one."""
        return {"student": self.student} if self.ema is None else {"student": self.student, "ema": self.ema}

    def counts(self, batches: Mapping[str, Batch]) -> Mapping[str, Tensor]:
        """Labelled pixels of the source, and unmasked ones of the target."""
        return {
            "source": label_weight(batches["source"]["weak"].label),
            "shown": _shown(batches["target"]).sum().float(),
        }

    def forward(self, batches: Mapping[str, Batch], pass_name: str, context: StepContext) -> dict[str, Tensor]:
        """One of the losses."""
        if pass_name == "source":
            return self._source(batches["source"]["weak"], context)
        return self._consistency(batches["target"], context)

    def after_step(self, context: StepContext) -> None:
        """The average follows in parameters; its running statistics are the student's."""
        if self.ema is not None:
            average(self.ema, self.student, self.settings.decay, buffers="copy")

    def _source(self, view: View, context: StepContext) -> dict[str, Tensor]:
        """L_S."""
        settings, weight_BHW = self.settings, view.maps.get("weight")
        prediction = self.student(view.image)

        def loss(logits_BKhw: Tensor, rule: ResizeRule) -> Tensor:
            logits_BKHW = over_image(logits_BKhw, view.image, rule, self.student.stride)
            return weighted_cross_entropy(logits_BKHW, view.label, weight_BHW, normalizer=context.normalizer("source"))

        terms = {"source": settings.source * loss(prediction.logits, settings.resize)}
        if prediction.auxiliary is not None and settings.auxiliary:
            # The auxiliary head lies on another grid; only "corners" means the same there.
            rule: ResizeRule = "corners" if settings.resize == "corners" else "centers"
            terms["auxiliary"] = settings.source * settings.auxiliary * loss(prediction.auxiliary, rule)
        return terms

    def _consistency(self, target: Batch, context: StepContext) -> dict[str, Tensor]:
        """L_C."""
        assert self.ema is not None
        weak, masked = target["weak"], target["masked"]
        # Recipes err in all steps or in none: later ones need not wait for the device to compare.
        if context.step == 0 or context.device.type == "cpu":
            _require_one_crop(weak, masked)
        with torch.no_grad():
            taught_BKHW = self._over(self.ema(weak.image).logits, weak)
        logits_BKHW = self._over(self.student(masked.image).logits, masked)
        divergence = masked_divergence(logits_BKHW, taught_BKHW, _shown(target), normalizer=context.normalizer("shown"))
        return {"consistency": self.settings.consistency * ramp_up(context.step, self.settings.ramp_steps) * divergence}

    def _over(self, logits_BKhw: Tensor, view: View) -> Tensor:
        return over_image(logits_BKhw, view.image, self.settings.resize, self.student.stride)


class BiSMAP(BiSMAPWarmUp):
    """The same, and pseudo labels on the target: the likeliest mixture's class, where it is likely enough."""

    Settings = BiSMAPSettings

    def __init__(self, nets: Mapping[str, Segmentor], settings: BiSMAPSettings, info: TaskInfo) -> None:
        super().__init__(nets, settings, info)
        self.labelling = settings

    def counts(self, batches: Mapping[str, Batch]) -> Mapping[str, Tensor]:
        """Besides the warm-up's: pixels with a pseudo label."""
        return {**super().counts(batches), "target": label_weight(batches["target"]["weak"].label)}

    def forward(self, batches: Mapping[str, Batch], pass_name: str, context: StepContext) -> dict[str, Tensor]:
        """One of the losses."""
        if pass_name == "pseudo":
            return self._pseudo(batches["target"]["weak"], context)
        return super().forward(batches, pass_name, context)

    def _pseudo(self, view: View, context: StepContext) -> dict[str, Tensor]:
        """L_T."""
        settings = self.labelling
        loss = symmetric_cross_entropy(
            self._over(self.student(view.image).logits, view),
            view.label,
            alpha=settings.alpha,
            beta=settings.beta,
            normalizer=context.normalizer("target"),
        )
        return {"pseudo": settings.target * loss}


def _shown(target: Batch) -> Tensor:
    """(B, H, W) bool: where the masked view shows the image, and the whole one too."""
    return target["masked"].valid & target["weak"].valid


def _require_one_crop(weak: View, masked: View) -> None:
    one, other = weak.geometry, masked.geometry
    if one is not other and not (one.size == other.size and torch.equal(one.matrix, other.matrix)):
        raise RecipeError(
            "views-not-aligned",
            "the view 'masked' shows another part of the image than the view 'weak', which it is compared with",
            "remove `augment` from `views.weak` and `views.masked`, and set `randaugment.geometric: false`",
        )
