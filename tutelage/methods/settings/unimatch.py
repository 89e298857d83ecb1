"""Settings of UniMatch."""

from __future__ import annotations

from typing import ClassVar

from tutelage.engine.settings import StreamSpec
from tutelage.methods.settings.fixmatch import FixMatchSettings
from tutelage.methods.settings.strong_views import STRONG_VIEW


class UniMatchSettings(FixMatchSettings):
    """UniMatch (V1)."""

    implementation: ClassVar[str] = "tutelage.methods.unimatch:UniMatch"
    streams: ClassVar[dict[str, StreamSpec]] = {
        "labeled": StreamSpec(labels=True, views=("weak",), about="images with masks"),
        "unlabeled": StreamSpec(
            labels=False,
            views=("weak", "strong", "strong2"),
            about="images without masks",
            defaults={"strong": STRONG_VIEW, "strong2": STRONG_VIEW},
        ),
    }
