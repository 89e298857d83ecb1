"""The data that an audit, or a choice of weights without masks, uses."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tutelage.audit.images import Truth, held_out
from tutelage.data.statistics import read_statistics
from tutelage.pipeline.builder import Builder
from tutelage.recipe.base import StageSettings
from tutelage.recipe.references import with_all_before
from tutelage.settings import Reference, references


def streamed(stage: StageSettings, masks: bool) -> list[str]:
    """The data on which a stage trains nets, with or without their masks."""
    return list(dict.fromkeys(it.value for it in _trained(stage) if it.ref.masks == masks))


def held_out_images(builder: Builder, val: str, stage: StageSettings, images: int | None = None) -> Truth:
    """Evenly spread ``images`` of ``val``, without the training images of ``stage`` and the stages before it."""
    return held_out(val, builder.dataset(val), learnt_from(builder, stage), images)


def learnt_from(builder: Builder, stage: StageSettings) -> set[Path]:
    """The training images of a stage and of those it depends on, with or without masks."""
    stages = with_all_before(builder.recipe, stage)
    data = {it.value for one in stages for it in (_trained(one) if one.trains else _fitted(one))}
    return {sample.image.resolve() for name in data for sample in builder.dataset(name).samples}


def _trained(stage: StageSettings) -> Iterable[Reference]:
    return (it for it in references(stage) if it.ref.trains)


def _fitted(stage: StageSettings) -> Iterable[Reference]:
    """The data of a stage that fits without gradients; writing pseudo labels is not training."""
    found = (it for it in references(stage) if it.ref.kind == "data" and it.ref.use not in ("val", "test"))
    return () if stage.pseudo else found


def label_shares(builder: Builder, stage: StageSettings) -> NDArray[np.float64] | None:
    """(K,) share of each class among the labelled training pixels; ``None`` without any."""
    total = np.zeros(len(builder.classes), dtype=np.float64)
    for reference in streamed(stage, masks=True):
        total += read_statistics(builder.dataset(reference)).class_pixels()[: len(total)]
    return total / total.sum() if total.sum() else None
