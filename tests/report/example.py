"""A small report made by hand, every part of which a test may change."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from tutelage.evaluation.intervals import Gain, Interval
from tutelage.report.content import (
    ClassInfo,
    Gallery,
    GalleryImage,
    GroupedQuality,
    Grouping,
    Identity,
    InferenceCost,
    Quality,
    Reliability,
    ReportContent,
    ScoredNet,
    Training,
)


def classes(count: int, names: tuple[str, ...] = ()) -> tuple[ClassInfo, ...]:
    named = [*names, *(f"class {i}" for i in range(len(names), count))]
    return tuple(ClassInfo(named[i], (i * 37 % 256, i * 91 % 256, i * 53 % 256), 1000 + i) for i in range(count))


def quality(count: int, level: float, **changes: Any) -> Quality:
    iou = tuple(min(1.0, level + 0.3 * math.sin(i)) for i in range(count))
    bins = tuple((i + 0.5) / 15 for i in range(15))
    made = Quality(
        miou=level,
        interval=Interval(level - 0.02, level + 0.02, "images", 40),
        miou_all=level,
        pixel_accuracy=level + 0.3,
        mean_accuracy=level + 0.1,
        iou=iou,
        accuracy=iou,
        precision=iou,
        boundary_miou=level - 0.1,
        boundary_iou=iou,
        reliability=Reliability(0.05, (None, *bins[1:]), (None, *bins[1:]), (0.0, *(100.0 * b for b in bins[1:]))),
    )
    return replace(made, **changes)


def net(label: str, count: int, level: float, **changes: Any) -> ScoredNet:
    made = ScoredNet(
        label, quality(count, level), "resnet18 + fpn", f"key-{label}", InferenceCost(12_345_678, 3.21e9, 45.6), label
    )
    return replace(made, **changes)


def training(stage: str, **changes: Any) -> Training:
    steps = range(10, 1001, 10)
    made = Training(
        stage=stage,
        method="supervised",
        steps=1000,
        terms={"cross_entropy": tuple((s, 2.0 * 0.99**s + 0.1) for s in steps)},
        rates={"main": tuple((s, 1 - s / 1001) for s in steps)},
        base_rate=1e-3,
        validation={"student": ((500, 0.4), (1000, 0.5))},
        kept="best",
        best_step=1000,
        validated_on="town/val",
        seconds=125.0,
        data_wait=0.03,
        peak_memory_mib=812.5,
    )
    return replace(made, **changes)


def picture(
    name: str, count: int, labels: tuple[str, ...], height: int = 24, width: int = 32, seed: int = 0
) -> GalleryImage:
    random = np.random.default_rng(seed)

    def ids() -> np.ndarray:
        return random.integers(0, count, (height, width), dtype=np.uint8)

    truth = ids()
    truth[:4] = 255
    image = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return GalleryImage(name, image, truth, {label: ids() for label in labels}, dict.fromkeys(labels, 0.4))


def groupings(labels: tuple[str, ...], level: float = 0.5) -> tuple[Grouping, ...]:
    """A subset of two classes, and two classes taken as one."""

    def nets(classes: int) -> dict[str, GroupedQuality]:
        return {
            label: GroupedQuality(
                level + 0.05 * number,
                Interval(level + 0.05 * number - 0.02, level + 0.05 * number + 0.02, "images", 40),
                tuple(level + 0.05 * number + 0.1 * place for place in range(classes)),
            )
            for number, label in enumerate(labels)
        }

    gain = Gain(0.05, Interval(0.01, 0.09, "images", 40), 0.01)
    return (
        Grouping("few", ("class 0", "class 1"), {}, nets(0), gain),
        Grouping("ground", ("ground", "class 2"), {"ground": ("class 0", "class 1")}, nets(2), gain),
    )


def content(count: int = 5, names: tuple[str, ...] = (), **changes: Any) -> ReportContent:
    """A report on ``count`` classes, the first of which are called ``names``."""
    labels = ("plain", "distilled", "big")
    levels = (0.50, 0.55, 0.65)
    random = np.random.default_rng(1)
    confusion = random.integers(0, 50, (count, count)) + np.diag(np.full(count, 900))
    made = ReportContent(
        title="example",
        classes=classes(count, names),
        nets=tuple(net(label, count, level) for label, level in zip(labels, levels, strict=True)),
        student="distilled",
        baseline="plain",
        teacher="big",
        identity=Identity("whole image, resize rule grid", "0123456789ab", "town/test", "fingerprint99", 40, "ev123"),
        comparison=Gain(0.05, Interval(0.03, 0.07, "images", 40), 0.001),
        confusion=confusion.astype(np.int64),
        trainings=tuple(training(label) for label in labels),
        pictures=(picture("one.png", count, labels), picture("two.png", count, labels, 40, 20)),
        galleries=(Gallery("Worst", "The worst.", (0, 1)), Gallery("Best", "The best.", (1,))),
        cost_setting="For one image of 24x32.",
        environment=(("python", "3.11"),),
        recipe="tutelage: 1\nname: example\n",
    )
    return replace(made, **changes)
