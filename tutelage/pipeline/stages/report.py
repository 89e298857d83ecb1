"""The `report` stage: one HTML page."""

from __future__ import annotations

from typing import Any

from tutelage.engine import collectives
from tutelage.pipeline.report_content import report_content
from tutelage.pipeline.runner import StageRunner, Workplace
from tutelage.recipe.stages.report import ReportStage
from tutelage.report.page import render
from tutelage.runs.atomic import write_text


class ReportRunner(StageRunner[ReportStage]):
    """Writes the page."""

    def key(self) -> dict[str, Any]:
        return {"class names": list(self.builder.classes.names)}

    def make(self, work: Workplace) -> None:
        if collectives.rank() == 0:
            page = self.artefact.report
            write_text(page, render(report_content(self.builder, self.stage, work.device)))
            self.artefact.finish("report", [page], {})
            work.display.say(f"  report: {page}")
