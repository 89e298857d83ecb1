"""The kinds of stages: one module per kind here, for its settings, and one in ``pipeline/stages/``, for its work."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from tutelage.recipe.stages.annotate import AnnotateStage
from tutelage.recipe.stages.evaluate import EvaluateStage
from tutelage.recipe.stages.fit import FitStage
from tutelage.recipe.stages.import_net import ImportStage
from tutelage.recipe.stages.report import ReportStage
from tutelage.recipe.stages.train import TrainStage
from tutelage.recipe.stages.transform import TransformStage

Stage = Annotated[
    TrainStage | ImportStage | FitStage | TransformStage | AnnotateStage | EvaluateStage | ReportStage,
    Field(discriminator="kind"),
]
"""A stage by its `kind`. A new kind needs a line here, a module beside this one, and one in ``pipeline/stages/``."""
