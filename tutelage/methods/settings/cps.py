"""Settings of CPS."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from tutelage.data.settings import BoxSettings
from tutelage.engine.settings import MethodSettings, StreamSpec
from tutelage.methods.settings.common import TaskSettings, Weight


class CPSSettings(MethodSettings):
    """Cross pseudo supervision."""

    implementation: ClassVar[str] = "tutelage.methods.cps:CPS"
    streams: ClassVar[dict[str, StreamSpec]] = {
        "labeled": StreamSpec(labels=True, views=("weak",), about="images with masks"),
        "unlabeled": StreamSpec(labels=False, views=("weak",), about="images without masks"),
    }

    weight: Weight = 1.5
    """w: weight of either cross term. Published: 1.5 (VOC), 6 (Cityscapes); with CutMix 1 and 5."""
    cutmix: bool = False
    """Whether the nets teach one another on mixed unlabelled images, rather than on all images as they are."""
    boxes: BoxSettings = BoxSettings()
    """What is mixed, with `cutmix`."""
    threshold: Annotated[float, Field(ge=0, le=1)] | None = None
    """Only pixels of which the other net is so sure count; the sum is still divided by all pixels. null (published):
    all count."""
    task: TaskSettings = TaskSettings()
    """The loss on labels."""
