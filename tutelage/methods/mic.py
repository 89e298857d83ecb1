"""MIC: what is hidden in a target image must be told from what is around it.

    L = L_host + w sum over pixels of q CE(student(m x_T), y_T) / their number

m hides most blocks of the target image; y_T and q are the average's pseudo labels of the whole image and their share of
sure pixels. Hidden and visible pixels count alike. The host is DACS, DAFormer or HRDA, whose average labels for both;
the masked image is a third pass of the step. See :mod:`tutelage.methods.mixed_self_training`.
Source: MIC (CVPR 2023) and its code.
"""

from __future__ import annotations

from collections.abc import Mapping

from tutelage.engine.contract import TaskInfo
from tutelage.methods.hrda import HRDA
from tutelage.methods.settings.mic import MICSettings
from tutelage.methods.settings.mixed_self_training import MixedSettings
from tutelage.nets.segmentor import Segmentor


class MIC(HRDA):
    """Masked images of the target, added to DACS, DAFormer or HRDA."""

    Settings = MICSettings  # type: ignore[assignment]

    def __init__(self, nets: Mapping[str, Segmentor], settings: MICSettings, info: TaskInfo) -> None:
        host: MixedSettings = getattr(settings, settings.host)
        super().__init__(nets, host, info, settings)
