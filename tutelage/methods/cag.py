"""CAG-UDA: features of both domains are drawn to anchors, the source's class means, which stand still.

    y_A  = the nearest anchor's class where the second nearest is farther by a margin       both by a frozen net
    y_P  = the predicted class where its probability is above a threshold
    L    = CE(source) + 1/2 [CE(z, y_A) + CE(z, y_P)] + 0.7 [dist(source, labels) + dist(target, y_A)]
    dist = distance of each image's class means to their anchors, over positions that are labelled and predicted so

ProDA and PBAL build on it. Published in three rounds, each with the best net before as labeller.
Source: CAG-UDA (NeurIPS 2019) and its code.

Legend: B batch, K classes, D embedding, H W pixels, h w the net's grid.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tutelage.data.batch import Batch, View
from tutelage.engine.contract import Method, Pass, StepContext, TaskInfo
from tutelage.errors import RecipeError
from tutelage.losses.prototypes import anchor_distance
from tutelage.losses.regions import shrink_labels
from tutelage.losses.segmentation import IGNORE, cross_entropy
from tutelage.methods.proda import started_prototypes
from tutelage.methods.settings.cag import CAGSettings
from tutelage.methods.supervised import TaskLoss
from tutelage.nets.segmentor import Prediction, Segmentor
from tutelage.prototypes.anchors import anchor_labels, confident_labels
from tutelage.prototypes.means import class_vectors


class CAG(Method):
    """Labels of one domain, images of another: features of a class are moved to the same anchor in both."""

    Settings = CAGSettings

    def __init__(self, nets: Mapping[str, Segmentor], settings: CAGSettings, info: TaskInfo) -> None:
        super().__init__()
        self.student = nets["student"]
        self.labeller = nets["labeller"]
        if self.labeller.embedding_channels != self.student.embedding_channels:
            raise RecipeError(
                "embedding-width",
                f"the labeller has {self.labeller.embedding_channels} embedding channels, expected "
                f"{self.student.embedding_channels} as the student: both are compared with the same anchors",
                "use a labeller with the settings of the student's net",
            )
        self.task = TaskLoss(settings.task, info)
        self.anchors = started_prototypes(info, self.student.embedding_channels, 0.0, "anchors")
        self.settings = settings

    def passes(self, step: int) -> tuple[Pass, ...]:
        """One domain after the other; gradients add up."""
        return (Pass("source", {"student"}), Pass("target", {"student"}))

    def counts(self, batches: Mapping[str, Batch]) -> Mapping[str, Tensor]:
        """The weight of the source's valid labels."""
        return {"source": self.task.counts(batches["source"]["weak"].label)}

    def forward(self, batches: Mapping[str, Batch], pass_name: str, context: StepContext) -> dict[str, Tensor]:
        """One batch of one domain; means over pseudo labels and anchors are the micro-batch's own."""
        view = batches[pass_name]["weak"]
        prediction = self.student(view.image)
        if pass_name == "source":
            terms: dict[str, Tensor] = self.task(
                prediction, self.student.stride, view.label, context.normalizer("source")
            )
            return {**terms, "distance_source": self._distance(prediction, view.label)}
        anchor_Bhw, sure_Bhw = self._labels(view)
        size = (prediction.logits.shape[2], prediction.logits.shape[3])
        weight = self.settings.pseudo_labels
        return {
            "anchor_labels": weight * cross_entropy(prediction.logits, shrink_labels(anchor_Bhw, size)),
            "sure_labels": weight * cross_entropy(prediction.logits, shrink_labels(sure_Bhw, size)),
            "distance_target": self._distance(prediction, anchor_Bhw),
        }

    @torch.no_grad()
    def _labels(self, view: View) -> tuple[Tensor, Tensor]:
        """y_A and y_P (B, h, w) of the labeller's grid, 255 over padding."""
        judged = self.labeller(view.image)
        anchors = self.anchors
        nearest = anchor_labels(judged.embedding, anchors.prototypes, self.settings.margin, anchors.present)
        sure = confident_labels(judged.logits, self.settings.threshold)
        valid_Bhw = shrink_labels(view.valid, (sure.shape[1], sure.shape[2]))
        return nearest.masked_fill(~valid_Bhw, IGNORE), sure.masked_fill(~valid_Bhw, IGNORE)

    def _distance(self, prediction: Prediction, label: Tensor) -> Tensor:
        size = (prediction.logits.shape[2], prediction.logits.shape[3])
        found = class_vectors(
            prediction.embedding, prediction.logits, shrink_labels(label, size), min_pixels=self.settings.min_pixels
        )
        anchors = self.anchors
        valid_BK = found.valid & anchors.present
        distance = anchor_distance(found.vectors, valid_BK, found.counts, anchors.prototypes, size[0] * size[1])
        return self.settings.distance * distance
