"""Settings of UniMatch V2."""

from __future__ import annotations

from typing import ClassVar

from tutelage.data.settings import PartnerRule
from tutelage.engine.settings import StreamSpec
from tutelage.methods.settings.common import Decay
from tutelage.methods.settings.strong_views import STRONG_VIEW, StrongViewSettings


class UniMatchV2Settings(StrongViewSettings):
    """UniMatch V2."""

    implementation: ClassVar[str] = "tutelage.methods.unimatch_v2:UniMatchV2"
    streams: ClassVar[dict[str, StreamSpec]] = {
        "labeled": StreamSpec(labels=True, views=("weak",), about="images with masks"),
        "unlabeled": StreamSpec(
            labels=False,
            views=("weak", "strong", "strong2"),
            about="images without masks",
            defaults={"strong": STRONG_VIEW, "strong2": STRONG_VIEW},
        ),
    }

    partner: PartnerRule = "reversed"
    """Whose box: the `next` image's of the micro-batch, or that of the micro-batch in `reversed` order."""
    complementary_dropout: bool = True
    """Whether each strong view lacks the channels that the other one keeps; false: none is dropped."""
    decay: Decay = 0.996
    """Decay of the moving average, at most: min(1 - 1/(step + 1), decay)."""
