"""The section on pseudo labels: complete, well-formed and bounded, whatever is missing."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.report import example
from tests.report.test_page import checked
from tutelage.audit.content import Audit, Estimate, LabelGallery, LabelPicture, Labels, Scaling
from tutelage.audit.section import AuditSection, audit_views, shaded
from tutelage.evaluation.intervals import Interval
from tutelage.report import pictures
from tutelage.report.content import Gallery, Reliability
from tutelage.report.page import render

K = 5


def estimate(share: float | None, reliable: bool = True) -> Estimate:
    bounds = None if share is None else Interval(share - 0.1, share + 0.1, "images", 20, reliable, "few")
    return Estimate(share, bounds)


def reliability(error: float) -> Reliability:
    bins = tuple((place + 0.5) / 15 for place in range(15))
    return Reliability(error, bins, bins, (10.0,) * 15)


def labels(name: str, **changes: Any) -> Labels:
    made = Labels(
        name=name,
        coverage=0.421,
        confidence=0.812,
        change=0.0345,
        shares=(0.4, 0.3, 0.2, 0.1, 0.0),
        sure_shares=(0.5, 0.3, 0.2, 0.0, 0.0),
        precision=estimate(0.931),
        accuracy=estimate(0.777),
        precisions=(*[estimate(0.9)] * 3, estimate(0.66, reliable=False), Estimate()),
        precisions_all=(*[estimate(0.8)] * 4, Estimate()),
        scaling=Scaling(1.73, reliability(0.12), reliability(0.034), 10, 10),
    )
    return replace(made, **changes)


def picture(name: str, truth: bool, height: int = 24, width: int = 32, seed: int = 0) -> LabelPicture:
    draw = np.random.default_rng(seed)
    label, confidence, true = (draw.integers(0, high, (height, width), dtype=np.uint8) for high in (K, 256, K))
    label[:5] = 255
    image = draw.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return LabelPicture(name, image, label, confidence, "mean confidence 31.0 %", true if truth else None)


def audit(**changes: Any) -> Audit:
    made = Audit(
        title="semi",
        about="Looked at: 32 images of town/more.",
        labels=(labels("student"), labels("ema", change=None)),
        label_shares=(0.3, 0.3, 0.2, 0.1, 0.1),
        agreement=(("student/ema", 0.934, 0.712),),
        courses={
            "Coverage": {"student": ((10, 0.1), (20, 0.4)), "ema": ((10, 0.2), (20, 0.3))},
            "Change since the audit before": {"student": ((20, 0.03),), "ema": ()},
            "Precision of covered pixels": {},
        },
        kept_step=20,
        warnings=("ema: classes collapse: class 4",),
        stop="Stop rule: the labels have not settled.",
        galleries=(
            LabelGallery("Least sure: student", "The lowest.", (picture("u1.png", False), picture("u2.png", False))),
            LabelGallery("Least right: student", "The lowest.", (picture("v1.png", True),)),
        ),
    )
    return replace(made, **changes)


def page(*given: Audit) -> str:
    return render(example.content(K, sections=(AuditSection(given),) if given else ()))


def test_everything_that_is_known_is_shown() -> None:
    text = page(audit())
    words = checked(text).words
    for said in (
        "Pseudo labels, semi: ema: classes collapse: class 4.",
        "Coverage covered pixels 42.1 42.1",
        "Mean confidence all pixels 81.2 81.2",
        "Change since the audit before 3.45 –",
        "Precision covered pixels 93.1 [83.1, 103.1] 93.1",
        "Calibration error ECE 12.00 scaled 3.40",
        "Temperature above 1: too sure 1.73",
        "Agreement student/ema 93.4 mean IoU 71.2",
        "* not reliable",
        "66.0 [56.0, 76.0] *",
        "40.00 covered 50.00",
        "student, as it is",
        "student, scaled",
        "Stop rule: the labels have not settled.",
        "Least sure: student",
        "u2.png",
        "mean confidence 31.0 %",
        "Truth",
    ):
        assert said in words, said
    assert text.count('class="chart"') - page().count('class="chart"') == 2 + 4
    assert "Pseudo labels" not in page()


UNSCALED = Scaling(None, replace(reliability(0.0), error=None), reliability(0.0), 0, 0)
SIZES = ((1, 1), (300, 20), (20, 300))

_CASES: dict[str, Callable[[], Audit]] = {
    "no labelled images": lambda: audit(
        labels=(labels("a", precision=None, accuracy=None, precisions=(), precisions_all=(), scaling=None),)
    ),
    "one audit, nothing covered": lambda: audit(
        labels=(labels("a", coverage=0.0, change=None, sure_shares=(None,) * K, precision=Estimate()),), courses={}
    ),
    "nothing but a title": lambda: Audit("bare", "", ()),
    "no scaling": lambda: audit(labels=(labels("a", scaling=None),)),
    "no number at all": lambda: audit(
        labels=(
            Labels(
                "a",
                shares=(None,) * K,
                scaling=Scaling(None, replace(reliability(0), error=None), reliability(0), 0, 0),
            ),
        )
    ),
    "rounds": lambda: audit(
        title="rounds",
        labels=tuple(labels(f"round{i}", hints=(("Policy", "argmax"), ("Net", "a"))) for i in range(4)),
        change_since="since the round before",
        agreement=(),
        courses={},
        kept_step=None,
        label_shares=(),
    ),
    "strange names": lambda: audit(title="<b>&\"'", labels=(labels("<script>"),), warnings=("{{ 7*7 }}",)),
    "a step that is not there": lambda: audit(kept_step=99999),
    "pictures of all sizes": lambda: audit(
        galleries=(
            LabelGallery("All", "", tuple(picture("a", True, *size) for size in ((1, 1), (300, 20), (20, 300)))),
        )
    ),
}


@pytest.mark.parametrize("case", _CASES)
def test_it_never_falls_over(case: str) -> None:
    text = page(_CASES[case](), audit(title="another"))
    words = checked(text).words
    assert "<script" not in text
    assert "another" in words


def test_rounds_stand_side_by_side() -> None:
    words = checked(page(_CASES["rounds"]())).words
    assert "Policy argmax argmax argmax argmax" in words
    assert "Change since the round before" in words


@pytest.mark.parametrize("count", [41, 254])
def test_many_classes(count: int) -> None:
    shares = (1 / count,) * count
    many = labels("a", shares=shares, sure_shares=shares, precisions=(estimate(0.5),) * count, precisions_all=())
    checked(render(example.content(count, sections=(AuditSection((audit(labels=(many,) * 3),)),))))


def test_pictures_of_audits_and_galleries_share_one_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "BUDGET", 400_000)
    noisy = tuple(picture(f"{i}.png", True, 90, 120, seed=i) for i in range(6))
    big = audit(galleries=(LabelGallery("Worst", "", noisy),))
    large = tuple(example.picture(f"{i}.png", K, ("plain", "distilled", "big"), 90, 120, seed=i) for i in range(6))
    content = example.content(
        K, sections=(AuditSection((big, big)),), pictures=large, galleries=(Gallery("Worst", "", tuple(range(6))),)
    )
    (section,) = content.sections
    assert isinstance(section, AuditSection)
    views, room = audit_views(section.audits, content.classes, pictures.BUDGET // 3)
    assert 0 < room <= pictures.BUDGET // 3
    assert all(len(shown) == 6 for view in views for _, _, shown in view.galleries)
    text = render(content)
    checked(text)
    assert room < sum(map(len, re.findall(r'src="(data:[^"]+)"', text))) <= pictures.BUDGET


def test_a_picture_of_pure_noise_is_drawn() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (360, 480, 3), dtype=np.uint8)
    assert pictures.jpeg(noise, 82, sharp=True).startswith("data:image/jpeg;base64,")


def test_pictures_that_never_fit_are_left_out() -> None:
    views, room = audit_views((audit(),), example.content(K).classes, 10)
    assert room == 0
    assert views[0].galleries == ()


def test_confidence_is_pale_where_it_is_high() -> None:
    drawn = shaded(np.array([[0, 255]], dtype=np.uint8))
    assert tuple(drawn[0, 0]) == pictures.DOUBT
    assert tuple(drawn[0, 1]) == pictures.CERTAIN


def test_precision_is_of_covered_pixels_and_of_all() -> None:
    (shown,), _ = audit_views((audit(),), example.content(K).classes, 10**6)
    found = {(row.name, row.hint): row.cells[0].text for row in shown.rows}
    assert found["Precision", "covered pixels"] == "93.1"
    assert found["Precision", "all pixels"] == "77.7"
