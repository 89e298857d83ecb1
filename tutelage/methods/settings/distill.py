"""Settings of `distill`: any combination of terms."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import model_validator

from tutelage.engine.settings import MethodSettings, StreamSpec
from tutelage.methods.settings.common import CacheSettings, TaskSettings
from tutelage.methods.settings.distill_terms import (
    ATSettings,
    ChannelSettings,
    CWDFeaturesSettings,
    CWDSettings,
    DISTSettings,
    DSDCategorySettings,
    DSDPixelSettings,
    FitNetSettings,
    IFVDSettings,
    MemorySettings,
    MGDSettings,
    MinibatchPixelSettings,
    PixelKDTermSettings,
    SKDHolisticSettings,
    SKDPairwiseSettings,
    WeightOrSettings,
)
from tutelage.settings import Settings


class Losses(Settings):
    """The terms beside the task loss; a bare number is a weight, the rest as published."""

    pixel_kd: Annotated[PixelKDTermSettings | None, WeightOrSettings] = None
    """The teacher's class distribution at every position."""
    skd_pairwise: Annotated[SKDPairwiseSettings | None, WeightOrSettings] = None
    """Structured KD: similarities of all pairs of positions of an image."""
    skd_holistic: Annotated[SKDHolisticSettings | None, WeightOrSettings] = None
    """Structured KD: a critic that distinguishes the logits of the two nets."""
    ifvd: Annotated[IFVDSettings | None, WeightOrSettings] = None
    """Intra-class feature variation: similarity of each position to its class's mean."""
    cwd: Annotated[CWDSettings | None, WeightOrSettings] = None
    """Channel-wise distillation of logits: where each class is."""
    cwd_features: Annotated[CWDFeaturesSettings | None, WeightOrSettings] = None
    """Channel-wise distillation of features: where each channel fires."""
    dsd_pixel: Annotated[DSDPixelSettings | None, WeightOrSettings] = None
    """Double similarity: how attention changes from map to map."""
    dsd_category: Annotated[DSDCategorySettings | None, WeightOrSettings] = None
    """Double similarity: similarities of all pairs of classes."""
    at: Annotated[ATSettings | None, WeightOrSettings] = None
    """Attention transfer."""
    fitnet: Annotated[FitNetSettings | None, WeightOrSettings] = None
    """Regression of the teacher's features."""
    dist: Annotated[DISTSettings | None, WeightOrSettings] = None
    """Correlation between classes and within classes."""
    mgd: Annotated[MGDSettings | None, WeightOrSettings] = None
    """Masked generative distillation: the teacher's features from the student's, partly masked."""
    cirkd_minibatch: Annotated[MinibatchPixelSettings | None, WeightOrSettings] = None
    """CIRKD: relations between the pixels of a mini-batch."""
    cirkd_memory: Annotated[MemorySettings | None, WeightOrSettings] = None
    """CIRKD: relations to remembered pixels and regions."""
    cirkd_channel: Annotated[ChannelSettings | None, WeightOrSettings] = None
    """CIRKD V2: relations between channels, in the mini-batch and to remembered ones."""

    def chosen(self) -> dict[str, Any]:
        """The terms with a weight above zero."""
        terms = {name: getattr(self, name) for name in type(self).model_fields}
        return {name: settings for name, settings in terms.items() if settings is not None and settings.weight > 0}


class DistillBase(MethodSettings):
    """Settings of every distillation."""

    streams: ClassVar[dict[str, StreamSpec]] = {
        "labeled": StreamSpec(labels=True, views=("weak",), about="images with masks")
    }
    teachers: ClassVar[tuple[str, ...]] = ("teacher",)
    cached_teacher: ClassVar[tuple[str, str]] = ("teacher", "labeled")

    student_feature: str = "embedding"
    """The student's map for feature terms: `embedding`, `level0` (the encoder's finest) to `level4`, or the name of a
    submodule (`encoder.layer3`)."""
    teacher_feature: str = "embedding"
    """The same for the teacher."""
    task: TaskSettings = TaskSettings()
    """The loss on labels beside it."""
    cache: CacheSettings | None = None
    """Reuse the teacher's output of every whole image; null: it forwards every crop. See the page on training for when
    a cache pays."""

    def terms(self) -> Losses:
        """The terms; published combinations define them here."""
        raise NotImplementedError

    @model_validator(mode="after")
    def _kept_in_a_cache(self) -> DistillBase:
        if self.cache is not None:
            self.cache_temperature()
        return self

    def cache_temperature(self) -> float:
        """The temperature that all terms share."""
        return temperature_of(self.terms())


def temperature_of(losses: Losses) -> float:
    """The temperature at which a cache keeps the teacher's probabilities for these terms.

    Raises ``ValueError`` for terms that need more of the teacher, or several temperatures.
    """
    chosen = losses.chosen()
    lacking = [f"{name} needs {it}" for name, own in chosen.items() if (it := own.beyond_probabilities())]
    if lacking:
        raise ValueError(
            f"a cache holds only the teacher's class probabilities, but {', '.join(lacking)}: set cache: null"
        )
    temperatures = {settings.temperature for settings in chosen.values()}
    if len(temperatures) != 1:
        raise ValueError(
            "a cache holds the teacher's class probabilities at one temperature, "
            + ("but the terms have several" if temperatures else "but no term has a weight above 0")
        )
    return float(temperatures.pop())


class DistillSettings(DistillBase):
    """Distillation by any combination of terms."""

    implementation: ClassVar[str] = "tutelage.methods.distillation.distill:Distill"

    losses: Losses = Losses(pixel_kd=PixelKDTermSettings())
    """Terms by name."""
    context: bool = False
    """Whether feature terms see the student through CIRKD V2's context block, which is dropped at the end."""

    def terms(self) -> Losses:
        """Those of the recipe."""
        return self.losses
