"""Comparing scored runs: what is refused, what is computed, what is said."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.errors import raises_code
from tests.evaluation.test_intervals import counts_of_images
from tutelage.data.dataset import Classes, Dataset, Sample
from tutelage.data.labels import identity
from tutelage.evaluation.comparison import compare, read_scored
from tutelage.evaluation.confusion import Confusion
from tutelage.evaluation.evaluate import Evaluation, summary, write_evaluation
from tutelage.evaluation.intervals import paired_bootstrap
from tutelage.evaluation.protocol import Protocol
from tutelage.runs.store import Artefact

NAMES = ("road", "car", "sky", "tree")
WHOLE = Protocol()
COUNTS = counts_of_images(0, images=20)


def better(counts: np.ndarray, by: int) -> np.ndarray:
    """One in ``by`` of the missed pixels is found."""
    result = counts.copy()
    found = result[..., 2] // by
    result[..., 0] += found
    result[..., 2] -= found
    return result


class Runs:
    """Writes scored runs into evaluate stages' folders."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "photo.jpg").write_bytes(b"pixels")

    def write(
        self,
        label: str,
        counts: np.ndarray = COUNTS,
        *,
        stage: str = "score-0123456789ab",
        protocol: Protocol = WHOLE,
        classes: tuple[str, ...] = NAMES,
        images: tuple[str, ...] = (),
        content: bytes = b"pixels",
        blocks: int = 0,
        net: str | None = None,
        subsets: dict[str, list[str]] | None = None,
        merged: dict[str, list[str]] | None = None,
        merged_counts: np.ndarray | None = None,
    ) -> str:
        (self.folder / "photo.jpg").write_bytes(content)
        names = images or tuple(f"{number:02}" for number in range(len(counts)))
        groups = tuple(f"block {number % blocks}" if blocks else "" for number in range(len(names)))
        samples = tuple(
            Sample(name, self.folder / "photo.jpg", group=group) for name, group in zip(names, groups, strict=True)
        )
        dataset = Dataset("val", samples, Classes(classes), identity(len(classes)))
        matrix = Confusion(len(classes), torch.device("cpu"))
        evaluation = Evaluation(matrix, counts, names, groups, merged_NG3=merged_counts)
        artefact = Artefact(self.folder / stage, stage[-12:])
        figures = summary(evaluation, dataset, protocol, subsets=subsets, merged_as=merged)
        facts = {**figures, "net": net or f"{label}.student"}
        scores = [counts[..., 0].sum(0), counts.sum((0, 2))]
        facts["miou"] = float(np.mean(scores[0] / scores[1]))
        write_evaluation(artefact.score(label), artefact.counts(label), facts, evaluation)
        return f"{artefact.folder}:{label}"


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(tmp_path)


def test_a_clear_gain(runs: Runs) -> None:
    a, b = runs.write("plain"), runs.write("distilled", better(COUNTS, 5))
    found = compare([a], [b])
    assert found.gain == paired_bootstrap(COUNTS, better(COUNTS, 5))
    assert found.verdict == "clear gain"
    assert compare([b], [a]).verdict == "clear loss"
    assert compare([a], [b]).gain != compare([a], [b], seed=1).gain
    assert [row.name for row in found.classes] == list(NAMES)
    for index, row in enumerate(found.classes):
        assert row.b - row.a == pytest.approx(row.gain.gain)
        only = slice(index, index + 1)
        assert row.gain == paired_bootstrap(COUNTS[:, only], better(COUNTS, 5)[:, only])
    assert np.mean([row.a for row in found.classes]) == pytest.approx(found.a.miou)
    text = found.text()
    assert "clear gain: b - a is +" in text
    assert "paired bootstrap over 20 images)" in text
    assert "One run per side" in text
    assert all(name in text for name in NAMES)
    assert all(len(line) < 200 for line in text.splitlines())


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0004, "p = below 0.001 "), (0.001, "p = 0.001 "), (0.0049, "p = 0.005 "), (0.04, "p = 0.040 ")],
)
def test_a_p_value_has_three_digits(runs: Runs, value: float, text: str) -> None:
    found = compare([runs.write("a")], [runs.write("b", better(COUNTS, 5))])
    assert text in replace(found, gain=replace(found.gain, p_value=value)).text()


def test_no_difference_is_said(runs: Runs) -> None:
    even = (np.arange(20) % 2 == 0)[:, None, None]
    a = runs.write("plain", np.where(even, COUNTS, better(COUNTS, 5)))
    b = runs.write("other", np.where(even, better(COUNTS, 5), COUNTS))
    assert compare([a], [b]).verdict == "no clear difference"
    assert "no clear difference: b - a" in compare([a], [b]).text()
    assert compare([a], [a]).gain.gain == 0


def test_several_seeds(runs: Runs) -> None:
    quality = (0.60, 0.65, 0.70)
    side_a = [runs.write(f"a{i}", counts_of_images(0, 20, value)) for i, value in enumerate(quality)]
    side_b = [runs.write(f"b{i}", counts_of_images(0, 20, value + 0.1)) for i, value in enumerate(quality[:2])]
    found = compare(side_a, side_b)
    mious = [read_scored(path).miou for path in side_a]
    assert found.a.miou == pytest.approx(np.mean(mious))
    assert found.a.spread == pytest.approx(np.std(mious, ddof=1))
    assert found.gain.seeds == (3, 2)
    assert "over 3 seeds" in found.text()
    assert "over 3 and 2 seeds" in found.text()
    assert "underestimated" in found.text()
    assert compare(side_a[:1], side_b).a.spread is None
    many = [runs.write(f"c{i}", counts_of_images(i, 20)) for i in range(5)]
    assert not compare(many, [*side_a, *side_b]).caveats


def test_blocks_are_drawn_where_there_are_some(runs: Runs) -> None:
    a, b = runs.write("a", blocks=6), runs.write("b", better(COUNTS, 5), blocks=6)
    found = compare([a], [b])
    assert found.blocks
    assert found.gain.interval.groups == 6
    assert "over 6 blocks of images" in found.text()
    few = [runs.write(f"{name}few", counts, blocks=3) for name, counts in (("a", COUNTS), ("b", better(COUNTS, 5)))]
    unsure = compare(few[:1], few[1:])
    assert unsure.verdict == "no clear difference"
    assert "not reliable: only 3 blocks" in unsure.text()


def test_as_json(runs: Runs) -> None:
    a, b = runs.write("a"), runs.write("b", better(COUNTS, 5))
    content = json.loads(json.dumps(compare([a], [b]).as_dict(), allow_nan=False))
    assert content["p_value"] == compare([a], [b]).gain.p_value
    assert content["verdict"] == "clear gain"
    assert content["gain"] == pytest.approx(content["b"]["miou"] - content["a"]["miou"])
    assert content["low"] < content["gain"] < content["high"]
    assert [row["name"] for row in content["classes"]] == list(NAMES)
    assert content["a"]["runs"][0]["name"] == a


def test_a_class_that_does_not_occur_is_left_out(runs: Runs) -> None:
    counts = COUNTS.copy()
    counts[:, 2] = 0
    paths = []
    for name, values in (("a", counts), ("b", better(counts, 5))):
        with np.errstate(invalid="ignore"):
            path = runs.write(name, values)
        folder, _, label = path.rpartition(":")
        score = Artefact(Path(folder), "").score(label)
        facts = json.loads(score.read_text().replace("NaN", "0"))
        facts["miou"] = float(np.mean([values[:, k, 0].sum() / values[:, k].sum() for k in (0, 1, 3)]))
        score.write_text(json.dumps(facts))
        paths.append(path)
    found = compare(paths[:1], paths[1:])
    assert [row.name for row in found.classes] == ["road", "car", "tree"]
    assert "sky" not in found.text()


DIFFERING: dict[str, tuple[dict[str, Any], str]] = {
    "protocol": ({"protocol": Protocol(flip=True)}, "flip (False and True)"),
    "classes": ({"classes": ("road", "car", "sky", "bush")}, "the classes: tree, bush"),
    "order of classes": ({"classes": NAMES[::-1]}, "the classes: their order"),
    "images": ({"images": tuple(f"{n:02}" for n in range(1, 21))}, "2 are in only one, such as 00"),
    "order of images": ({"images": tuple(f"{n:02}" for n in range(19, -1, -1))}, "the images: their order"),
    "number of images": ({"counts": COUNTS[:19]}, "1 are in only one, such as 19"),
    "data": ({"content": b"others"}, "fingerprint"),
}


@pytest.mark.parametrize("which", DIFFERING)
def test_what_cannot_be_compared(which: str, runs: Runs) -> None:
    changes, words = DIFFERING[which]
    a, other = runs.write("a"), runs.write("other", **changes)
    for sides in (([a], [other]), ([a, other], [a])):
        with raises_code("not-comparable", words) as caught:
            compare(*sides)
        assert "other" in str(caught.value)


def test_all_differences_are_named_at_once(runs: Runs) -> None:
    a, b = runs.write("a"), runs.write("b", protocol=Protocol(flip=True), classes=NAMES[::-1])
    with raises_code("not-comparable", "the protocol", "the classes"):
        compare([a], [b])


def test_a_run_counts_once(runs: Runs) -> None:
    a, b = runs.write("a"), runs.write("b", better(COUNTS, 5))
    with raises_code("duplicate-name", "side a"):
        compare([a, a], [b])
    again = runs.write("again", stage="score-ba9876543210", net="a.student")
    with raises_code("duplicate-name", "side b"):
        compare([b], [a, again])
    with raises_code("input-missing", "side b"):
        compare([a], [])


def test_ways_to_name_a_run(runs: Runs, tmp_path: Path) -> None:
    named = runs.write("a")
    folder = named.rpartition(":")[0]
    file = Path(folder) / "scores" / "a.json"
    expected = read_scored(named)
    for way in (file, str(file), folder, Path(folder)):
        np.testing.assert_array_equal(read_scored(way).counts_NK3, expected.counts_NK3)
    (tmp_path / "elsewhere").mkdir()
    for part in ("a.json", "a.npz"):
        (tmp_path / "elsewhere" / part).write_bytes((file.parent / part).read_bytes())
    assert read_scored(tmp_path / "elsewhere" / "a.json").images == expected.images
    runs.write("b")
    with raises_code("scores-missing", "several nets", "a, b"):
        read_scored(folder)
    with raises_code("scores-missing", "'c'"):
        read_scored(f"{folder}:c")
    for gone in (str(file.with_name("c.json")), str(runs.folder), "nowhere:a", "nowhere"):
        with raises_code("scores-missing"):
            read_scored(gone)


def test_files_that_are_damaged_or_mixed_up(runs: Runs) -> None:
    named, other = runs.write("a"), runs.write("b", better(COUNTS, 5))
    artefact = Artefact(Path(named.rpartition(":")[0]), "")
    artefact.counts("b").write_bytes(artefact.counts("a").read_bytes())
    with raises_code("scores-mismatch"):
        read_scored(other)
    artefact.counts("b").write_bytes(b"no counts")
    with raises_code("file-damaged"):
        compare([named], [other])
    artefact.score("b").write_text("{}")
    with raises_code("file-damaged"):
        read_scored(other)


# Other classes


MERGED = {"ground": ["road", "car"]}
PARTS = counts_of_images(1, images=20)[:, :3]


def test_subsets_and_merged_classes_have_rows_of_their_own(runs: Runs) -> None:
    few = {"pair": ["tree", "car"]}
    a = runs.write("a", subsets=few, merged=MERGED, merged_counts=PARTS)
    b = runs.write("b", better(COUNTS, 5), subsets=few, merged=MERGED, merged_counts=better(PARTS, 4))
    found = compare([a], [b])
    (pair,) = found.subsets
    assert pair.gain == paired_bootstrap(COUNTS[:, [3, 1]], better(COUNTS, 5)[:, [3, 1]])
    assert (pair.a, pair.b) == pytest.approx([np.mean([side[1], side[3]]) for side in (found.a.iou, found.b.iou)])
    assert found.merged is not None
    assert found.merged.names == ("ground", "sky", "tree")
    assert found.merged.gain == paired_bootstrap(PARTS, better(PARTS, 4))
    assert found.merged.gain.gain == pytest.approx(found.merged.b - found.merged.a)
    assert [row.name for row in found.merged.classes] == ["ground", "sky", "tree"]
    assert "mIoU of pair (2)" in found.text()
    assert "mIoU with ground merged" in found.text()
    told = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert told["subsets"]["pair"]["gain"] == pair.gain.gain
    assert told["merged"]["groups"] == MERGED
    assert found.gain == paired_bootstrap(COUNTS, better(COUNTS, 5)), "as without them"


def test_only_what_all_runs_were_scored_in_is_compared(runs: Runs) -> None:
    a = runs.write("a", subsets={"pair": ["tree", "car"]}, merged=MERGED, merged_counts=PARTS)
    b = runs.write("b", better(COUNTS, 5))
    c = runs.write("c", better(COUNTS, 4), merged={"ground": ["road", "tree"]}, merged_counts=PARTS)
    d = runs.write("d", better(COUNTS, 3), merged={"ground": ["car", "road"]}, merged_counts=PARTS)
    for other in (b, c):
        found = compare([a], [other])
        assert (found.subsets, found.merged) == ((), None)
        assert found.as_dict()["merged"] is None
    assert compare([a], [d]).merged is not None


def test_a_run_of_before_has_no_counts_of_merged_classes(runs: Runs) -> None:
    """Scores that name merged classes without counts by image, as they were written at first."""
    run = read_scored(runs.write("a", merged=MERGED))
    assert run.merged_NG3 is None
    assert run.content["merged"]["miou_interval"] is None
    with raises_code("scores-missing"):
        run.counts_of_merged(MERGED, ["ground", "sky", "tree"])
    new = read_scored(runs.write("b", merged=MERGED, merged_counts=PARTS))
    np.testing.assert_array_equal(new.counts_of_merged(MERGED, ["tree", "sky", "ground"]), PARTS[:, [2, 1, 0]])
    with raises_code("scores-missing"):
        new.counts_of_merged({"ground": ["road", "tree"]}, ["ground", "car", "sky"])


def test_counts_of_merged_classes_belong_to_their_scores(runs: Runs) -> None:
    with raises_code("scores-mismatch"):
        read_scored(runs.write("a", merged=MERGED, merged_counts=PARTS[:, :2]))
