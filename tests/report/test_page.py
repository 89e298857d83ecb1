"""The page is well-formed, self-contained, escaped, bounded, always the same, and never falls over."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

from tests.report import example
from tutelage.evaluation.intervals import Gain, Interval
from tutelage.report import tables
from tutelage.report.content import Gallery, Grouping, InferenceCost, ReportContent, Training
from tutelage.report.page import render

_VOID = {"meta", "link", "img", "br", "hr", "input", "rect", "circle", "line", "polyline"}
_NASTY = "<script>alert(1)</script>&\"'{{ 7*7 }}"
_LONG = "x" * 3000


class Page(HTMLParser):
    """Reads a page strictly: every tag is closed in order, and what matters is collected."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.tables: list[list[str]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"{tag} has an attribute twice: {names}"
        self.tags.append((tag, dict(attrs)))
        if tag == "table":
            self.tables.append([])
        elif self.tables:
            self.tables[-1].append(tag)
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag in _VOID:
            return
        assert self.open, f"</{tag}> closes nothing"
        assert self.open[-1] == tag, f"</{tag}> closes <{self.open[-1]}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


def checked(text: str) -> Page:
    """What holds of every page."""
    page = Page(text)
    ids = [str(attributes["id"]) for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag, attributes in page.tags:
        assert tag not in ("script", "iframe", "object", "embed", "form", "base")
        assert not any(name.startswith("on") for name in attributes)
        if tag == "img":
            assert str(attributes["src"]).startswith(("data:image/jpeg;base64,", "data:image/png;base64,"))
            assert attributes["alt"]
        if tag == "svg" and attributes.get("role") == "img":
            assert attributes["aria-label"]
        if tag == "a":
            assert str(attributes["href"]).removeprefix("#") in ids
        if tag == "link":
            assert attributes["href"] == "data:,"
        if "aria-labelledby" in attributes:
            assert attributes["aria-labelledby"] in ids
    assert all(tags[0] == "caption" for tags in page.tables)
    assert not re.search(r"nan|undefined|None\b", page.words.replace("environment", ""))
    assert "url(" not in text
    assert "@import" not in text
    assert not re.search(r"https?:|src=\"//", text)
    assert "default-src 'none'" in text
    assert len(text.encode()) < 5_000_000
    return page


def without(*labels: str, **changes: Any) -> ReportContent:
    """The example without some of its nets, nor what was said of them."""
    given = example.content()
    roles: dict[str, Any] = {role: None for role in ("baseline", "teacher") if getattr(given, role) in labels}
    if "plain" in labels:
        roles["comparison"] = None
    pictures = tuple(
        replace(one, predictions={name: ids for name, ids in one.predictions.items() if name not in labels})
        for one in given.pictures
    )
    nets = tuple(net for net in given.nets if net.label not in labels)
    return replace(given, nets=nets, pictures=pictures, **{**roles, **changes})


def test_everything_is_on_the_page() -> None:
    page = checked(render(example.content()))
    for expected in (
        "distilled: +5.0 mIoU against plain, a clear gain",
        "95 % interval [+3.00, +7.00]",
        "55.00",
        "[53.0, 57.0]",
        "12.3 M",
        "3.21",
        "45.6",
        "2 min 05 s",
        "class 4",
        "cross_entropy",
        "Learning rate",
        "Validation mIoU",
        "whole image, resize rule grid",
        "0123456789ab",
        "fingerprint99",
        "key-distilled",
        "distilled against big",
        "distilled against plain",
        "name: example",
        "step 1000 of 1000",
    ):
        assert expected in page.words, expected


def test_subsets_and_merged_classes_have_a_table() -> None:
    given = example.content()
    assert "Subsets and merged classes" not in checked(render(given)).words
    labels = tuple(net.label for net in given.nets)
    shown = replace(given, groupings=example.groupings(labels))
    page = checked(render(shown))
    for expected in ("mIoU, few", "2 of 5 classes", "mIoU, ground merged", "ground: class 0, class 1", "[+1.0, +9.0]"):
        assert expected in page.words, expected
    few, ground, part, rest = tables.grouping_rows(shown)
    assert [cell.text for cell in few.cells] == ["50.00", "55.00", "60.00"]
    assert few.cells[1].note == "[53.0, 57.0]"
    assert (few.change.text, few.tone, few.part) == ("+5.00", "gain", False)
    assert (ground.hint, part.name, rest.name) == ("ground: class 0, class 1", "ground", "class 2")
    assert (part.change.text, part.part) == ("+5.00", True)
    alone = replace(without("plain", "big"), groupings=tuple(replace(one, comparison=None) for one in shown.groupings))
    assert "Change:" not in checked(render(alone)).words
    bare = replace(given, groupings=(Grouping("few", ("class 0",)), Grouping("g", ("g",), {"g": ("class 1",)})))
    assert [cell.text for cell in tables.grouping_rows(bare)[0].cells] == ["–", "–", "–"]
    checked(render(bare))


def test_equal_content_gives_equal_bytes() -> None:
    assert render(example.content()) == render(example.content())


def test_a_picture_of_two_galleries_is_embedded_once() -> None:
    text = render(example.content())
    assert text.count("<article") == 2
    assert 'href="#picture-1"' in text
    shown = [attributes["src"] for tag, attributes in Page(text).tags if tag == "img"]
    assert len(shown) == len(set(shown)) == 14


@pytest.mark.parametrize("nasty", [_NASTY, _LONG, "Straße \u202eمرحبا 道路 🚲", "https://evil.example/x.js", ""])
def test_names_from_outside_are_escaped(nasty: str) -> None:
    given = example.content(names=(nasty,))
    labels = {"plain": nasty or "plain", "distilled": "distilled", "big": "big"}
    text = render(
        replace(
            given,
            title=nasty,
            baseline=labels["plain"],
            nets=tuple(
                replace(net, label=labels[net.label], architecture=nasty, key=nasty, stage=labels[net.stage])
                for net in given.nets
            ),
            identity=replace(given.identity, protocol=nasty, data=nasty, fingerprint=nasty or "f", protocol_key=nasty),
            trainings=tuple(
                replace(
                    one,
                    stage=labels[one.stage],
                    method=nasty,
                    validated_on=nasty,
                    terms={nasty: one.terms["cross_entropy"]},
                    rates={nasty: one.rates["main"]},
                    validation={nasty: one.validation["student"]},
                )
                for one in given.trainings
            ),
            pictures=tuple(
                replace(
                    one, name=nasty + ".png", predictions={labels[name]: ids for name, ids in one.predictions.items()}
                )
                for one in given.pictures
            ),
            galleries=(Gallery(nasty, nasty, (0, 1)),),
            comparison=Gain(0.01, Interval(-0.1, 0.2, "blocks", 3, reliable=False, reason=nasty or "few")),
            cost_setting=nasty,
            environment=((nasty, nasty),),
            recipe=nasty,
        )
    )
    page = Page(text)  # a URL in a name is text, and the policy of the page forbids to fetch it
    assert "<script" not in text
    assert nasty in "".join(page.text)
    assert not re.search(r"(?:src|href)=\"https?:", text)


def test_a_wild_palette_stays_inside_its_style() -> None:
    given = example.content()
    wild = replace(given.classes[0], colour=(-3, 300, 7.9))  # type: ignore[arg-type]
    assert "rgb(0 255 7)" in render(replace(given, classes=(wild, *given.classes[1:]), galleries=()))


def test_a_file_name_that_is_no_text_can_be_written() -> None:
    odd = example.picture("caf\udce9.png", 5, ("distilled",))
    text = render(example.content(pictures=(odd,), galleries=(Gallery("All", "", (0,)),)))
    assert "caf?.png" in text
    checked(text.encode().decode())


def _no_calibration() -> ReportContent:
    given = example.content()
    nets = tuple(
        replace(net, quality=replace(net.quality, boundary_miou=None, boundary_iou=(), reliability=None))
        for net in given.nets
    )
    return replace(given, nets=nets)


def _absent() -> ReportContent:
    given = example.content()
    nets = []
    for net, missing in zip(given.nets, (None, float("nan"), None), strict=True):
        iou = (missing, *net.quality.iou[1:])
        scores = replace(net.quality, iou=iou, accuracy=iou, precision=iou, boundary_iou=iou, absent=1)
        nets.append(replace(net, quality=scores))
    confusion = np.array(given.confusion)
    confusion[0] = confusion[:, 0] = 0
    absent = replace(given.classes[0], pixels=0)
    return replace(given, nets=tuple(nets), confusion=confusion, classes=(absent, *given.classes[1:]))


def _nothing_counted() -> ReportContent:
    given = example.content()
    nan = float("nan")
    nothing = (nan,) * 5
    empty = replace(
        given.nets[0].quality,
        miou=nan,
        interval=Interval(nan, nan, "images", 1, False, "only 1 image"),
        miou_all=nan,
        pixel_accuracy=nan,
        mean_accuracy=None,
        iou=nothing,
        accuracy=nothing,
        precision=nothing,
        boundary_miou=nan,
        boundary_iou=nothing,
        reliability=replace(given.nets[0].quality.reliability, error=nan, count=(0.0,) * 15),  # type: ignore[type-var]
    )
    return replace(
        given,
        nets=tuple(replace(net, quality=empty, cost=InferenceCost(1, None, nan)) for net in given.nets),
        confusion=np.zeros((5, 5), dtype=np.int64),
        classes=tuple(replace(one, pixels=0) for one in given.classes),
        comparison=Gain(nan, Interval(nan, nan, "images", 1, False, "only 1 image"), nan),
    )


def _sizes() -> ReportContent:
    labels = ("plain", "distilled", "big")
    sizes = [(1, 1), (500, 20), (20, 500), (33, 47)]
    pictures = tuple(example.picture(f"{h}x{w}", 5, labels, h, w) for h, w in sizes)
    return example.content(pictures=pictures, galleries=(Gallery("All", "", (0, 1, 2, 3)),))


_CASES: dict[str, Callable[[], ReportContent]] = {
    "one net": lambda: without("plain", "big"),
    "no teacher": lambda: without("big"),
    "no baseline": lambda: without("plain"),
    "baseline that was not scored": lambda: replace(without("plain"), baseline="gone"),
    "student is the teacher": lambda: example.content(teacher="distilled"),
    "teacher is the baseline": lambda: example.content(teacher="plain"),
    "nets without roles": lambda: example.content(
        nets=(*example.content().nets, *(example.net(f"extra{i}", 5, 0.3) for i in range(6)))
    ),
    "no nets": lambda: example.content(nets=(), comparison=None, pictures=(), galleries=(), confusion=None),
    "no pictures": lambda: example.content(pictures=(), galleries=()),
    "single picture": lambda: example.content(galleries=(Gallery("All images", "", (0,)),)),
    "pictures of different sizes": _sizes,
    "absent classes": _absent,
    "nothing counted": _nothing_counted,
    "no logs": lambda: example.content(trainings=(Training("distilled", "supervised"),)),
    "no trainings": lambda: example.content(trainings=()),
    "no boundary, no calibration": _no_calibration,
    "no costs": lambda: example.content(nets=tuple(replace(n, cost=None) for n in example.content().nets)),
    "two classes": lambda: example.content(2),
    "one class": lambda: example.content(1),
    "twenty classes": lambda: example.content(20),
    "150 classes": lambda: example.content(150),
    "254 classes": lambda: example.content(254),
    "no confusion": lambda: example.content(confusion=None),
    "nothing but scores": lambda: example.content(
        trainings=(), pictures=(), galleries=(), confusion=None, environment=(), recipe="", cost_setting=""
    ),
    "zero gain": lambda: example.content(comparison=Gain(0.0, Interval(0.0, 0.0, "images", 40), 1.0)),
}


@pytest.mark.parametrize("case", _CASES)
def test_it_never_falls_over(case: str) -> None:
    checked(render(_CASES[case]()))


def test_many_classes_degrade_to_a_picture_and_a_table() -> None:
    few, many = render(example.content(20)), render(example.content(21))
    assert 'class="confusion"' in few
    assert 'class="heat"' not in few
    assert 'class="confusion"' not in many
    assert 'class="heat"' in many
    assert "Most common confusions" in many


def test_a_curve_of_strange_values_is_drawn_without_them() -> None:
    nan, inf = float("nan"), float("inf")
    strange = example.training(
        "distilled",
        terms={"a": ((1, nan), (2, inf)), "b": ((1, 0.0), (2, -5.0), (3, 1e12)), "c": (), "d": ((7, 1.0),)},
        rates={"main": ((1, 0.0), (2, 0.0))},
        validation={"student": ((5, nan), (10, 0.2))},
        best_step=99999,
    )
    checked(render(example.content(trainings=(strange,))))


def test_a_rate_is_absolute_only_where_its_full_one_is_known() -> None:
    main = example.training("distilled").rates["main"]
    several = example.training("distilled", rates={"main": main, "critic": main})
    assert "Learning rate of the decoder and heads" in checked(render(example.content())).words
    assert "Learning rate as a share of the full rate" in checked(render(example.content(trainings=(several,)))).words


def test_many_large_noisy_pictures_stay_below_five_megabytes() -> None:
    labels = ("plain", "distilled", "big")
    pictures = tuple(example.picture(f"{i}.png", 150, labels, 360, 480, seed=i) for i in range(18))
    gallery = Gallery("Worst", "", tuple(range(18)))
    text = render(example.content(150, pictures=pictures, galleries=(gallery,)))
    assert checked(text).words.count("Truth") >= 18


def test_a_long_recipe_is_cut_and_a_long_log_thinned() -> None:
    log = tuple((step, 1 / (1 + step)) for step in range(200_000))
    long = example.training("distilled", terms={f"t{i}": log for i in range(3)}, rates={"main": log})
    text = render(example.content(recipe="# é\n" * 300_000, trainings=(long,)))
    assert len(text.encode()) < 1_000_000
    assert "more characters" in text


def test_the_page_imports_neither_torch_nor_packages_above() -> None:
    code = (
        "import sys, tutelage.report.page\n"
        "ours = tuple(f'tutelage.{n}' for n in ('report', 'errors', 'settings', 'evaluation', 'version'))\n"
        "rooms = [n for n in sys.modules if n.startswith('tutelage.') and not n.startswith(ours)]\n"
        "print(rooms + [n for n in ('torch',) if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
