"""CIRKD and CIRKD V2: the published combinations of terms, each with its own weight.

    V1   L = L_task + L_kd + L_mb + 0.1 L_mem_pixel + 0.1 L_mem_region
    V2   L = L1 + L_fit + L_mb_channel + 0.1 L_mem_channel + 100 L_channel, features through the context block

Source: CIRKD (CVPR 2022, arXiv 2204.06986) and the code of V2 (2025). The terms stand in ``distillation/cirkd.py`` and
``distillation/cirkd_v2.py``, each with its formula.
"""

from __future__ import annotations

from tutelage.methods.distillation.distill import Distill
from tutelage.methods.settings.cirkd import CIRKDSettings, CIRKDV2Settings


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
