"""Settings of HRDA."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from tutelage.methods.settings.daformer import DAFormerSettings
from tutelage.nets.settings import MultiResolutionSettings


class HRDASettings(DAFormerSettings):
    """HRDA."""

    implementation: ClassVar[str] = "tutelage.methods.hrda:HRDA"

    detail_weight: Annotated[float, Field(ge=0, le=1)] = 0.1
    """d: share of the window's own loss."""
    multi_resolution: MultiResolutionSettings = MultiResolutionSettings()
    """The net's window and attention; those of a net that has two resolutions already stay."""
