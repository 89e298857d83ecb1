"""Settings of self-distillation."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from tutelage.engine.settings import MethodSettings, StreamSpec
from tutelage.losses.options import DivergenceForm
from tutelage.methods.settings.common import TaskSettings, Weight
from tutelage.methods.settings.proda import STRONG


class SelfDistillSettings(MethodSettings):
    """Self-distillation."""

    implementation: ClassVar[str] = "tutelage.methods.self_distill:SelfDistill"
    streams: ClassVar[dict[str, StreamSpec]] = {
        "source": StreamSpec(labels=True, views=("weak",), about="images with masks, from the labelled domain"),
        "target": StreamSpec(
            labels=True,
            views=("weak", "strong"),
            defaults={"strong": STRONG},
            about="images of the domain that matters, with pseudo labels of an `annotate` stage",
        ),
    }
    teachers: ClassVar[tuple[str, ...]] = ("teacher",)

    target_loss: Literal["cross_entropy", "symmetric"] = "cross_entropy"
    """T: cross-entropy (ProDA, PBAL), or with its reverse beside it (BiSMAP)."""
    alpha: Weight = 0.1
    """a: for `symmetric`, the weight of cross-entropy."""
    beta: Weight = 1.0
    """b: for `symmetric`, the weight of reverse cross-entropy."""
    kd: Weight = 1.0
    """w: weight of the divergence from the teacher."""
    form: DivergenceForm = "log"
    """The divergence (`log`), or, as in ProDA's and BiSMAP's code, p in place of log p (`code`): hardly a signal."""
    view: Literal["strong", "weak"] = "strong"
    """The view of the target that student and teacher see (BiSMAP: `weak`)."""
    grid: Annotated[int, Field(ge=1)] = 4
    """Pixels of the view for each cell of the grid of labels and divergence (BiSMAP: 1)."""
    task: TaskSettings = TaskSettings()
    """The loss on the source's labels; its `resize` holds for all logits."""
