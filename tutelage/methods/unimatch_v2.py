"""UniMatch V2: two strong views with complementary dropout follow the sure pixels that the moving average sees.

    L = 1/2 [ L_x + w 1/2 (M(s1) + M(s2)) ]

The pseudo labels are those of the student's moving average, in evaluation mode, on the weak view. The strong views,
each with CutMix boxes of its own, pass as one batch of 2 B images. Between encoder and decoder the first loses a random
half of its channels and the second the other half; what stays is doubled. Half of the images keep all channels in both.
Source: UniMatch V2 (2024) and its code.

Legend: B batch, C channels, h w a level's grid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tutelage.data.batch import Batch
from tutelage.engine.contract import StepContext, TaskInfo
from tutelage.methods.settings.unimatch_v2 import UniMatchV2Settings
from tutelage.methods.strong_views import HALF, StrongViewMethod
from tutelage.nets.segmentor import Segmentor


class UniMatchV2(StrongViewMethod):
    """Few labels and many images: two strong views, each with half of the features, follow the moving average."""

    Settings = UniMatchV2Settings

    ema: Segmentor

    def __init__(self, nets: Mapping[str, Segmentor], settings: UniMatchV2Settings, info: TaskInfo) -> None:
        super().__init__(nets, settings, info, settings.decay)
        self.settings = settings

    def forward(self, batches: Mapping[str, Batch], pass_name: str, context: StepContext) -> dict[str, Tensor]:
        """One labelled batch, and one unlabelled batch in three views."""
        labeled, unlabeled = batches["labeled"]["weak"], batches["unlabeled"]
        pseudo = self.judged(self.ema, unlabeled["weak"])
        terms = self.supervised(self.student(labeled.image), labeled, context)

        image1, target1 = self.mixed(unlabeled, "strong", pseudo, pseudo, context)
        image2, target2 = self.mixed(unlabeled, "strong2", pseudo, pseudo, context)
        strong1, strong2 = self._strong_logits(torch.cat((image1, image2)), context).chunk(2)
        weight = HALF * self.settings.weight * 0.5
        terms["strong"] = weight * self.consistency(strong1, image1, target1)
        terms["strong2"] = weight * self.consistency(strong2, image2, target2)
        return terms

    def _strong_logits(self, images: Tensor, context: StepContext) -> Tensor:
        """Logits of both strong views, (2 B, K, h, w)."""
        if not self.settings.complementary_dropout:
            logits: Tensor = self.student(images).logits
            return logits
        features = self.student.encode(images)
        levels = complementary_dropout(features.levels, context.generator)
        return self.student.decode(features._replace(levels=levels)).logits


def complementary_dropout(levels: Sequence[Tensor], generator: torch.Generator) -> tuple[Tensor, ...]:
    """Levels (2 B, C, h, w), first views before second ones, times d and 2 - d for a random d in {0, 2} (B, C).

    One draw serves all levels where they have the same number of channels, and each level has its own where they
    differ. floor(B / 2) random images keep all channels, in both views and on all levels.
    Source: UniMatch V2, section 3.3 and code.
    """
    images, device = len(levels[0]) // 2, levels[0].device
    # A random order without torch.randperm, which some devices draw on the host.
    whole_B1 = (torch.rand(images, generator=generator, device=device).argsort() < images // 2)[:, None]
    widths = [level.shape[1] for level in levels]
    drawn = [
        torch.rand(images, width, generator=generator, device=device) < 0.5
        for width in (widths[:1] if len(set(widths)) == 1 else widths)
    ]
    scales = [complementary_scale(kept_BC, whole_B1) for kept_BC in drawn]
    scales = scales * len(levels) if len(scales) == 1 else scales
    return tuple(level * scale[:, :, None, None].to(level.dtype) for level, scale in zip(levels, scales, strict=True))


def complementary_scale(kept_BC: Tensor, whole_B1: Tensor) -> Tensor:
    """The factors of the channels of both views, (2 B, C): 2 where a view keeps a channel that the other
    loses, 0 where it loses it, 1 for whole images. ``kept``: bool, the first view's channels; ``whole``: bool."""
    first_BC = torch.where(whole_B1, 1.0, 2.0 * kept_BC)
    return torch.cat((first_BC, 2.0 - first_BC))
