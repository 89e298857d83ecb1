"""CBST: class-balanced self-training, in rounds; with CRST's regulariser that keeps it from being too sure.

    L = CE over the labelled pixels of source and target together (target: pseudo labels)
        + r mean over labelled target pixels of (1/K) sum_c -ln p_c

One stage is one round. The pseudo labels come from an `annotate` stage whose policy `class_ratio` gives every class its
surest portion; the next round labels anew with the net of this one and a larger portion. Source and target images go
through the net in one batch, as published. Sources: Zou et al., CBST (ECCV 2018) and CRST (ICCV 2019: MRKLD).
"""

# Legend: B batch, K classes, H W pixels.

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tutelage.data.batch import Batch
from tutelage.engine.contract import Method, StepContext, TaskInfo
from tutelage.errors import RecipeError
from tutelage.losses.resize import over_image
from tutelage.losses.segmentation import IGNORE
from tutelage.losses.self_training import even_divergence
from tutelage.methods.settings.cbst import CBSTSettings
from tutelage.methods.supervised import TaskLoss
from tutelage.nets.segmentor import Segmentor


class CBST(Method):
    """Labels of one domain, pseudo labels of another, learned as one set."""

    Settings = CBSTSettings

    def __init__(self, nets: Mapping[str, Segmentor], settings: CBSTSettings, info: TaskInfo) -> None:
        super().__init__()
        self.student = nets["student"]
        self.task = TaskLoss(settings.task, info)
        self.settings = settings

    def counts(self, batches: Mapping[str, Batch]) -> Mapping[str, Tensor]:
        """The weight of the labels of both, and the number of pseudo labels."""
        label_BHW = {name: batches[name]["weak"].label for name in ("source", "target")}
        both = self.task.counts(label_BHW["source"]) + self.task.counts(label_BHW["target"])
        return {"both": both, "target": (label_BHW["target"] != IGNORE).sum().float()}

    def forward(self, batches: Mapping[str, Batch], pass_name: str, context: StepContext) -> dict[str, Tensor]:
        """One batch of the source and one of the target, as one."""
        source, target = batches["source"]["weak"], batches["target"]["weak"]
        _check_sizes(source.image, target.image)
        prediction = self.student(torch.cat((source.image, target.image)))
        label_BHW = torch.cat((source.label, target.label))
        terms: dict[str, Tensor] = self.task(prediction, self.student.stride, label_BHW, context.normalizer("both"))
        if self.settings.regulariser:
            logits_BKHW = prediction.logits[len(source.image) :]
            logits_BKHW = over_image(logits_BKHW, target.image, self.settings.task.resize, self.student.stride)
            spread = even_divergence(logits_BKHW, target.label != IGNORE, context.normalizer("target"))
            terms["regulariser"] = self.settings.regulariser * spread
        return terms


def _check_sizes(source_B3HW: Tensor, target_B3HW: Tensor) -> None:
    if source_B3HW.shape[1:] != target_B3HW.shape[1:]:
        (height, width), (rows, columns) = source_B3HW.shape[2:], target_B3HW.shape[2:]
        raise RecipeError(
            "streams-differ",
            f"source and target must have one size, got {height}x{width} and {rows}x{columns}",
            "set the same augment.crop for both streams",
        )
