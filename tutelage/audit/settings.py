"""Settings of the pseudo-label audit."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from tutelage.evaluation.protocol import Protocol
from tutelage.settings import Ref, Settings

Share = Annotated[float, Field(gt=0, le=1)]

UnlabeledData = Annotated[str | list[str], Ref("data", use="unlabeled")]
"""Images whose masks are not opened."""
HeldOutData = Annotated[str, Ref("data", masks=True, use="val", people=True)]
"""Labelled images on which pseudo labels are compared with masks that people made."""


class StopRule(Settings):
    """When pseudo labels have settled: few of them change, and the precision on labelled images no longer rises."""

    change: Share = 0.002
    """Largest share of pixels whose label may change between two audits, for every net."""
    rounds: Annotated[int, Field(gt=0)] = 3
    """In so many audits in a row."""


class AuditSettings(Settings):
    """An audit of pseudo labels while training: coverage, classes, agreement, change, precision, calibration."""

    data: UnlabeledData | None = None
    """Images to audit (`name/split`), masks not opened; null: those of the streams without masks, else of all."""
    images: Annotated[int, Field(gt=0)] = 32
    """Number of those images, evenly spread."""
    val: HeldOutData | None = "evaluate"
    """Labelled data (`name/split`) for precision and calibration; `evaluate`: those of `evaluate`; null: none."""
    threshold: Share = 0.95
    """Confidence from which on a pixel counts as covered."""
    every: Annotated[int, Field(gt=0)] | None = None
    """Steps between two audits; null: with each evaluation, or five over the stage."""
    stop: StopRule | None = None
    """End the training when the labels have settled; null: only report it (with the rule's defaults)."""
    protocol: Protocol | None = None
    """How nets are applied; null: as in `evaluate`, else to whole images."""


class LabelAudit(Settings):
    """An audit of the pseudo labels that were written: coverage, classes, confidence; with `val` also precision."""

    val: HeldOutData | None = None
    """Labelled data (`name/split`) for precision and calibration; null: none."""
    threshold: Share = 0.95
    """Confidence from which on a pixel counts as covered."""
