"""Settings of CAG-UDA."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from tutelage.engine.settings import MethodSettings, StreamSpec
from tutelage.methods.settings.common import TaskSettings, Weight


class CAGSettings(MethodSettings):
    """CAG-UDA."""

    implementation: ClassVar[str] = "tutelage.methods.cag:CAG"
    streams: ClassVar[dict[str, StreamSpec]] = {
        "source": StreamSpec(labels=True, views=("weak",), about="images with masks, from the labelled domain"),
        "target": StreamSpec(labels=False, views=("weak",), about="images of the domain that matters, without masks"),
    }
    teachers: ClassVar[tuple[str, ...]] = ("labeller",)
    fitted_inputs: ClassVar[dict[str, tuple[str, ...]]] = {"anchors": ("anchors", "means")}

    margin: Annotated[float, Field(ge=0)] = 2.5
    """How much farther the second nearest anchor must be; it depends on the features' scale."""
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.95
    """A prediction above this probability is a label, too."""
    pseudo_labels: Weight = 0.5
    """Weight of cross-entropy against each kind of pseudo label."""
    distance: Weight = 0.7
    """Weight of the distances to the anchors, of each domain."""
    min_pixels: Annotated[int, Field(ge=1)] = 10
    """A class mean of fewer positions is left out."""
    task: TaskSettings = TaskSettings()
    """The loss on the source's labels."""
