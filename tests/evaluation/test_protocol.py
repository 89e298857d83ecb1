"""Protocols: what may be said, and when two are the same."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from tests.errors import raises_code
from tutelage.evaluation.protocol import Protocol, require_same
from tutelage.evaluation.windows import coverage, spans, taper

SLIDING: dict[str, Any] = {"kind": "sliding", "window": [801, 801]}


def protocol(**values: Any) -> Protocol:
    return Protocol.model_validate(values)


def test_key_is_stable_and_says_what_matters() -> None:
    assert protocol().key() == "3825d7157d61"
    assert protocol(**SLIDING).key() == "7a4da18c8caa"
    assert protocol(**SLIDING).key() == protocol(**SLIDING, stride=[534, 534]).key()
    assert protocol(**SLIDING).key() == protocol(**SLIDING, overlap=1 / 3).key()
    assert protocol().key() == protocol(blend="logits").key()
    assert protocol(flip=True).key() != protocol(flip=True, blend="logits").key()
    others = [
        protocol(resize="corners"),
        protocol(precision="bf16"),
        protocol(size=[512, 1024]),
        protocol(scales=[0.5, 1.0]),
        protocol(flip=True),
        protocol(multiple=14),
        protocol(**SLIDING),
        protocol(**SLIDING, border="truncated"),
        protocol(**SLIDING, weighting="gaussian"),
    ]
    assert len({one.key() for one in [protocol(), *others]}) == len(others) + 1


@pytest.mark.parametrize(
    "values",
    [
        {"window": [5, 5]},
        {"kind": "sliding"},
        {**SLIDING, "stride": [5, 5], "overlap": 0.5},
        {**SLIDING, "stride": [802, 5]},
        {**SLIDING, "stride": [0, 5]},
        {"scales": []},
        {"scales": [0]},
        {"resize": "nearest"},
        {"colour": "green"},
        {"weighting": "gaussian"},
    ],
)
def test_what_cannot_be_meant(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        protocol(**values)


def test_different_protocols_are_not_compared() -> None:
    require_same(protocol(**SLIDING), protocol(**SLIDING, stride=[534, 534]))
    with raises_code("not-comparable", "flip (False and True), resize (grid and corners)"):
        require_same(protocol(), protocol(flip=True, resize="corners", blend="logits", scales=[1]))
    with raises_code("not-comparable", "window (none and [801, 801])"):
        require_same(protocol(), protocol(**SLIDING))


def test_description_is_one_line() -> None:
    assert protocol().describe() == "whole image, resize rule grid, fp32"
    full = protocol(
        **SLIDING, weighting="gaussian", scales=[0.5, 1], flip=True, size=[512, 1024], multiple=14, antialias=False
    ).describe()
    assert full == (
        "windows of 801x801 every 534x534 (shifted at the border), gaussian weights, input 512x1024, "
        "sides multiples of 14, scales 0.5 1, flipped too, mean of probabilities, no antialiasing, "
        "resize rule grid, fp32"
    )


def test_input_sizes() -> None:
    assert protocol(scales=[0.5, 1, 1.5]).input_sizes(101, 75) == [(51, 38), (101, 75), (152, 113)]
    assert protocol(multiple=14).input_sizes(500, 375) == [(504, 378)]
    assert protocol(multiple=14, size=[3, 50]).input_sizes(500, 375) == [(14, 56)]


def test_published_windows() -> None:
    # UniMatch V1 on Cityscapes, shared/methods/semi_baselines.md, 7.10.
    assert [start for start, _ in spans(1024, 801, 534, "truncated")] == [0, 534]
    assert [start for start, _ in spans(2048, 801, 534, "truncated")] == [0, 534, 1068, 1602]
    assert spans(2048, 801, 534, "shifted") == [(0, 801), (534, 1335), (1068, 1869), (1247, 2048)]
    assert spans(1024, 798, 532, "shifted") == [(0, 798), (226, 1024)]


@pytest.mark.parametrize("border", ["shifted", "truncated"])
@pytest.mark.parametrize("weighting", ["uniform", "gaussian"])
@pytest.mark.parametrize("length", [24, 25, 47, 48, 100])
def test_every_pixel_is_covered(border: str, weighting: str, length: int) -> None:
    windows = spans(length, 24, 16, border)
    assert coverage(length, windows, weighting).min() > 1e-6
    assert windows[-1][1] == length
    assert all(end - start == 24 for start, end in windows) or border == "truncated"


def test_taper_is_symmetric() -> None:
    for length in (1, 2, 7, 8):
        weights = taper(length, "gaussian")
        assert weights == pytest.approx(weights[::-1])
        assert weights.max() <= 1
