"""Settings of ProDA."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from tutelage.data.randaugment import CutoutSettings, RandAugmentSettings
from tutelage.data.settings import ViewSettings
from tutelage.engine.settings import MethodSettings, StreamSpec
from tutelage.losses.options import Regularizer
from tutelage.methods.settings.common import CacheSettings, TaskSettings, Weight

STRONG = ViewSettings(randaugment=RandAugmentSettings(flip=0.5), cutout=CutoutSettings())
"""ProDA's strong view: two operations, flips, and a square of a third of the shorter side."""


class ProDASettings(MethodSettings):
    """ProDA, stage 1."""

    implementation: ClassVar[str] = "tutelage.methods.proda:ProDA"
    streams: ClassVar[dict[str, StreamSpec]] = {
        "source": StreamSpec(labels=True, views=("weak",), about="images with masks, from the labelled domain"),
        "target": StreamSpec(
            labels=False,
            views=("weak", "strong"),
            optional=("full",),
            defaults={"strong": STRONG},
            about="images of the domain that matters, without masks",
        ),
    }
    teachers: ClassVar[tuple[str, ...]] = ("labeller",)
    cached_teacher: ClassVar[tuple[str, str]] = ("labeller", "target")
    fitted_inputs: ClassVar[dict[str, tuple[str, ...]]] = {"prototypes": ("means", "anchors")}

    alpha: Weight = 0.1
    """a: weight of cross-entropy against the rectified labels."""
    beta: Weight = 1.0
    """b: weight of reverse cross-entropy."""
    regularizer: Regularizer = "mrkld"
    """Penalty on confident predictions: the divergence from the uniform distribution, or the entropy."""
    regularizer_weight: Weight = 0.1
    """g: its weight (0.1 for GTA5, 0 for SYNTHIA)."""
    structure: Weight = 10.0
    """Weight of the structure term; 0: the strong view is not used."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """T: what distances are multiplied by."""
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Rectified labels of a smaller share are left out; 0: none."""
    rate: Annotated[float, Field(ge=0, le=1)] = 1e-4
    """By which share a class mean of one image moves its prototype."""
    min_pixels: Annotated[int, Field(ge=1)] = 10
    """Fewer cells of a class in an image do not move its prototype."""
    decay: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """Decay of the moving average; running statistics are copied."""
    ema_eval: bool = False
    """Whether the average forwards in evaluation mode; published: with the batch's statistics and dropout."""
    labels_from: Literal["weak", "full"] = "weak"
    """The view that the warm-up net labels. Published are whole images, once before the stage: that is `cache`."""
    cache: CacheSettings | None = None
    """Store the warm-up net's outputs for whole images once; the net then runs in no step."""
    grid: Annotated[int, Field(ge=1)] = 4
    """Pixels of a view for each cell of the grid on which targets and losses lie."""
    task: TaskSettings = TaskSettings()
    """The loss on the source's labels; its `resize` holds for all maps."""

    @model_validator(mode="after")
    def _labels_once(self) -> ProDASettings:
        if self.cache is not None and self.labels_from == "full":
            raise ValueError(
                "labels_from must be weak with a cache, which holds labels of whole images, got full: "
                "remove it, or set cache: null"
            )
        return self

    def cache_temperature(self) -> float:
        """Labels are the warm-up net's own probabilities."""
        return 1.0
