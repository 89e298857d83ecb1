"""Settings of supervised training."""

from __future__ import annotations

from typing import ClassVar

from tutelage.engine.settings import MethodSettings, StreamSpec
from tutelage.methods.settings.common import TaskSettings


class SupervisedSettings(TaskSettings, MethodSettings):
    """Supervised training."""

    implementation: ClassVar[str] = "tutelage.methods.supervised:Supervised"
    streams: ClassVar[dict[str, StreamSpec]] = {
        "labeled": StreamSpec(labels=True, views=("weak",), about="images with masks")
    }
