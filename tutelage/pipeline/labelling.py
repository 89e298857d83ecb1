"""The policy of an `annotate` stage, with what it needs from other stages."""

from __future__ import annotations

import torch

from tutelage.annotate.policies import (
    Argmax,
    ClassBalanced,
    ClassQuantile,
    ClassRatio,
    MixtureLabels,
    Policy,
    Threshold,
)
from tutelage.pipeline.builder import Builder
from tutelage.prototypes.gaussians import Mixtures
from tutelage.recipe.schema import AnnotateStage


def policy_of(builder: Builder, stage: AnnotateStage, device: torch.device) -> Policy:
    """The policy that a stage asks for. Raises :class:`TutelageError` for mixtures that cannot be read."""
    classes, rule = len(builder.classes), stage.rule()
    if stage.policy == "threshold":
        return Threshold(classes, rule["threshold"])
    if stage.policy == "class_balanced":
        return ClassBalanced(classes, rule["portion"])
    if stage.policy == "class_quantile":
        return ClassQuantile(classes, rule["quantile"], rule["cap"])
    if stage.policy == "class_ratio":
        return ClassRatio(classes, rule["portion"])
    if stage.policy == "mixtures":
        fitted = builder.fitted(rule.pop("mixtures"))
        tensors = (fitted[name] for name in ("present", "weight", "mean", "variance"))
        return MixtureLabels(Mixtures(builder.classes.names, *tensors), device, **rule)
    return Argmax(classes)
