"""Settings of AdvEnt, AdaptSegNet and MinEnt."""

from __future__ import annotations

from typing import ClassVar, Literal

from tutelage.engine.settings import MethodSettings, OptimizerSettings, ScheduleSettings, StreamSpec
from tutelage.methods.settings.common import TaskSettings, Weight
from tutelage.methods.settings.masked_consistency import MaskedConsistencyWithAverageSettings


class AdvEntSettings(MethodSettings):
    """AdvEnt, and its relatives MinEnt and AdaptSegNet."""

    implementation: ClassVar[str] = "tutelage.methods.advent:AdvEnt"
    streams: ClassVar[dict[str, StreamSpec]] = {
        "source": StreamSpec(labels=True, views=("weak",), about="images with masks, from the labelled domain"),
        "target": StreamSpec(labels=False, views=("weak",), about="images of the domain that matters, without masks"),
    }

    maps: Literal["self_information", "softmax"] = "self_information"
    """Input of the discriminators: self-information (AdvEnt) or probabilities (AdaptSegNet)."""
    adversarial: Weight = 0.001
    """l: weight of the adversarial term of the main logits."""
    adversarial_auxiliary: Weight = 0.0002
    """The same for the auxiliary logits, where the net has them."""
    entropy: Weight = 0.0
    """m: weight of the entropy of the target's main logits (MinEnt: 0.001, with adversarial 0)."""
    entropy_auxiliary: Weight = 0.0
    """The same for the auxiliary logits (MinEnt: 0.0002)."""
    loss: Literal["bce", "least_squares"] = "bce"
    """The discriminators' loss."""
    critic: Literal["adaptsegnet", "proda"] = "adaptsegnet"
    """The discriminators' layers: AdaptSegNet's, which ADVENT shares, or those of ProDA's warm-up."""
    critic_weight: Weight = 0.5
    """Weight of each domain in the discriminators' loss (ProDA's warm-up: 1)."""
    critic_optimizer: OptimizerSettings = OptimizerSettings(kind="adam", lr=1e-4, betas=(0.9, 0.99), weight_decay=0.0)
    """The discriminators' optimizer."""
    critic_schedule: ScheduleSettings = ScheduleSettings(kind="poly", power=0.9)
    """The discriminators' learning rate over the stage."""
    task: TaskSettings = TaskSettings(auxiliary=0.1)
    """The loss on the source's labels."""
    masked_consistency: MaskedConsistencyWithAverageSettings | None = None
    """Masked target images (MIC) with pseudo labels by a moving average; null: neither."""


class AdaptSegNetSettings(AdvEntSettings):
    """AdaptSegNet; its least-squares variant: `loss: least_squares, adversarial: 0.01, adversarial_auxiliary: 0`."""

    implementation: ClassVar[str] = "tutelage.methods.advent:AdaptSegNet"

    maps: Literal["self_information", "softmax"] = "softmax"
    """Input of the discriminators: probabilities."""


class MinEntSettings(MethodSettings):
    """Entropy minimisation on the target."""

    implementation: ClassVar[str] = "tutelage.methods.advent:MinEnt"
    streams: ClassVar[dict[str, StreamSpec]] = AdvEntSettings.streams

    entropy: Weight = 0.001
    """m: weight of the entropy of the target's main logits."""
    entropy_auxiliary: Weight = 0.0002
    """The same for the auxiliary logits, where the net has them."""
    task: TaskSettings = TaskSettings(auxiliary=0.1)
    """The loss on the source's labels."""
    masked_consistency: MaskedConsistencyWithAverageSettings | None = None
    """Masked target images (MIC) with pseudo labels by a moving average; null: neither."""
