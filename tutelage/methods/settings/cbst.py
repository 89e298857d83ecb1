"""Settings of CBST."""

from __future__ import annotations

from typing import ClassVar

from tutelage.engine.settings import MethodSettings, StreamSpec
from tutelage.methods.settings.common import TaskSettings, Weight


class CBSTSettings(MethodSettings):
    """Class-balanced self-training, one round."""

    implementation: ClassVar[str] = "tutelage.methods.cbst:CBST"
    streams: ClassVar[dict[str, StreamSpec]] = {
        "source": StreamSpec(labels=True, views=("weak",), about="images with masks, from the labelled domain"),
        "target": StreamSpec(
            labels=True, views=("weak",), about="images of the domain that matters, with pseudo labels"
        ),
    }

    regulariser: Weight = 0.1
    """r: weight of MRKLD, the divergence from the even distribution on labelled target pixels; 0: plain CBST."""
    task: TaskSettings = TaskSettings()
    """The loss on labels and pseudo labels."""
