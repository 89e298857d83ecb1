"""Settings of BiSMAP and its warm-up."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from tutelage.data.randaugment import CutoutSettings, RandAugmentSettings
from tutelage.data.settings import ViewSettings
from tutelage.engine.settings import MethodSettings, StreamSpec
from tutelage.losses.options import ResizeRule
from tutelage.methods.settings.common import Decay, Weight

MASKED_VIEW = ViewSettings(
    randaugment=RandAugmentSettings(geometric=False), cutout=CutoutSettings(share=0.2, of="width", fill=0)
)
"""The published masked view: two random colour operations and a black square, for recipes that name none."""


class BiSMAPWarmUpSettings(MethodSettings):
    """BiSMAP's warm-up."""

    implementation: ClassVar[str] = "tutelage.methods.bismap:BiSMAPWarmUp"
    streams: ClassVar[dict[str, StreamSpec]] = {
        "source": StreamSpec(labels=True, views=("weak",), about="images with masks, from the labelled domain"),
        "target": StreamSpec(
            labels=False,
            views=("weak", "masked"),
            defaults={"masked": MASKED_VIEW},
            about="images of the domain that matters, without masks",
        ),
    }

    source: Weight = 1.0
    """Weight of the loss on the source's labels."""
    consistency: Weight = 30.0
    """l: weight of the agreement with the average, at the end of its ramp."""
    ramp_steps: Annotated[int, Field(ge=0)] = 4000
    """T: steps over which this weight rises; 0: from the start."""
    decay: Decay = 0.999
    """Decay of the moving average."""
    teacher_norm: Literal["batch", "running"] = "batch"
    """How the average normalises: by the batch's statistics (published), or by running ones as in evaluation."""
    auxiliary: Weight = 0.4
    """Weight of the auxiliary head's loss on the source's labels, where the net has one (published: none)."""
    resize: ResizeRule = "grid"
    """How logits are brought to the size of the image (published: `corners`)."""

    @model_validator(mode="after")
    def _something(self) -> BiSMAPWarmUpSettings:
        if not any(self.weights().values()):
            raise ValueError(f"at least one weight of {', '.join(self.weights())} must be above 0")
        return self

    def weights(self) -> dict[str, float]:
        """The weight of each pass, in the published order."""
        return {"source": self.source, "consistency": self.consistency}


class BiSMAPSettings(BiSMAPWarmUpSettings):
    """BiSMAP's self-training."""

    implementation: ClassVar[str] = "tutelage.methods.bismap:BiSMAP"
    streams: ClassVar[dict[str, StreamSpec]] = {
        "source": BiSMAPWarmUpSettings.streams["source"],
        "target": StreamSpec(
            labels=True,
            views=("weak", "masked"),
            defaults={"masked": MASKED_VIEW},
            about="images of the domain that matters, with pseudo labels of an `annotate` stage",
        ),
    }

    target: Weight = 1.0
    """Weight of the loss on pseudo labels."""
    alpha: Weight = 0.1
    """a: weight of cross-entropy on pseudo labels."""
    beta: Weight = 1.0
    """b: weight of reverse cross-entropy on them."""

    def weights(self) -> dict[str, float]:
        """The weight of each pass, in the published order."""
        return {**super().weights(), "pseudo": self.target}
