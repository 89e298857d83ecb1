"""AdvEnt: adversarial entropy minimisation between a labelled source and an unlabelled target.

    segment:       L = CE(source) + a CE_aux(source) + l BCE(D(I(target)), source) + m Ent(target) [+ auxiliary level]
    discriminate:  L = 1/2 BCE(D(I(source)), source) + 1/2 BCE(D(I(target)), target), on detached maps

I is the weighted self-information map of the softmax (AdvEnt) or the softmax itself (AdaptSegNet, output space); with
l = 0 and m > 0 it is MinEnt. Both have names of their own, with their settings for defaults. Each level (main,
auxiliary) has a discriminator of its own. All logits are brought to the size of the image first. With masked
consistency the step has a third pass `masked`, and a moving average of the student that gives its pseudo labels: see
:mod:`tutelage.methods.masked_consistency`. Source: ADVENT (CVPR 2019), AdaptSegNet (CVPR 2018).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from tutelage.data.batch import Batch, View
from tutelage.engine.contract import Method, OptimizerSpec, Pass, StepContext, TaskInfo
from tutelage.engine.settings import MethodSettings
from tutelage.losses.adversarial import SOURCE, TARGET, domain_loss, entropy, self_information
from tutelage.losses.options import ResizeRule
from tutelage.losses.resize import resize_logits
from tutelage.methods.ema import average, decay_at, twin
from tutelage.methods.masked_consistency import AverageLabels, masked_images, mixed_loss
from tutelage.methods.settings.advent import AdaptSegNetSettings, AdvEntSettings, MinEntSettings
from tutelage.methods.supervised import TaskLoss
from tutelage.nets.discriminators import OutputDiscriminator, ProDADiscriminator
from tutelage.nets.segmentor import Prediction, Segmentor


class AdvEnt(Method):
    """Labels of one domain, images of another: predictions on the target become as confident as on the source."""

    Settings: ClassVar[type[MethodSettings]] = AdvEntSettings

    def __init__(self, nets: Mapping[str, Segmentor], settings: AdvEntSettings, info: TaskInfo) -> None:
        super().__init__()
        self.student = nets["student"]
        self.task = TaskLoss(settings.task, info)
        critic = ProDADiscriminator if settings.critic == "proda" else OutputDiscriminator
        self.critics = nn.ModuleDict({"main": critic(info.classes)})
        self.weights = {"main": (settings.adversarial, settings.entropy)}
        if self.student.auxiliary is not None:
            self.critics["auxiliary"] = critic(info.classes)
            self.weights["auxiliary"] = (settings.adversarial_auxiliary, settings.entropy_auxiliary)
        self.settings = settings
        self.masking = settings.masked_consistency
        if self.masking is not None:
            self.ema = twin(self.student)
            self.ema.mode(norm="batch", dropout=False)
            self.pseudo_labels = AverageLabels(self.masking.threshold, self._average_logits)

    def passes(self, step: int) -> tuple[Pass, ...]:
        """The net first, then the discriminators on its maps, then the masked images."""
        passes = [Pass("segment", {"student"})]
        if self._adversarial():
            passes.append(Pass("discriminate", {"critics"}))
        if self.masking is not None:
            passes.append(Pass("masked", {"student"}))
        return tuple(passes)

    def exported(self) -> Mapping[str, nn.Module]:
        """The student, and with masked consistency its average beside it."""
        return {"student": self.student} if self.masking is None else {"student": self.student, "ema": self.ema}

    def optimizers(self) -> Mapping[str, OptimizerSpec]:
        """The recipe's for the net, one of their own for the discriminators."""
        critic = OptimizerSpec(("critics",), self.settings.critic_optimizer, self.settings.critic_schedule)
        return {"main": OptimizerSpec(("student",)), "critic": critic}

    def counts(self, batches: Mapping[str, Batch]) -> Mapping[str, Tensor]:
        """The weight of the source's valid labels; with masked consistency also target pixels, and the sure ones."""
        source = {"source": self.task.counts(batches["source"]["weak"].label)}
        return source if self.masking is None else {**source, **self.pseudo_labels.counts(batches["target"])}

    def forward(self, batches: Mapping[str, Batch], pass_name: str, context: StepContext) -> dict[str, Tensor]:
        """One pass over a source and a target batch."""
        if pass_name == "segment":
            return self._segment(batches["source"]["weak"], batches["target"]["weak"], context)
        return self._masked(batches["target"], context) if pass_name == "masked" else self._discriminate(context)

    def after_step(self, context: StepContext) -> None:
        """The average follows, as DAFormer's."""
        if self.masking is not None:
            self.pseudo_labels.forget()
            average(self.ema, self.student, decay_at(context.step + 1, self.masking.decay, ramp=True))

    def _segment(self, source: View, target: View, context: StepContext) -> dict[str, Tensor]:
        on_source, on_target = self.student(source.image), self.student(target.image)
        terms: dict[str, Tensor] = self.task(on_source, self.student.stride, source.label, context.normalizer("source"))
        source_logits, target_logits = self._levels(on_source, source), self._levels(on_target, target)
        for level, (adversarial, minimised) in self.weights.items():
            if adversarial:
                context.carry[f"source_{level}"] = source_logits[level]
                context.carry[f"target_{level}"] = target_logits[level]
                # The net is trained so that its target maps are classified as source.
                scores = self.critics[level](self._maps(target_logits[level]))
                terms[f"adversarial_{level}"] = adversarial * domain_loss(scores, SOURCE, self.settings.loss)
            if minimised:
                terms[f"entropy_{level}"] = minimised * entropy(target_logits[level])
        return terms

    def _discriminate(self, context: StepContext) -> dict[str, Tensor]:
        terms = {}
        for level, critic in self.critics.items():
            for side, domain in (("source", SOURCE), ("target", TARGET)):
                logits = context.carry.get(f"{side}_{level}")
                if logits is not None:
                    scores = critic(self._maps(logits))
                    each = domain_loss(scores, domain, self.settings.loss)
                    terms[f"critic_{level}_{side}"] = self.settings.critic_weight * each
        return terms

    def _masked(self, target: Batch, context: StepContext) -> dict[str, Tensor]:
        settings, pseudo = self.masking, self.pseudo_labels.of(target)
        assert settings is not None
        image_B3HW = masked_images(target, settings, settings.colour, self.student.mean, context)
        logits_BKHW = self._levels(self.student(image_B3HW), target["weak"])["main"]
        return {"masked": settings.weight * mixed_loss(logits_BKHW, pseudo.label_BHW, pseudo.share(context))}

    def _average_logits(self, view: View) -> Tensor:
        return self._levels(self.ema(view.image), view)["main"]

    def _adversarial(self) -> bool:
        return any(adversarial for adversarial, _ in self.weights.values())

    def _levels(self, prediction: Prediction, view: View) -> dict[str, Tensor]:
        size = (view.image.shape[2], view.image.shape[3])
        rule: ResizeRule = self.settings.task.resize
        levels = {"main": resize_logits(prediction.logits, size, rule, self.student.stride)}
        if prediction.auxiliary is not None:
            levels["auxiliary"] = resize_logits(
                prediction.auxiliary, size, "corners" if rule == "corners" else "centers", self.student.stride
            )
        return levels

    def _maps(self, logits: Tensor) -> Tensor:
        return self_information(logits) if self.settings.maps == "self_information" else torch.softmax(logits, 1)


class AdaptSegNet(AdvEnt):
    """Labels of one domain, images of another: predictions on the target become similar to those on the source."""

    Settings = AdaptSegNetSettings


class MinEnt(AdvEnt):
    """Labels of one domain, images of another: the entropy on the target is minimised. No critic."""

    Settings = MinEntSettings

    def __init__(self, nets: Mapping[str, Segmentor], settings: MinEntSettings, info: TaskInfo) -> None:
        without_critic = AdvEntSettings(
            adversarial=0.0,
            adversarial_auxiliary=0.0,
            entropy=settings.entropy,
            entropy_auxiliary=settings.entropy_auxiliary,
            task=settings.task,
            masked_consistency=settings.masked_consistency,
        )
        super().__init__(nets, without_critic, info)
        self.critics = nn.ModuleDict()

    def optimizers(self) -> Mapping[str, OptimizerSpec]:
        """The recipe's, for the net."""
        return {"main": OptimizerSpec(("student",))}
