"""Settings of CIRKD and CIRKD V2."""

from __future__ import annotations

from typing import Annotated, ClassVar

from tutelage.methods.settings.distill import DistillBase, Losses
from tutelage.methods.settings.distill_terms import (
    ChannelSettings,
    FitNetSettings,
    MemorySettings,
    MinibatchPixelSettings,
    PixelKDTermSettings,
    WeightOrSettings,
)


class CIRKDSettings(DistillBase):
    """CIRKD (V1); a bare number is a weight."""

    implementation: ClassVar[str] = "tutelage.methods.cirkd:CIRKD"

    pixel_kd: Annotated[PixelKDTermSettings, WeightOrSettings] = PixelKDTermSettings()
    """The teacher's class distribution at every position."""
    minibatch: Annotated[MinibatchPixelSettings, WeightOrSettings] = MinibatchPixelSettings()
    """Relations between the pixels of a mini-batch."""
    memory: Annotated[MemorySettings, WeightOrSettings] = MemorySettings()
    """Relations to remembered pixels and regions."""

    def terms(self) -> Losses:
        """The terms."""
        return Losses(pixel_kd=self.pixel_kd, cirkd_minibatch=self.minibatch, cirkd_memory=self.memory)


class CIRKDV2Settings(CIRKDSettings):
    """CIRKD V2."""

    implementation: ClassVar[str] = "tutelage.methods.cirkd:CIRKDV2"

    fitnet: Annotated[FitNetSettings, WeightOrSettings] = FitNetSettings(weight=1.0)
    """Regression of the teacher's features (published: 1 or 10, by pair of nets)."""
    channel: Annotated[ChannelSettings, WeightOrSettings] = ChannelSettings()
    """Relations between channels."""
    context: bool = True
    """Whether feature terms see the student through the context block (published: not for SegFormer)."""

    def terms(self) -> Losses:
        """The terms."""
        return super().terms().model_copy(update={"fitnet": self.fitnet, "cirkd_channel": self.channel})
