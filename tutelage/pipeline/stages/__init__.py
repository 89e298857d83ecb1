"""The runners of all kinds of stages: one module per kind; settings are in ``recipe/stages/``."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tutelage.pipeline.runner import StageRunner

RUNNERS = {
    "train": "train:TrainRunner",
    "import": "import_net:ImportRunner",
    "fit": "fit:FitRunner",
    "transform": "transform:TransformRunner",
    "annotate": "annotate:AnnotateRunner",
    "evaluate": "evaluate:EvaluateRunner",
    "report": "report:ReportRunner",
}
"""Kind of a stage → module in this package and class."""


def find_runner(kind: str) -> type[StageRunner[Any]]:
    """The runner of a kind of stage."""
    module, _, name = RUNNERS[kind].partition(":")
    found: type[StageRunner[Any]] = getattr(importlib.import_module(f"{__name__}.{module}"), name)
    return found
