"""DACS: half of a source image's classes is pasted into a target image; what surrounds them has pseudo labels.

    L = CE(x_S, y_S) + w sum over pixels of weight CE(T(x_M), y_M) / their number

See :mod:`tutelage.methods.mixed_self_training`. The average forwards in batch-statistics mode with statistics of its
own; after step t (from 0) it follows with min(1 - 1/(t + 1), 0.99), so that it is a copy after the first.
Source: DACS (WACV 2021) and its code.
"""

from __future__ import annotations

from tutelage.methods.mixed_self_training import MixedSelfTraining
from tutelage.methods.settings.dacs import DACSSettings


class DACS(MixedSelfTraining):
    """Labels of one domain, images of another: they are mixed, and the net's average labels the rest."""

    Settings = DACSSettings
