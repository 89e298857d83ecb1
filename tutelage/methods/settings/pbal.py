"""Settings of both stages of PBAL."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from tutelage.data.settings import ColourSettings, ViewSettings
from tutelage.engine.settings import MethodSettings, OptimizerSettings, ScheduleSettings, StreamSpec
from tutelage.losses.options import Reduction
from tutelage.methods.settings.common import TaskSettings, Weight

COLOURED = ViewSettings(colour=ColourSettings(brightness=0.5, contrast=0.5, saturation=0.5, hue=0.2))
"""The published colours: always all four."""


ADVERSARIAL = 0.01


_PAPERS_NAMES = {"s2t": "pixel_to_prototype", "t2s": "prototype_to_pixel"}


class PBALBidirectionalSettings(MethodSettings):
    """PBAL's first stage: bidirectional prototype learning."""

    implementation: ClassVar[str] = "tutelage.methods.pbal:PBALBidirectional"
    streams: ClassVar[dict[str, StreamSpec]] = {
        "source": StreamSpec(
            labels=True,
            views=("strong",),
            about="images with masks, from the labelled domain",
            defaults={"strong": COLOURED},
        ),
        "target": StreamSpec(labels=False, views=("weak",), about="images of the domain that matters, without masks"),
    }

    adversarial: Weight = ADVERSARIAL
    """l: weight of the adversarial term on the softmax of the target's logits. 0 or `false`: none; `true`: 0.01."""
    weight: Weight = 0.1
    """w: weight of the two directions. 0: the warm-up of stage 0."""
    pixel_to_prototype: bool = True
    """Whether every pixel spreads itself over the prototypes (the code's `s2t`, a name that is accepted too)."""
    prototype_to_pixel: bool = True
    """Whether every prototype spreads itself over all pixels (the code's `t2s`, a name that is accepted too)."""
    scope: Literal["global", "local"] = "global"
    """Over whose pixels prototypes spread themselves: those of all processes, or of each one alone."""
    prototype_grad: bool = False
    """Whether the cosines' gradient reaches the classifier's weight; published: only that of the logits does."""
    critic_optimizer: OptimizerSettings = OptimizerSettings(kind="adam", lr=1e-4, betas=(0.9, 0.99), weight_decay=0.0)
    """The discriminator's optimizer."""
    critic_schedule: ScheduleSettings = ScheduleSettings(kind="poly", power=0.9)
    """The discriminator's learning rate over the stage."""
    task: TaskSettings = TaskSettings()
    """The loss on the source's labels."""

    @model_validator(mode="before")
    @classmethod
    def _papers_names(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        for theirs, ours in _PAPERS_NAMES.items():
            if theirs in values and ours in values:
                raise ValueError(f"{theirs} and {ours} are the same setting: give one of them")
        return {_PAPERS_NAMES.get(name, name): value for name, value in values.items()}

    @field_validator("adversarial", mode="before")
    @classmethod
    def _switch(cls, value: Any) -> Any:
        return ADVERSARIAL if value is True else value


class PBALSelfTrainingSettings(MethodSettings):
    """PBAL's second stage: prototypical self-training."""

    implementation: ClassVar[str] = "tutelage.methods.pbal:PBALSelfTraining"
    streams: ClassVar[dict[str, StreamSpec]] = {
        "source": StreamSpec(
            labels=True,
            views=("strong",),
            about="images with masks, from the labelled domain",
            defaults={"strong": COLOURED},
        ),
        "target": StreamSpec(
            labels=True,
            views=("strong",),
            about="images of the domain that matters, with pseudo labels of an `annotate` stage",
            defaults={"strong": COLOURED},
        ),
    }

    contrast_source: Weight = 1.0
    """a_s: weight of the contrast of source pixels and prototypes. 0 or `false`: none."""
    contrast_target: Weight = 1.0
    """a_t: the same for target pixels with a pseudo label."""
    temperature: Annotated[float, Field(gt=0)] = 0.07
    """tau, by which cosines are divided."""
    reduction: Reduction = "all"
    """Divisor of the sum over labelled positions: all positions, so that a batch with few labels counts little
    (published), or those with a label (`valid`)."""
    prototype_grad: bool = True
    """Whether the contrast's gradient reaches the classifier's weight: as in the paper's code, not as in its figure."""
    projection: Literal["none", "linear"] = "none"
    """Projection of features and prototypes before the contrast: none, as in the paper's code, or one trained
    linear map for both, which its figure may mean. It is not part of the net that the stage exports."""
    normalise_target: bool = True
    """Whether the net normalises target images as it does all others. The published loader leaves it out for training
    on the target alone, though the net is evaluated on normalised images; `false` repeats that."""
    task: TaskSettings = TaskSettings()
    """The loss on labels, and on pseudo labels."""
