"""Structured knowledge distillation: similarities of all pairs of positions, and a critic of whole maps.

    pair-wise:  w * mean over images and pairs of positions of (A_S - A_T)^2
                A = cosine similarities of the features, max-pooled by 2x2
    holistic:   w * -mean D(z_S), for the student
                v * (mean relu(1 - D(z_T)) + mean relu(1 + D(z_S))), for the critic D, on detached logits (hinge)
                v * (mean D(z_S) - mean D(z_T) + g * mean (|D'| - 1)^2), wgan-gp, D' at a random point in between

D reads raw logits and not the image; both are so in the CIRKD repository, unlike in SKD's own paper. The student moves
first, then the critic with its own optimizer, on the logits of the same forward. The published SKD is both terms and
pixel KD with a weight of 1. Source: structured knowledge distillation (CVPR 2019), in the form of the CIRKD repository.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from tutelage.engine.contract import StepContext
from tutelage.losses.adversarial import critic_loss, fooling_loss, gradient_penalty
from tutelage.losses.distillation import skd_pairwise
from tutelage.methods.distillation.term import AdversarialTerm, Pair, Term, TermInputs
from tutelage.methods.settings.distill_terms import SKDHolisticSettings, SKDPairwiseSettings
from tutelage.nets.discriminators import HolisticCritic


class SKDPairwise(Term):
    """Similarities of all pairs of positions of an image."""

    Settings = SKDPairwiseSettings

    def forward(self, seen: TermInputs, context: StepContext) -> Mapping[str, Tensor]:
        """The weighted loss."""
        loss = skd_pairwise(seen.student.feature, seen.teacher.feature, self.settings.pool)
        return {"skd_pairwise": self.settings.weight * loss}


class SKDHolistic(AdversarialTerm):
    """A critic that distinguishes the logits of the two nets."""

    Settings = SKDHolisticSettings

    def __init__(self, settings: SKDHolisticSettings, pair: Pair) -> None:
        super().__init__(settings, pair)
        self.critic_optimizer = settings.critic_optimizer
        self.grid = pair.logits_grid

    def make_critic(self, pair: Pair) -> nn.Module:
        """The critic, as deep as the maps allow."""
        return HolisticCritic(pair.classes, pair.logits_grid)

    def fool(self, critic: nn.Module, seen: TermInputs) -> Tensor:
        """The weighted loss of the student from the critic."""
        loss: Tensor = self.settings.weight * fooling_loss(critic(seen.student.logits))
        return loss

    def judge(self, critic: nn.Module, student: Tensor, teacher: Tensor, context: StepContext) -> Tensor:
        """The critic's own loss on detached logits of both nets, weighted."""
        settings = self.settings
        student_scores, teacher_scores = critic(student), critic(teacher)  # in the published order: D has statistics
        if settings.loss == "hinge":
            loss = critic_loss(student_scores, teacher_scores)
        else:
            alpha = torch.rand(student.shape[0], 1, 1, 1, generator=context.generator, device=student.device)
            penalty = gradient_penalty(critic, student, teacher, alpha)
            loss = critic_loss(student_scores, teacher_scores, "wasserstein") + settings.gradient_penalty * penalty
        weighted: Tensor = settings.critic_weight * loss
        return weighted

    def describe(self) -> str:
        """How the critic fits its maps."""
        height, width = self.grid
        return f"a critic of {height}x{width} maps, with an optimizer of its own"
