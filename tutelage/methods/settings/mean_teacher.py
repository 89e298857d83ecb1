"""Settings of Mean Teacher."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from tutelage.engine.settings import MethodSettings, StreamSpec
from tutelage.methods.settings.common import TaskSettings, Weight


class MeanTeacherSettings(MethodSettings):
    """Mean Teacher."""

    implementation: ClassVar[str] = "tutelage.methods.mean_teacher:MeanTeacher"
    streams: ClassVar[dict[str, StreamSpec]] = {
        "labeled": StreamSpec(labels=True, views=("weak",), about="images with masks"),
        "unlabeled": StreamSpec(labels=False, views=("weak",), about="images without masks"),
    }

    weight: Weight = 100.0
    """w: weight of the consistency term."""
    ramp_steps: Annotated[int, Field(ge=0)] = 0
    """Steps over which the weight rises as exp(-5 (1 - t)^2); 0 (published): from the start."""
    decay: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """Decay of the moving average."""
    ramp_decay: bool = False
    """Whether early averages forget faster: min(1 - 1/(step + 1), decay)."""
    task: TaskSettings = TaskSettings()
    """The loss on labels."""
