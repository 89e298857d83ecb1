"""CIRKD and CIRKD V2: the published combinations of terms, each with its own weight.

    V1   L = L_task + L_kd + L_mb + 0.1 L_mem_pixel + 0.1 L_mem_region
    V2   L = L1 + L_fit + L_mb_channel + 0.1 L_mem_channel + 100 L_channel, features through the context block

Source: CIRKD (CVPR 2022, arXiv 2204.06986) and the code of V2 (2025). The terms stand in ``distillation/cirkd.py`` and
``distillation/cirkd_v2.py``, each with its formula.
"""

from __future__ import annotations

from typing import Annotated

from tutelage.methods.distillation.cirkd import MemorySettings, MinibatchPixelSettings
from tutelage.methods.distillation.cirkd_v2 import ChannelSettings
from tutelage.methods.distillation.distill import Distill, DistillBase, Losses
from tutelage.methods.distillation.fitnet import FitNetSettings
from tutelage.methods.distillation.pixel_kd import PixelKDTermSettings
from tutelage.methods.distillation.term import WeightOrSettings


class CIRKDSettings(DistillBase):
    """CIRKD (V1); a bare number is a weight."""

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

    fitnet: Annotated[FitNetSettings, WeightOrSettings] = FitNetSettings(weight=1.0)
    """Regression of the teacher's features (published: 1 or 10, by pair of nets)."""
    channel: Annotated[ChannelSettings, WeightOrSettings] = ChannelSettings()
    """Relations between channels."""
    context: bool = True
    """Whether feature terms see the student through the context block (published: not for SegFormer)."""

    def terms(self) -> Losses:
        """The terms."""
        return super().terms().model_copy(update={"fitnet": self.fitnet, "cirkd_channel": self.channel})


class CIRKD(Distill):
    """CIRKD: pixel KD, relations within the mini-batch, relations to a memory."""

    Settings = CIRKDSettings

    @staticmethod
    def context_of(settings: CIRKDSettings) -> bool:
        """V1 has no context block."""
        return False


class CIRKDV2(CIRKD):
    """CIRKD V2: CIRKD, regression of features, relations between channels, a context block."""

    Settings = CIRKDV2Settings

    @staticmethod
    def context_of(settings: CIRKDSettings) -> bool:
        """As the recipe says."""
        assert isinstance(settings, CIRKDV2Settings)
        return settings.context
