"""MIC: what is hidden in a target image must be told from what is around it.

    L = L_host + w sum over pixels of q CE(student(m x_T), y_T) / their number

m hides most blocks of the target image; y_T and q are the average's pseudo labels of the whole image and their share of
sure pixels. Hidden and visible pixels count alike. The host is DACS, DAFormer or HRDA, whose average labels for both;
the masked image is a third pass of the step. See :mod:`tutelage.methods.mixed_self_training`.
Source: MIC (CVPR 2023) and its code.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import model_validator

from tutelage.engine.contract import TaskInfo
from tutelage.methods.dacs import DACSSettings
from tutelage.methods.daformer import DAFormerSettings
from tutelage.methods.hrda import HRDA, HRDASettings
from tutelage.methods.mixed_self_training import MaskedSettings, MixedSettings
from tutelage.nets.segmentor import Segmentor


class DACSHost(DACSSettings):
    """Host `dacs`."""


class DAFormerHost(DAFormerSettings):
    """Host `daformer`."""


class HRDAHost(HRDASettings):
    """Host `hrda`."""


class MICSettings(MaskedSettings):
    """MIC."""

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


class MIC(HRDA):
    """Masked images of the target, added to DACS, DAFormer or HRDA."""

    Settings = MICSettings  # type: ignore[assignment]

    def __init__(self, nets: Mapping[str, Segmentor], settings: MICSettings, info: TaskInfo) -> None:
        host: MixedSettings = getattr(settings, settings.host)
        super().__init__(nets, host, info, settings)
