"""MIC: DAFormer with masked consistency.

    L = L_DAFormer + w sum over pixels of q CE(student(m x_T), y_T) / their number

The term is that of :mod:`tutelage.methods.masked_consistency`; with another host it is a setting of `dacs`, `hrda`,
`advent`, `adaptsegnet` or `minent`. Source: MIC (CVPR 2023) and its code.
"""

from __future__ import annotations

from tutelage.methods.daformer import DAFormer
from tutelage.methods.settings.mic import MICSettings


class MIC(DAFormer):
    """DAFormer whose net also predicts the hidden blocks of target images from their context."""

    Settings = MICSettings
