"""Settings of DACS, DAFormer and HRDA alike."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from tutelage.data.settings import ClassesFrom, ColourSettings
from tutelage.engine.settings import MethodSettings, StreamSpec
from tutelage.methods.settings.common import Decay, TaskSettings, Weight
from tutelage.methods.settings.masked_consistency import MaskedConsistencySettings
from tutelage.settings import Settings

Rows = Annotated[int, Field(ge=0)]


class MarginSettings(Settings):
    """Borders of target images whose pseudo labels are not learned (the own car, edges of a rectified image)."""

    of: Literal["image", "crop"] = "image"
    """Pixels of the image file, wherever the crop lies, or rows and columns of every crop (as DAFormer's code)."""
    top: Rows = 0
    """Rows at the top."""
    bottom: Rows = 0
    """Rows at the bottom."""
    left: Rows = 0
    """Columns at the left."""
    right: Rows = 0
    """Columns at the right."""

    @property
    def any(self) -> bool:
        """Whether there is a margin."""
        return bool(self.top or self.bottom or self.left or self.right)


class MixedSettings(MethodSettings):
    """Settings of all methods that mix domains."""

    streams: ClassVar[dict[str, StreamSpec]] = {
        "source": StreamSpec(labels=True, views=("weak",), about="images with masks, from the labelled domain"),
        "target": StreamSpec(labels=False, views=("weak",), about="images of the domain that matters, without masks"),
    }

    weight: Weight = 1.0
    """Weight of the mixed images beside the source's."""
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.968
    """A pseudo label of at least this confidence is sure."""
    weighting: Literal["share", "pixel"] = "share"
    """Every pseudo label weighs q, the share of sure ones; or the sure ones weigh 1 and the others 0."""
    classes_from: ClassesFrom = "image"
    """Half of whose classes is pasted: each source `image`'s, or those of the whole (micro-)`batch`."""
    decay: Decay = 0.99
    """Decay of the moving average, at most; it begins with 1 - 1/n."""
    reduction: Literal["valid", "all"] = "valid"
    """The loss on source labels is divided by the number of valid pixels, or of all."""
    colour: ColourSettings = ColourSettings(
        probability=0.8, brightness=0.25, contrast=0.25, saturation=0.25, hue=0.25, blur=0.5, blur_sigma=(0.15, 1.15)
    )
    """Colours of mixed images. Whether they change is drawn once a step, how much for each image."""
    margins: MarginSettings = MarginSettings()
    """Borders of target images that are not learned."""
    task: TaskSettings = TaskSettings()
    """The loss on the source's labels."""
    masked_consistency: MaskedConsistencySettings | None = None
    """Masked target images (MIC); null: none."""

    first_update: ClassVar[int] = 0
    """n - 1 of the average's first update: after 0 it is a copy of the student."""
