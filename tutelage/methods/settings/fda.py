"""Settings of FDA and its self-training."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from tutelage.data.settings import StyleSettings
from tutelage.engine.settings import MethodSettings, StreamSpec
from tutelage.methods.settings.common import TaskSettings, Weight


class FDASettings(MethodSettings):
    """FDA."""

    implementation: ClassVar[str] = "tutelage.methods.fda:FDA"
    streams: ClassVar[dict[str, StreamSpec]] = {
        "source": StreamSpec(labels=True, views=("weak",), about="images with masks, from the labelled domain"),
        "target": StreamSpec(labels=False, views=("weak",), about="images of the domain that matters, without masks"),
    }

    style: StyleSettings = StyleSettings()
    """How source images take on the target's style; `beta` is the width of the window."""
    entropy: Weight = 0.005
    """w: weight of the entropy of the target."""
    entropy_eta: Annotated[float, Field(gt=0)] = 2.0
    """eta: the power of the squared entropy. Above 0.5 pixels that are unsure count more than in proportion."""
    entropy_normaliser: Annotated[float, Field(gt=0)] | None = None
    """Divisor of the entropy (nats); null: ln K, so that it is in 0..1. Published: 2.9444 (ln 19) always."""
    entropy_start: Annotated[int, Field(ge=0)] = 0
    """The step from which the entropy counts."""
    task: TaskSettings = TaskSettings()
    """The loss on labels."""


class FDASelfTrainingSettings(FDASettings):
    """FDA's second phase."""

    implementation: ClassVar[str] = "tutelage.methods.fda:FDASelfTraining"
    streams: ClassVar[dict[str, StreamSpec]] = {
        "source": StreamSpec(labels=True, views=("weak",), about="images with masks, from the labelled domain"),
        "target": StreamSpec(
            labels=True, views=("weak",), about="images of the domain that matters, with pseudo labels"
        ),
    }

    pseudo: Weight = 1.0
    """v: weight of the cross-entropy on the target's pseudo labels."""
