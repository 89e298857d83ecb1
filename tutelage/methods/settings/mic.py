"""Settings of MIC."""

from __future__ import annotations

from typing import ClassVar

from tutelage.methods.settings.daformer import DAFormerSettings
from tutelage.methods.settings.masked_consistency import MaskedConsistencySettings


class MICSettings(DAFormerSettings):
    """MIC on DAFormer."""

    implementation: ClassVar[str] = "tutelage.methods.mic:MIC"

    masked_consistency: MaskedConsistencySettings | None = MaskedConsistencySettings()
    """The masked target images; null: DAFormer."""
