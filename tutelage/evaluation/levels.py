"""Confidences in the 256 levels that pseudo-label files hold."""

from __future__ import annotations

import numpy as np


def level_of(threshold: float) -> int:
    """The lowest of the levels 0..255 at which a confidence counts as at least ``threshold``."""
    return int(np.ceil(threshold * 255 - 1e-9))
