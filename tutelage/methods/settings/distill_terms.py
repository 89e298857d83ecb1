"""Settings of the distillation terms, one class a term."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from tutelage.engine.settings import OptimizerSettings
from tutelage.losses.options import SMALLEST_TEMPERATURE
from tutelage.methods.settings.common import QueuePrecision, Weight
from tutelage.settings import Settings


class TermSettings(Settings):
    """Settings of every term."""

    weight: Weight = 1.0
    """Weight of the term."""

    def beyond_probabilities(self) -> str:
        """The inputs of the term from the teacher besides softmax(logits / temperature); empty if none."""
        return "its maps"


def _short(value: Any) -> Any:
    """A bare number is a weight."""
    return {"weight": value} if isinstance(value, (int, float)) and not isinstance(value, bool) else value


WeightOrSettings = BeforeValidator(_short)


class ATSettings(TermSettings):
    """Attention transfer between features."""

    weight: Weight = 10_000.0
    """Weight of the term."""
    power: Annotated[float, Field(ge=1)] = 2.0
    """p: the higher, the more the strongest channels count."""


Count = Annotated[int, Field(gt=0)]


Temperature = Annotated[float, Field(ge=SMALLEST_TEMPERATURE)]


Compat = Literal["corrected", "published"]


class MinibatchPixelSettings(TermSettings):
    """Mini-batch pixel-to-pixel."""

    temperature: Temperature = 0.1
    """tau."""
    group_size: Count = 4
    """Images that are compared with one another. Published: those of one GPU, 2 (V1) or 1 (V2, Cityscapes)."""
    pool: Count | None = None
    """Average features over so many positions first. null: 4 for grids of 256 x 256 and more (as V2), else none."""


class MemorySettings(TermSettings):
    """Memory pixel-to-pixel and pixel-to-region; `weight` multiplies both of their own."""

    pixel: Weight = 0.1
    """Weight of relations to remembered pixels (published: 0.1; Pascal VOC 0.01)."""
    region: Weight = 0.1
    """Weight of relations to remembered class means."""
    temperature: Temperature = 0.1
    """tau."""
    softening: Annotated[float, Field(gt=0)] = 1.0
    """T: distributions are softened by it, and the loss multiplied by its square."""
    pixel_slots: Count = 20000
    """Slots of the pixel queue per class (published: 20000; SegFormer 2000)."""
    region_slots: Count = 2000
    """Slots of the region queue per class."""
    pixels: Count = 4096
    """Remembered pixels that a step compares with, over all classes."""
    regions: Count = 1024
    """Remembered regions that a step compares with, over all classes."""
    anchors: Count | None = None
    """Positions of a micro-batch that are compared, drawn anew each step; null (published): all. Fine grids need it."""
    enqueue: Count = 16
    """Pixels of one class and image that are remembered, at most."""
    precision: QueuePrecision = "fp16"
    """How queues are stored (published: fp32)."""
    compat: Compat = "corrected"
    """`published` keeps two defects of the published code, see the methods' page."""

    @model_validator(mode="after")
    def _room(self) -> MemorySettings:
        if self.enqueue > self.pixel_slots:
            raise ValueError(f"enqueue must be at most pixel_slots, {self.pixel_slots}, got {self.enqueue}")
        return self


class ChannelSettings(TermSettings):
    """CIRKD V2's channel terms; `weight` multiplies each of their own."""

    minibatch: Weight = 1.0
    """Weight of relations between the channels of a group of images."""
    memory: Weight = 0.1
    """Weight of relations to remembered channels."""
    regression: Weight = 100.0
    """Weight of the squared difference."""
    temperature: Temperature = 0.1
    """tau."""
    softening: Annotated[float, Field(gt=0)] = 1.0
    """T of the memory's relations."""
    group_size: Count = 4
    """Images whose channels are compared with one another (published: those of one GPU)."""
    pool: Count = 4
    """Side of the squares over which maps are averaged."""
    slots: Count = 10000
    """Slots of the queue."""
    channels: Count = 2048
    """Remembered channels that a step compares with."""
    enqueue: Count = 256
    """Channels that are remembered each step, at most."""
    precision: QueuePrecision = "fp16"
    """How the queue is stored (published: fp32)."""
    compat: Compat = "corrected"
    """`published`: an overflow writes the last slots of the queue."""


class CWDSettings(TermSettings):
    """Channel-wise distillation of logits."""

    weight: Weight = 3.0
    """Weight of the term (0.3 for SegFormer)."""
    temperature: Annotated[float, Field(gt=0)] = 4.0
    """T: above 1, both distributions are softened."""


class CWDFeaturesSettings(TermSettings):
    """Channel-wise distillation of features."""

    weight: Weight = 50.0
    """Weight of the term (5 for SegFormer); the published strength is 50 Ct / Cs, see `divisor`."""
    temperature: Annotated[float, Field(gt=0)] = 4.0
    """T: above 1, both distributions are softened."""
    divisor: Literal["teacher", "published"] = "teacher"
    """The channels that the sum is divided by: the teacher's, which makes it a mean, or (`published`) the student's."""


class DISTSettings(TermSettings):
    """DIST on logits."""

    inter: Weight = 1.0
    """b: weight of the correlation between classes, at each position."""
    intra: Weight = 1.0
    """g: weight of the correlation within each class, over all positions of the batch."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """T: above 1, both distributions are softened."""
    auxiliary: Weight = 0.4
    """Share of the weight for auxiliary logits, where both nets have them."""

    def beyond_probabilities(self) -> str:
        """Auxiliary logits, unless they have no weight."""
        return "its auxiliary logits (`auxiliary: 0` leaves them out)" if self.auxiliary else ""


class DSDPixelSettings(TermSettings):
    """Pixel-wise similarity of double similarity distillation."""

    weight: Weight = 1000.0
    """Weight of the term, which is of order 1e-2."""


class DSDCategorySettings(TermSettings):
    """Category-wise similarity of double similarity distillation."""

    weight: Weight = 10.0
    """Weight of the term, which is of order 1e-6 (as published)."""
    temperature: Annotated[float, Field(gt=0)] = 4.0
    """T of the softmax over positions."""


class FitNetSettings(TermSettings):
    """Regression of features."""

    weight: Weight = 10.0
    """Weight of the term."""


class IFVDSettings(TermSettings):
    """Intra-class feature variation."""

    weight: Weight = 20.0
    """Weight of the term."""


class MGDSettings(TermSettings):
    """Masked generative distillation of features."""

    weight: Weight = 2e-5
    """Weight of the term, a sum over channels and positions."""
    ratio: Annotated[float, Field(ge=0, lt=1)] = 0.75
    """Share of the positions that are masked."""


class PixelKDTermSettings(TermSettings):
    """Pixel-wise distillation of logits."""

    temperature: Annotated[float, Field(gt=0)] = 1.0
    """T: above 1, both distributions are softened."""

    def beyond_probabilities(self) -> str:
        """Nothing."""
        return ""


class SKDPairwiseSettings(TermSettings):
    """Pair-wise similarities of structured knowledge distillation."""

    weight: Weight = 10.0
    """Weight of the term."""
    pool: Annotated[int, Field(gt=0)] = 2
    """Side of the windows of positions that are max-pooled first; memory falls with its fourth power."""


class SKDHolisticSettings(TermSettings):
    """The critic of structured knowledge distillation."""

    weight: Weight = 0.001
    """w: weight of the loss of the student from the critic."""
    critic_weight: Weight = 0.1
    """v: weight of the critic's own loss; Adam largely cancels it."""
    loss: Literal["hinge", "wgan-gp"] = "hinge"
    """The critic's loss."""
    gradient_penalty: Weight = 10.0
    """g: for `wgan-gp`, the weight of the gradient penalty."""
    critic_optimizer: OptimizerSettings = OptimizerSettings(kind="adam", lr=4e-4, betas=(0.9, 0.99), weight_decay=0.0)
    """The critic's optimizer; its rate is constant."""
