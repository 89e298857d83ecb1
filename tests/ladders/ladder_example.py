"""A small ladder made by hand, every part of which a test may change."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tutelage.evaluation.intervals import Gain, Interval
from tutelage.evaluation.verdict import Judgement
from tutelage.ladders.page import (
    GroupedResult,
    LadderContent,
    RungCost,
    RungGrouping,
    RungResult,
    Share,
    TeacherResult,
    Trial,
)


def rung(name: str, level: float, gain: tuple[float, float, float] | None, **changes: Any) -> RungResult:
    """A rung with three seeds around a level; ``gain`` with its interval's ends."""
    comparison = None
    if gain is not None:
        comparison = Gain(gain[0], Interval(gain[1], gain[2], "blocks", 40), 0.0312)
    made = RungResult(
        name=name,
        method=f"name: {name}",
        scores={0: level - 0.004, 1: level, 2: level + 0.004},
        comparison=comparison,
        adjusted_p=None if gain is None else 0.0936,
        cost=RungCost(300.0, None, 812.0, 12.3e9),
        teaches=gain is not None,
    )
    return replace(made, **changes)


def content(**changes: Any) -> LadderContent:
    """A plain rung, one that pays, one that does not, one that cannot be told, one that is not finished."""
    made = LadderContent(
        title="town",
        rungs=(
            rung("plain", 0.61, None, cost=RungCost(100.0, None, 600.0, 6.15e9)),
            rung("pixel_kd", 0.625, (0.015, 0.006, 0.024), judgement=Judgement("worth it")),
            rung("cwd", 0.611, (0.001, -0.002, 0.004), judgement=Judgement("not worth it")),
            rung("at", 0.615, (0.005, -0.004, 0.014), judgement=Judgement("cannot tell", seeds=9), missing=(3,)),
            RungResult("mgd", "name: mgd", {}, missing=(0, 1, 2, 3), teaches=True),
        ),
        plain="plain",
        worth=0.005,
        student="small",
        student_parameters=1_230_000,
        teacher=TeacherResult("teacher", 0.68, 12_300_000, 1800.0),
        steps=600,
        seeds=(0, 1, 2, 3),
        data="town/test",
        images=233,
        fingerprint="fingerprint99",
        protocol="whole image, resize rule grid",
        protocol_key="0123456789ab",
        environment=(("python", "3.12"),),
        recipe="name: town",
    )
    return replace(made, **changes)


def trials(*scores: float | None, chosen: int | None) -> tuple[Trial, ...]:
    """Trials of a learning rate."""
    return tuple(Trial(f"optimizer.lr: {n + 1}", score, n == chosen) for n, score in enumerate(scores))


def grouping(name: str, classes: tuple[str, ...], groups: dict[str, tuple[str, ...]], level: float) -> RungGrouping:
    """Other classes in which the rungs of the example are scored."""
    comparison = Gain(0.02, Interval(0.005, 0.035, "blocks", 40), 0.01)
    results = {
        "plain": GroupedResult({0: level - 0.01, 1: level + 0.01}),
        "pixel_kd": GroupedResult({0: level + 0.01, 1: level + 0.03}, comparison, 0.03, Share(0.4, 0.2, 0.6)),
        "cwd": GroupedResult({0: level}, comparison, 0.03, Share(None, reason="the gap itself may be 0")),
        "at": GroupedResult({0: level}, comparison),
        "mgd": GroupedResult({}),
    }
    return RungGrouping(name, classes, groups, results)


def grouped(**changes: Any) -> LadderContent:
    """The example over two sets of classes, and with two classes taken as one, too."""
    return content(
        classes=5,
        subsets=(
            grouping("four", ("a", "b", "c", "d"), {}, 0.7),
            grouping("few", ("a", "b"), {}, 0.75),
        ),
        merged=grouping("plants", ("plants", "soil"), {"plants": ("crop", "weed")}, 0.8),
        **changes,
    )
