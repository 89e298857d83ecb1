"""Masked generative distillation: from a student's feature with holes, the teacher's whole feature is made.

    w / B * sum over images, channels and positions of (G(M * A(f_S)) - f_T)^2

M is 0 at a random share of the positions, for all channels alike, drawn anew for every image; A is a 1x1 convolution
where channels differ, nothing otherwise; G is a 3x3 convolution, ReLU and another 3x3 convolution. A and G have biases,
are trained with the student and dropped at the end.

The sum is not divided by channels and positions, as published: the weight of 2e-5 was chosen for the last feature of
ResNets (2048 channels at stride 8 of 512x512 crops), so scale it with these (`student_feature: level4`, the same for
the teacher). The release adds channel-wise distillation of logits with a weight of 3 (`cwd: 3`).
Source: masked generative distillation (ECCV 2022), and yzd-v/MGD, seg.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from tutelage.engine.contract import StepContext
from tutelage.losses.distillation import mgd
from tutelage.methods.distillation.projection import Projection
from tutelage.methods.distillation.term import Pair, Term, TermInputs
from tutelage.methods.settings.distill_terms import MGDSettings


class MGD(Term):
    """The teacher's feature from the student's, partly masked."""

    Settings = MGDSettings

    def __init__(self, settings: MGDSettings, pair: Pair) -> None:
        super().__init__(settings, pair)
        ours, theirs = pair.student.channels, pair.teacher.channels
        self.align = Projection(nn.Conv2d(ours, theirs, 1)) if ours != theirs else nn.Identity()
        self.generation = Projection(
            nn.Conv2d(theirs, theirs, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(theirs, theirs, 3, padding=1)
        )
        self.projected = f"{ours} channels are projected to {theirs}" if ours != theirs else f"{theirs} channels"

    def forward(self, seen: TermInputs, context: StepContext) -> Mapping[str, Tensor]:
        """The weighted loss."""
        aligned = self.align(seen.student.feature)
        images, _, height, width = aligned.shape
        drawn = torch.rand(images, 1, height, width, generator=context.generator, device=aligned.device)
        generated = self.generation(aligned * (drawn >= self.settings.ratio))
        return {"mgd": self.settings.weight * mgd(generated, seen.teacher.feature)}

    def describe(self) -> str:
        """The projection and the block that generates."""
        count = sum(p.numel() for p in self.parameters()) / 1e6
        return f"the student's {self.projected}, masked by {self.settings.ratio:.0%}, then generated ({count:.2g} M)"
