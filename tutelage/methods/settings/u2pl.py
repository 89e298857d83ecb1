"""Settings of U2PL."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from tutelage.data.settings import Mixing
from tutelage.engine.settings import MethodSettings, StreamSpec
from tutelage.losses.options import Indexing, NegativeRule, OneHot
from tutelage.methods.settings.common import QueuePrecision, TaskSettings, Weight

Count = Annotated[int, Field(gt=0)]


Percent = Annotated[float, Field(ge=0, le=100)]


Probability = Annotated[float, Field(ge=0, le=1)]


PUBLISHED = {"negatives": "published", "indexing": "published", "onehot": "published"}
"""The values of the preset `compat: published`."""


class U2PLSettings(MethodSettings):
    """U2PL."""

    implementation: ClassVar[str] = "tutelage.methods.u2pl:U2PL"
    streams: ClassVar[dict[str, StreamSpec]] = {
        "labeled": StreamSpec(labels=True, views=("weak",), about="images with masks"),
        "unlabeled": StreamSpec(labels=False, views=("weak",), about="images without masks"),
    }

    weight: Weight = 1.0
    """w: weight of the term on pseudo labels."""
    weight_contrast: Weight = 0.1
    """w_c: weight of the contrast. The paper's is 0.1; the released configurations leave it at 1, which one process's
    gradient feels as 1 / processes (0.25 on VOC, 0.125 on Cityscapes)."""
    keep_percent: Percent = 80.0
    """Percent of the pseudo labels that are kept at first; all are at the end."""
    alpha: Annotated[float, Field(ge=0, le=50)] = 20.0
    """a: percent of the pixels that are taken for sure, and for unsure, at first; none are at the end."""
    low_rank: Annotated[int, Field(ge=1)] = 3
    """An unsure pixel may be a negative of the classes from this rank on (0 is the most probable); smaller than the
    number of classes. Take 1 for two classes."""
    high_rank: Annotated[int, Field(ge=2)] = 20
    """... up to below this rank."""
    delta_p: Probability = 0.3
    """An anchor's probability of its class is above this, by the teacher."""
    delta_n: Probability = 1.0
    """A negative's probability of the class is below this (`negatives: published` alone)."""
    temperature: Annotated[float, Field(gt=0)] = 0.5
    """Temperature of the contrast."""
    dimensions: Count = 256
    """Length of a pixel's representation."""
    anchors: Count = 256
    """Anchors of a class and micro-batch, drawn with replacement."""
    negatives_per_anchor: Count = 50
    """Remembered negatives of each anchor, drawn with replacement."""
    queue: Count = 30000
    """Negatives that are remembered for each class."""
    queue_first: Count | None = None
    """The same for class 0 (published: 50000); null: as the others."""
    keys: Count | None = 2048
    """Negatives of one class that a micro-batch of one process adds to the memory, at most, evenly spread over all that
    it has. null (published): all that the memory can hold; processes send them to one another."""
    precision: QueuePrecision = "fp16"
    """How the memory is stored (published: fp32)."""
    mixing: Mixing = "cutmix"
    """How unlabelled images are mixed: `cutmix`, `classmix`, or `cutout`, which erases."""
    mixing_probability: Probability = 0.5
    """Share of the micro-batches that are mixed."""
    decay: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """Decay of the moving average; early ones forget faster: min(1 - 1/(n + 1), decay)."""
    supervised_steps: Annotated[int, Field(ge=0)] = 0
    """Steps of the beginning with labels alone, after which the teacher becomes a copy of the student (published: 1
    epoch on VOC, 0 on Cityscapes). n counts from their end."""
    compat: Literal["corrected", "published"] = "corrected"
    """`published`: the next three are `published` unless the recipe sets them."""
    negatives: NegativeRule = "paper"
    """`published` also requires the pixel's own label to be the class, so that no labelled pixel is a negative."""
    indexing: Indexing = "corrected"
    """`published` lets anchors of one class meet negatives of another where classes are absent."""
    onehot: OneHot = "correct"
    """`published` gives the classes of all images of a batch to its first one."""
    task: TaskSettings = TaskSettings()
    """The loss on labels."""

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, given: Any) -> Any:
        return {**PUBLISHED, **given} if isinstance(given, dict) and given.get("compat") == "published" else given

    @model_validator(mode="after")
    def _ordered(self) -> U2PLSettings:
        if self.low_rank >= self.high_rank:
            raise ValueError(f"low_rank must be below high_rank, {self.high_rank}, got {self.low_rank}")
        return self
