"""The words, tables, charts and pictures that the page is made of."""

from __future__ import annotations

import base64
import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from tests.report import example
from tutelage.evaluation.intervals import Gain, Interval
from tutelage.report import charts, formatting, pictures, plots, tables, verdict
from tutelage.report.content import Gallery, InferenceCost

# Words


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (formatting.percent(0.5), "50.0"),
        (formatting.percent(None), "–"),
        (formatting.percent(float("nan")), "–"),
        (formatting.percent(-0.125, 2), "−12.50"),
        (formatting.signed(0.0123), "+1.2"),
        (formatting.signed(-0.0123), "−1.2"),
        (formatting.signed(-0.0004), "0.0"),
        (formatting.signed(None), "–"),
        (formatting.interval(Interval(0.1, 0.2)), "[10.0, 20.0]"),
        (formatting.interval(Interval(None, 0.2)), ""),
        (formatting.magnitude(3_410_000), "3.41 M"),
        (formatting.magnitude(12), "12"),
        (formatting.significant(0.00123456), "0.00123"),
        (formatting.significant(402.3), "402"),
        (formatting.significant(3e-9), "3.00e−9".replace("e−9", "e−09")),
        (formatting.duration(3.21), "3.2 s"),
        (formatting.duration(59.7), "60 s"),
        (formatting.duration(125), "2 min 05 s"),
        (formatting.duration(3600 * 27 + 61), "27 h 01 min"),
        (formatting.memory(812.5), "812 MiB"),
        (formatting.memory(2210), "2.16 GiB"),
        (formatting.ratio(24.0, 10.0), "×2.4"),
        (formatting.ratio(24.0, 0.0), ""),
        (formatting.short("abcdefghijklmnopqrstuvwxyz", 10), "abcdef…xyz"),
        (formatting.counted(1, "image"), "1 image"),
    ],
)
def test_words(said: str, expected: str) -> None:
    assert said == expected


def judged(gain: float | None, low: float | None, high: float | None, **changes: object) -> verdict.Verdict:
    bounds = replace(Interval(low, high, "blocks", 12), **changes)  # type: ignore[arg-type]
    return verdict.verdict(example.content(comparison=Gain(gain, bounds)))


def test_a_clear_gain_and_a_clear_loss() -> None:
    better, worse = judged(0.03, 0.01, 0.05), judged(-0.03, -0.05, -0.01)
    assert (better.tone, worse.tone) == ("gain", "loss")
    assert better.headline == "distilled: +3.0 mIoU against plain, a clear gain"
    assert worse.headline == "distilled: −3.0 mIoU against plain, a clear loss"
    assert "12 blocks" in better.sentences[0]


@pytest.mark.parametrize(
    ("gain", "low", "high"),
    [(0.03, -0.01, 0.05), (0.03, 0.0, 0.05), (-0.03, -0.05, 0.0), (0.0, 0.0, 0.0), (None, None, None)],
)
def test_nothing_is_claimed_where_the_interval_does_not_carry_it(
    gain: float | None, low: float | None, high: float | None
) -> None:
    result = judged(gain, low, high)
    assert result.tone == "open"
    assert "a clear" not in result.headline
    assert "clear gain" not in " ".join(result.sentences)


def test_an_unreliable_interval_is_no_evidence_and_says_why() -> None:
    result = judged(0.03, 0.01, 0.05, reliable=False, reason="only 3 blocks", groups=3)
    assert result.tone == "open"
    assert "no conclusion is drawn" in " ".join(result.sentences)
    assert any("only 3 blocks" in warning for warning in result.warnings)


def test_equal_counts_are_no_difference() -> None:
    assert judged(0.0, 0.0, 0.0).headline == "distilled: no difference from plain"


def test_images_that_may_look_alike_and_flattering_choices_are_warned_of() -> None:
    flattered = example.training("distilled", chosen_on_scored_data=True)
    warnings = " ".join(verdict.verdict(example.content(trainings=(flattered,))).warnings)
    assert "weights of distilled were chosen on the images scored here" in warnings
    assert "draws single images" in warnings
    assert "variation between seeds" in warnings
    assert "draws single images" not in " ".join(judged(0.03, 0.01, 0.05).warnings)


def test_a_comparison_in_which_one_side_was_chosen_on_the_scored_images_is_not_called_clear() -> None:
    one = (example.training("distilled", chosen_on_scored_data=True), example.training("plain"))
    both = tuple(example.training(name, chosen_on_scored_data=True) for name in ("distilled", "plain"))
    unfair, fair = (verdict.verdict(example.content(trainings=each)) for each in (one, both))
    assert unfair.tone == "open"
    assert unfair.headline.endswith("not a fair comparison")
    assert "Only the weights of distilled" in " ".join(unfair.sentences)
    assert fair.tone == "gain"
    loss = Gain(-0.03, Interval(-0.05, -0.01, "blocks", 12))
    assert verdict.verdict(example.content(trainings=one, comparison=loss)).tone == "loss"  # in spite of the favour


def test_the_choice_of_weights_is_told() -> None:
    best, last = example.training("distilled"), example.training("distilled", kept="last", best_step=None)
    told = [" ".join(verdict.verdict(example.content(trainings=(one,))).sentences) for one in (best, last)]
    assert "best validation score on town/val, step 1000 of 1000" in told[0]
    assert "those of the last step (1000)" in told[1]


# Tables


def test_weights_that_were_chosen_with_target_labels_are_marked() -> None:
    for kept, marked in (("best", False), ("best_on_target", True)):
        trainings = (example.training("distilled", kept=kept),)
        sentences = " ".join(verdict.verdict(example.content(trainings=trainings)).sentences)
        assert ("step 1000 of 1000, chosen with target labels" in sentences) == marked


def test_the_score_of_the_verdict_is_the_mean_over_classes_that_occur() -> None:
    quality = example.quality(5, 0.6, miou=0.5543, miou_all=0.4434)
    net = replace(example.net("distilled", 5, 0.6), quality=quality)
    alone = verdict.verdict(example.content(nets=(net,), baseline=None, comparison=None, teacher=None))
    compared = verdict.verdict(example.content(nets=(example.net("plain", 5, 0.5), net), teacher=None))
    assert alone.headline == "distilled: 55.43 mIoU"
    assert compared.sentences[0].startswith("distilled scores 55.43 mIoU on town/test (40 images); the baseline plain ")


def test_the_best_of_a_row_is_marked_and_calibration_counts_downwards() -> None:
    given = example.content()
    better = replace(given.nets[0].quality.reliability, error=0.01)  # type: ignore[type-var]
    plain = replace(given.nets[0], quality=replace(given.nets[0].quality, reliability=better))
    rows = dict(tables.summary(replace(given, nets=(plain, *given.nets[1:]))))["Quality (%)"]
    marked = {row.name: [cell.best for cell in row.cells] for row in rows}
    assert marked["mIoU"] == [False, False, True]
    assert marked["Calibration error"] == [True, False, False]
    rows = dict(tables.summary(given))["Quality (%)"]
    assert not any(cell.best for row in rows for cell in row.cells if row.name == "Calibration error")


def test_classes_are_sorted_by_frequency_and_changes_are_ranked() -> None:
    given = example.content()
    student = given.nets[1]
    iou = tuple(
        value + delta for value, delta in zip(given.nets[0].quality.iou, (0.1, -0.2, 0, 0.3, None or 0), strict=True)
    )
    nets = (given.nets[0], replace(student, quality=replace(student.quality, iou=iou)), given.nets[2])
    rows = tables.class_rows(replace(given, nets=nets))
    assert [row.info.name for row in rows] == [f"class {i}" for i in (4, 3, 2, 1, 0)]
    gained, lost = tables.changed_most(rows)
    assert [row.info.name for row in gained] == ["class 3", "class 0"]
    assert [row.info.name for row in lost] == ["class 1"]


def test_the_commonest_confusions_are_shares_of_class_and_of_all_mistakes() -> None:
    confusion = np.array([[90, 10, 0], [0, 50, 0], [30, 0, 70]])
    first, second = tables.commonest_confusions(example.content(3, confusion=confusion))
    assert (first.truth.name, first.taken_for.name, first.of_class, first.of_mistakes) == (
        "class 2",
        "class 0",
        0.3,
        0.75,
    )
    assert (second.of_class, second.of_mistakes) == (0.1, 0.25)


def test_confusion_cells_say_their_share_and_empty_classes_nothing() -> None:
    confusion = np.array([[9960, 40, 0], [0, 0, 0], [500, 0, 500]])
    rows = [cells for _, cells in tables.confusion_rows(example.content(3, confusion=confusion))]
    assert [[cell.text for cell in row] for row in rows] == [["100", "·", ""], ["", "", ""], ["50", "", "50"]]
    assert rows[0][0].right
    assert not rows[0][1].right
    assert 0 < rows[0][1].level < rows[2][0].level < rows[0][0].level == tables.HEAT_LEVELS - 1


def test_each_figure_stands_in_the_row_of_its_name() -> None:
    quality = example.quality(
        5, 0.5, miou=0.51, miou_all=0.42, pixel_accuracy=0.93, mean_accuracy=0.64, boundary_miou=0.35
    )
    cost = InferenceCost(parameters=11_000_000, multiply_adds=2.2e9, milliseconds=33.0)
    student = replace(example.net("distilled", 5, 0.5), quality=quality, cost=cost)
    training = example.training("distilled", seconds=4.4, data_wait=0.055)
    given = example.content(nets=(student,), baseline=None, teacher=None, comparison=None, trainings=(training,))
    found = {row.name: row.cells[0].text for _, rows in tables.summary(given) for row in rows}
    assert found == {
        "mIoU": "51.00",
        "mIoU, all classes": "42.00",
        "Pixel accuracy": "93.00",
        "Boundary IoU": "35.00",
        "Calibration error": "5.00",
        "Parameters": "11.0 M",
        "GFLOPs": "2.20",
        "Milliseconds": "33.0",
        "Time": "4.4 s",
        "Waiting for data": "5.5",
    }


def test_costs_are_multiples_of_the_students() -> None:
    large = InferenceCost(parameters=30_000_000, multiply_adds=8e9, milliseconds=25.0)
    small = InferenceCost(parameters=10_000_000, multiply_adds=2e9, milliseconds=50.0)
    nets = (replace(example.net("big", 5, 0.6), cost=large), replace(example.net("distilled", 5, 0.5), cost=small))
    found = {net.label: cells for net, cells in tables.costs(example.content(nets=nets, baseline=None))}
    assert [cell.note for cell in found["big"][:3]] == ["×3.0", "×4.0", "×0.50"]
    assert [cell.note for cell in found["distilled"][:3]] == ["", "", ""]


def test_a_class_has_its_share_of_the_pixels_its_recall_and_its_precision() -> None:
    infos = tuple(replace(info, pixels=pixels) for info, pixels in zip(example.classes(2), (100, 300), strict=True))
    quality = example.quality(2, 0.5, accuracy=(0.7, 0.8), precision=(0.3, 0.4), boundary_iou=(0.1, 0.2))
    student = replace(example.net("distilled", 2, 0.5), quality=quality)
    rows = tables.class_rows(example.content(2, classes=infos, nets=(student,), baseline=None))
    assert [(row.share, row.recall, row.precision, row.boundary) for row in rows] == [
        (0.75, 0.8, 0.4, 0.2),
        (0.25, 0.7, 0.3, 0.1),
    ]


def test_an_interval_that_is_not_reliable_is_marked() -> None:
    notes = []
    for reliable in (True, False):
        interval = Interval(0.4, 0.6, "images", 3, reliable)
        net = replace(example.net("distilled", 5, 0.5), quality=example.quality(5, 0.5, interval=interval))
        row = dict(tables.summary(example.content(nets=(net,))))["Quality (%)"][0]
        notes.append(row.cells[0].note)
    assert notes == ["[40.0, 60.0]", "[40.0, 60.0] not reliable"]


# Charts


def test_ticks_are_round_and_within() -> None:
    assert plots.ticks(0, 1) == [0, 0.25, 0.5, 0.75, 1]
    assert plots.ticks(17.2, 54.1) == [20, 30, 40, 50]
    assert plots.ticks(5, 5) == [5]
    assert plots.log_ticks(0.01, 12) == [0.01, 0.1, 1, 10]


def test_a_long_curve_is_thinned_to_means() -> None:
    curve = plots.thinned(tuple((float(i), 1.0) for i in range(10_001)), 100)
    assert len(curve) == 100
    assert {y for _, y in curve} == {1.0}
    assert plots.thinned(((1, float("nan")), (2, 3.0))) == ((2, 3.0),)


def test_a_chart_without_points_is_nothing() -> None:
    assert plots.line_chart([plots.Line("a", ())], "about") == ""
    assert plots.line_chart([plots.Line("a", ((1, float("inf")),))], "about") == ""
    assert plots.gain_chart(Gain(0.1, Interval(None, None)), "about") == ""


def test_the_text_of_a_chart_follows_its_curves_from_begin_to_end() -> None:
    lines = [plots.Line("loss", ((1, 2.0), (2, 5.0), (3, 0.25))), plots.Line("rate", ((1, 0.5), (3, 1.0)))]
    text = charts.about("Loss", "of distilled", lines)
    assert text == "Loss of distilled against the step: loss from 2.00 to 0.250; rate from 0.500 to 1.00"


def test_text_in_charts_is_escaped() -> None:
    chart = plots.line_chart([plots.Line("<b>&", ((1, 1.0), (2, 2.0)))], 'say "<i>"', mark=(1.5, "<u>"))
    assert "<title>&lt;b&gt;&amp;</title>" in chart
    assert "<i>" not in chart
    assert "<u>" not in chart
    assert '"<' not in chart


def test_every_point_lies_in_the_frame() -> None:
    frame = plots.Frame(10, 20, 100, 50, (0.0, 10.0), (0.01, 100.0), log=True)
    assert frame.across(0) == 10
    assert frame.across(10) == 110
    assert frame.up(0.01) == pytest.approx(70)
    assert frame.up(1.0) == pytest.approx(45)
    assert frame.up(100.0) == pytest.approx(20)


# Pictures


def decoded(source: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))).convert("RGB"))


def test_a_class_map_has_the_palettes_colours_and_a_hatch_elsewhere() -> None:
    ids = np.array([[0, 1], [253, 255]], dtype=np.uint8)
    seen = decoded(pictures.png(ids, [(1, 2, 3), (250, 0, 9)]))
    assert seen[0].tolist() == [[1, 2, 3], [250, 0, 9]]
    assert all(len(set(pixel)) == 1 for pixel in seen[1].tolist())
    full = [(i, 255 - i, 7) for i in range(254)]
    assert decoded(pictures.png(ids, full))[1, 0].tolist() == [253, 2, 7]


def test_where_two_nets_differ_the_colour_says_who_is_right() -> None:
    truth = np.array([[0, 0, 0, 0, 255, 1]], dtype=np.uint8)
    first = np.array([[0, 1, 0, 1, 0, 0]], dtype=np.uint8)
    second = np.array([[0, 0, 1, 2, 1, 0]], dtype=np.uint8)
    drawn = pictures.difference(np.zeros((1, 6, 3), dtype=np.uint8), truth, first, second)[0]
    assert [tuple(pixel) for pixel in drawn[1:4].tolist()] == [
        pictures.ONLY_SECOND,
        pictures.ONLY_FIRST,
        pictures.BOTH_WRONG,
    ]
    assert [tuple(pixel) for pixel in drawn[[0, 4, 5]].tolist()] == [(150, 150, 150)] * 3


@pytest.mark.parametrize(
    ("size", "expected"),
    [((100, 200), (100, 200)), ((720, 960), (360, 480)), ((2000, 100), (640, 32)), ((2, 5000), (1, 480))],
)
def test_pictures_are_shrunk_to_a_sensible_size(size: tuple[int, int], expected: tuple[int, int]) -> None:
    image, maps = pictures.shrunk(np.zeros((*size, 3), dtype=np.uint8), {"truth": np.full(size, 9, dtype=np.uint8)})
    assert image.shape == (*expected, 3)
    assert maps["truth"].shape == expected
    assert set(maps["truth"].ravel()) == {9}


def test_a_budget_shrinks_all_before_it_drops_some() -> None:
    labels = ("plain", "distilled", "big")
    several = tuple(example.picture(f"{i}", 5, labels, 60, 80, seed=i) for i in range(4))
    given = example.content(pictures=several, galleries=(Gallery("All", "", (0, 1, 2, 3)),))
    whole, none = pictures.shown(given)
    assert (len(whole), none, whole[0].panels[0].width) == (4, 0, 80)
    size = sum(len(panel.source) for one in whole.values() for panel in one.panels)
    smaller, none = pictures.shown(given, size // 2)
    assert (len(smaller), none) == (4, 0)
    assert smaller[0].panels[0].width < 80
    fewer, left_out = pictures.shown(given, size // 12)
    assert 0 < len(fewer) < 4
    assert len(fewer) + left_out == 4


def test_the_heat_map_is_one_pixel_a_cell_and_darkest_at_one() -> None:
    seen = decoded(pictures.heat_map(np.array([[1.0, 0.0], [np.nan, 0.02]]))).astype(int).sum(axis=2)
    assert seen.shape == (2, 2)
    assert seen[0, 0] < seen[1, 1] < seen[0, 1]
    assert seen[1, 0] == seen[0, 1]
