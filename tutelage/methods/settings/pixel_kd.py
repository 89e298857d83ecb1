"""Settings of pixel-wise distillation."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from tutelage.engine.settings import MethodSettings, StreamSpec
from tutelage.methods.settings.common import CacheSettings, TaskSettings, Weight
from tutelage.methods.settings.distill import DistillSettings


class PixelKDSettings(MethodSettings):
    """Pixel-wise distillation from a trained teacher."""

    implementation: ClassVar[str] = "tutelage.methods.pixel_kd:PixelKD"
    streams: ClassVar[dict[str, StreamSpec]] = DistillSettings.streams
    teachers: ClassVar[tuple[str, ...]] = DistillSettings.teachers
    cached_teacher: ClassVar[tuple[str, str]] = DistillSettings.cached_teacher

    temperature: Annotated[float, Field(gt=0)] = 1.0
    """T: above 1, both distributions are softened."""
    weight: Weight = 1.0
    """w: weight of the distillation term."""
    task: TaskSettings = TaskSettings()
    """The loss on labels beside it."""
    cache: CacheSettings | None = None
    """Reuse the teacher's output of every whole image; null: it forwards every crop. See the page on training for when
    a cache pays."""

    def cache_temperature(self) -> float:
        """T."""
        return self.temperature
