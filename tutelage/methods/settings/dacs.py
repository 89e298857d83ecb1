"""Settings of DACS."""

from __future__ import annotations

from typing import ClassVar

from tutelage.methods.settings.mixed_self_training import MixedSettings


class DACSSettings(MixedSettings):
    """DACS."""

    implementation: ClassVar[str] = "tutelage.methods.dacs:DACS"
