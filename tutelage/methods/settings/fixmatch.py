"""Settings of FixMatch."""

from __future__ import annotations

from typing import ClassVar, Literal

from tutelage.engine.settings import StreamSpec
from tutelage.methods.settings.common import Decay
from tutelage.methods.settings.strong_views import STRONG_VIEW, StrongViewSettings


class FixMatchSettings(StrongViewSettings):
    """FixMatch."""

    implementation: ClassVar[str] = "tutelage.methods.fixmatch:FixMatch"
    streams: ClassVar[dict[str, StreamSpec]] = {
        "labeled": StreamSpec(labels=True, views=("weak",), about="images with masks"),
        "unlabeled": StreamSpec(
            labels=False,
            views=("weak", "strong"),
            about="images without masks",
            defaults={"strong": STRONG_VIEW},
        ),
    }

    pseudo_labels: Literal["student", "ema"] = "student"
    """Who labels the weak view: the net itself (the UniMatch code), or its moving average (the UniMatch V2 code)."""
    decay: Decay = 0.996
    """Decay of the moving average, at most: min(1 - 1/(step + 1), decay); for `pseudo_labels: ema` alone."""
