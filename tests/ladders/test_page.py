"""A ladder in words and on its page: every verdict has its sentence, nothing that is missing is hidden."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from tests.ladders import ladder_example as example
from tests.report.test_page import checked
from tutelage.evaluation.intervals import Gain, Interval
from tutelage.evaluation.verdict import Judgement
from tutelage.ladders.page import (
    HEAD,
    LadderContent,
    RungCost,
    RungResult,
    Share,
    cells,
    head,
    markdown,
    missing,
    notes,
    render,
    sentence,
    verdict,
)


def changed(which: str, given: LadderContent | None = None, **changes: Any) -> LadderContent:
    """The example with one rung changed."""
    given = given or example.content()
    return replace(given, rungs=tuple(replace(it, **changes) if it.name == which else it for it in given.rungs))


def told(content: LadderContent, name: str) -> str:
    return sentence(content, content.rung(name))


def test_the_sentences() -> None:
    content = example.content()
    assert told(content, "pixel_kd") == "worth it: +1.5 [+0.6, +2.4] points for 3.0 times the training time"
    assert told(content, "cwd") == (
        "not worth it: +0.1 [−0.2, +0.4] points for 3.0 times the training time; less than 0.5 points is not worth it"
    )
    assert told(content, "at") == (
        "cannot tell with these data: +0.5 [−0.4, +1.4] points for 3.0 times the training time; "
        "needs about 9 seeds of each, at the present gain and spread"
    )
    assert told(content, "mgd") == "not finished: no score of mgd yet"


def test_what_would_tell() -> None:
    assert "needs about 4 times as many test images" in told(
        changed("at", judgement=Judgement("cannot tell", images=4)), "at"
    )
    assert "too close" in told(changed("at", judgement=Judgement("cannot tell")), "at")
    few = Gain(0.005, Interval(-0.01, 0.02, "images", 2, False, "only 2 images"), 0.4)
    assert "the interval is not reliable (only 2 images); it needs more test images" in told(
        changed("at", comparison=few, judgement=Judgement("cannot tell")), "at"
    )
    harm = Gain(-0.01, Interval(-0.02, -0.001), 0.01)
    assert told(changed("cwd", comparison=harm), "cwd").endswith("; worse than plain")


def test_one_seed_says_that_the_spread_is_unknown() -> None:
    alone = changed("at", scores={0: 0.6}, judgement=Judgement("cannot tell", seeds=3))
    assert "with one seed of at the spread over seeds is unknown; train at least three" in told(alone, "at")
    plain = changed("plain", scores={0: 0.6})
    assert "with one seed of plain the spread" in told(plain, "at")
    assert "With one seed of a rung, its spread over seeds is unknown." in notes(alone)


def test_without_the_plain_rung_nothing_is_compared() -> None:
    content = changed("plain", scores={}, missing=(0, 1, 2, 3))
    content = changed("pixel_kd", content, comparison=None, judgement=None, adjusted_p=None)
    assert told(content, "pixel_kd") == "not finished: no score of plain yet"
    assert "plain: seeds 0, 1, 2, 3" in missing(content)
    assert "There is no comparison before a score of plain." in notes(content)
    checked(render(content))


def test_times_without_a_time_of_the_plain_rung() -> None:
    content = changed("plain", cost=RungCost())
    assert told(content, "pixel_kd") == "worth it: +1.5 [+0.6, +2.4] points"
    assert cells(content, content.rung("plain"))[4:7] == ("–", "–", "–")


def test_labelling_counts_as_time() -> None:
    content = changed("at", cost=RungCost(100.0, 50.0, 600.0, 1e9))
    assert "1.5 times the training time" in told(content, "at")
    assert cells(content, content.rung("at"))[4] == "2 min 30 s ×1.5"


def test_the_headline() -> None:
    content = example.content()
    assert verdict(content) == ("So far: worth it: 1 of 4, best pixel_kd, +1.5 [+0.6, +2.4] points", "gain")
    none = replace(content, rungs=(content.rung("plain"), content.rung("cwd")))
    assert verdict(none) == ("Not worth it: no rung pays over plain", "loss")
    open_ = replace(content, rungs=(content.rung("plain"), content.rung("cwd"), content.rung("at")))
    assert verdict(open_) == ("So far: cannot tell with these data", "open")
    assert verdict(replace(content, rungs=(content.rung("plain"),)))[1] == "open"


def test_the_table_can_be_pasted() -> None:
    content = changed("pixel_kd", differs="steps: 1200")
    text = markdown(content)
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert rows[0] == f"| {' | '.join(HEAD)} |"
    assert "| pixel_kd | 62.5 ± 0.4 (3) | +1.5 [+0.6, +2.4] | 0.031 (0.094) | 5 min 00 s ×3.0 | 812 MiB |" in text
    assert len({line.count("|") for line in rows[: 2 + len(content.rungs)]}) == 1
    assert "- **pixel_kd**: worth it: " in text
    assert "**mgd**" not in text
    assert "Missing: at: seed 3; mgd: seeds 0, 1, 2, 3." in text
    assert "Different training, so the budget is not equal: pixel_kd (steps: 1200)." in text
    assert "The teacher (stage teacher: mIoU 68.0, 12.3 M parameters, 30 min 00 s of training)" in text
    assert "None" not in text
    assert "nan" not in text
    assert "a \\| b" in markdown(changed("at", method="a | b"))


def test_trials_are_shown() -> None:
    content = changed("at", trials=example.trials(0.5, 0.52, None, chosen=1))
    content = changed("cwd", content, trials=(*example.trials(0.5, chosen=0), *example.trials(0.0, chosen=None)))
    content = replace(content, tuned_on="town/val", tie=("cwd",))
    text = markdown(content)
    assert "| at | optimizer.lr: 1: 50.00; **optimizer.lr: 2: 52.00**; optimizer.lr: 3: – |" in text
    assert "Tied trials of cwd: the first in the recipe's order was chosen." in text
    assert "equal trials on town/val" in text
    assert "diverged" in markdown(
        changed("at", content, trials=(replace(example.trials(0.0, chosen=None)[0], diverged=True),))
    )
    page = checked(render(content))
    assert "mIoU on town/val of every trial" in page.words


def test_the_page_has_everything() -> None:
    page = checked(render(example.content()))
    for expected in (
        "So far: worth it: 1 of 4",
        "worth it: +1.5 [+0.6, +2.4] points for 3.0 times the training time",
        "61.5 ± 0.4 (3)",
        "0.031 (0.094)",
        "Gain over plain",
        "Missing: at: seed 3; mgd: seeds 0, 1, 2, 3.",
        "mIoU by seed: 0: 60.60, 1: 61.00, 2: 61.40",
        "fingerprint99",
        "0123456789ab",
        "name: town",
    ):
        assert expected in page.words, expected
    drawings = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert len(drawings) == 1
    assert "pixel_kd +1.5 [+0.6, +2.4]" in str(drawings[0]["aria-label"])
    dots = [attributes for tag, attributes in page.tags if tag == "circle"]
    assert [dot["class"] for dot in dots] == ["gain gain", "gain loss", "gain open"]


@pytest.mark.parametrize("worth", [0.0, 0.005, 0.5])
def test_the_chart_shows_what_pays(worth: float) -> None:
    page = checked(render(example.content(worth=worth)))
    marks = [attributes for tag, attributes in page.tags if tag == "line" and attributes["class"] == "mark"]
    assert len(marks) == (worth > 0)
    places = [float(str(attributes[key])) for tag, attributes in page.tags if tag == "line" for key in ("x1", "x2")]
    assert min(places) >= 0
    assert max(places) <= 460


def test_names_are_escaped_and_nothing_at_all_is_a_page_too() -> None:
    nasty = "<script>alert(1)</script>&\"'{{ 7*7 }}"
    content = changed("at", name=nasty, method=nasty)
    text = render(replace(content, title=nasty, data=nasty))
    checked(text)
    assert not re.search(r"<script", text)
    empty = example.content(
        rungs=(RungResult("plain", "supervised", {}, missing=(0,)), RungResult("at", "at", {}, missing=(0,))),
        teacher=None,
        images=None,
        recipe="",
        environment=(),
    )
    page = checked(render(empty))
    assert "cannot tell with these data" in page.words
    assert "svg" not in [tag for tag, _ in page.tags]
    assert "| plain | – |" in markdown(empty)


def with_oracle(**changes: Any) -> LadderContent:
    """The example, with the rung that pays as the oracle of the others."""
    return replace(example.content(), oracle="pixel_kd", **changes)


def test_the_share_of_the_gap_has_a_column() -> None:
    content = changed("at", with_oracle(), share=Share(0.62, 0.45, 0.804))
    content = changed("cwd", content, share=Share(0.1, -2.0, 3.0, "the gap itself may be 0"))
    content = changed("pixel_kd", content, judgement=None)
    assert head(content) == (*HEAD[:3], "of the gap", *HEAD[3:])
    assert cells(content, content.rung("at"))[3] == "62 % [45, 80]"
    assert cells(content, content.rung("cwd"))[3] == "cannot tell"
    assert cells(content, content.rung("plain"))[3] == "–"
    assert cells(content, content.rung("pixel_kd"))[-1] == "bound"
    assert told(content, "at").endswith("; 62 % [45, 80] of the gap to pixel_kd")
    assert "unknown (the gap itself may be 0)" in told(content, "cwd")
    assert verdict(content) == ("So far: cannot tell with these data", "open")
    text = markdown(content)
    assert "**pixel_kd**" not in text
    assert "(rung - plain) / (pixel_kd - plain). pixel_kd is a bound" in text
    page = checked(render(content))
    assert "62 % [45, 80]" in page.words
    assert "of the gap" in page.words


def test_updates_have_a_column_where_they_differ() -> None:
    content = example.content()
    assert head(content) == HEAD
    content = changed("at", updates=900)
    place = head(content).index("updates")
    assert [cells(content, rung)[place] for rung in content.rungs] == ["600", "600", "600", "900", "600"]
    assert "budget is not equal: at (900 updates in total)" in markdown(content)


def test_what_target_labels_chose_is_marked_everywhere() -> None:
    content = changed("pixel_kd", leak="chosen with target labels")
    assert cells(content, content.rung("pixel_kd"))[0] == "pixel_kd (chosen with target labels)"
    assert told(content, "pixel_kd").endswith("; chosen with target labels")
    assert verdict(content)[0].endswith("points (chosen with target labels)")
    assert any("labels treated as missing: pixel_kd" in note for note in notes(content))
    honest = changed("cwd", content, judgement=Judgement("worth it"))
    assert "best cwd" in verdict(honest)[0]
    page = checked(render(content))
    assert "pixel_kd (chosen with target labels)" in page.words


def test_other_classes_have_tables_of_their_own() -> None:
    content = example.grouped()
    text = markdown(content)
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert "| rung | mIoU (5) | gain | four (4) | gain | few (2) | gain |" in rows
    assert (
        "| pixel_kd | 62.5 ± 0.4 (3) | +1.5 [+0.6, +2.4] | 72.0 ± 1.4 (2) | +2.0 [+0.5, +3.5] "
        "| 77.0 ± 1.4 (2) | +2.0 [+0.5, +3.5] |"
    ) in rows
    assert "With plants (crop, weed) merged into one class, mIoU over plants, soil:" in text
    assert "| rung | mIoU | gain | p |" in rows
    assert "| pixel_kd | 82.0 ± 1.4 (2) | +2.0 [+0.5, +3.5] | 0.010 (0.030) |" in rows
    assert "| mgd | – | – | – |" in rows
    assert "- few: a, b." in text
    assert any("subsets and merged classes have none" in note for note in notes(content))
    page = checked(render(content))
    assert "With plants (crop, weed) merged into one class" in page.words
    assert "Some of the classes" in page.words
    plain = example.content()
    assert "merged into one class" not in markdown(plain)
    assert "merged into one class" not in checked(render(plain)).words
    assert not any("subsets" in note for note in notes(plain))


def test_other_classes_have_shares_of_the_gap_where_there_is_an_oracle() -> None:
    text = markdown(example.grouped(oracle="at"))
    assert "| rung | mIoU | gain | of the gap | p |" in text
    assert "| pixel_kd | 82.0 ± 1.4 (2) | +2.0 [+0.5, +3.5] | 40 % [20, 60] | 0.010 (0.030) |" in text
    assert "| cwd | 80.0 (1) | +2.0 [+0.5, +3.5] | cannot tell | 0.010 (0.030) |" in text
    checked(render(example.grouped(oracle="at")))
