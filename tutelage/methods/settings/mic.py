"""Settings of MIC."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import model_validator

from tutelage.engine.settings import MethodSettings
from tutelage.methods.settings.dacs import DACSSettings
from tutelage.methods.settings.daformer import DAFormerSettings
from tutelage.methods.settings.hrda import HRDASettings
from tutelage.methods.settings.mixed_self_training import MaskedSettings


class DACSHost(DACSSettings):
    """Host `dacs`."""


class DAFormerHost(DAFormerSettings):
    """Host `daformer`."""


class HRDAHost(HRDASettings):
    """Host `hrda`."""


class MICSettings(MaskedSettings, MethodSettings):
    """MIC."""

    implementation: ClassVar = "tutelage.methods.mic:MIC"
    streams: ClassVar = DAFormerSettings.streams

    host: Literal["dacs", "daformer", "hrda"] = "daformer"
    """The method that it is added to."""
    dacs: DACSHost = DACSHost()
    """Settings of host `dacs`."""
    daformer: DAFormerHost = DAFormerHost()
    """Settings of host `daformer`."""
    hrda: HRDAHost = HRDAHost()
    """Settings of host `hrda`."""

    @model_validator(mode="after")
    def _of_the_host(self) -> MICSettings:
        other = {"dacs", "daformer", "hrda"} & self.model_fields_set - {self.host}
        if other:
            raise ValueError(f"settings of {' and '.join(sorted(other))} are given, but the host is {self.host}")
        return self
