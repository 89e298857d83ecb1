"""Settings of TriKD."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from tutelage.engine.settings import MethodSettings, OptimizerSettings, StreamSpec
from tutelage.losses.options import AttentionResize, Mean
from tutelage.methods.settings.common import TaskSettings, Weight

VIEWS = ("student", "cnn", "vit")


class TriKDSettings(MethodSettings):
    """Triple-view knowledge distillation."""

    implementation: ClassVar[str] = "tutelage.methods.trikd:TriKD"
    streams: ClassVar[dict[str, StreamSpec]] = {
        "labeled": StreamSpec(labels=True, views=("weak",), about="images with masks"),
        "unlabeled": StreamSpec(labels=False, views=("weak",), about="images without masks"),
    }
    trained_nets: ClassVar[tuple[str, ...]] = VIEWS

    student_weight: Weight = 1.0
    """w_s: weight of the student's loss on labels."""
    cnn_weight: Weight = 1.0
    """w_c: weight of the cnn's loss on labels."""
    vit_weight: Weight = 1.0
    """w_v: weight of the vit's loss on labels."""
    cps_weight: Weight = 0.1
    """c: weight of the six terms in which a view learns from the class maps of another."""
    cps_padding: bool = False
    """Whether padded pixels count there, as published."""
    spatial_weight: Weight = 0.9
    """l_low: weight of the spatial loss; 0.9 published for the smaller student, 0.5 for the larger."""
    spatial_scale: Literal["published", "variance"] = "published"
    """Whether the squared difference counts as it is, or divided by the variance of the cnn's features. Encoders with
    linear bottlenecks (EfficientNet, MobileNet) have large ones: with Lite2 the published term was a hundred times the
    loss on labels."""
    spatial_stride: Annotated[int, Field(gt=0)] = 4
    """The features compared: of each net the finest level whose positions are at least so many pixels apart."""
    attention_weight: Weight | None = None
    """l_high: weight of the attention loss; null: 0.5 (published) where student and vit have attention, else 0."""
    attention_resize: AttentionResize = "published"
    """How the attention of both meets: `published` (the student's enlarged as a flat picture of tokens), `spatial`
    (enlarged in the image), `pool` (the vit's brought to the student's grid; cheapest)."""
    kl: Mean = "elements"
    """The attention loss is a mean over all `elements` (published) or over `rows`, which makes it as many times larger
    as there are tokens."""
    vit_schedule: Literal["corrected", "published"] = "corrected"
    """The vit's learning rate moves as that of the others, or stays where it is, as published."""
    cnn_optimizer: OptimizerSettings | None = None
    """The cnn's optimizer; null: as the stage's."""
    vit_optimizer: OptimizerSettings | None = None
    """The vit's optimizer; null: as the stage's."""
    view_wise: bool = False
    """One net after the other: the same gradients in less memory, for two more forwards without gradient."""
    task: TaskSettings = TaskSettings(loss="ohem", ohem_min_kept=200_000)
    """The loss on labels of student and cnn."""
    vit_task: TaskSettings = TaskSettings()
    """The loss on labels of the vit."""
