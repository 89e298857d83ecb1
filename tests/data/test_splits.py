"""Splits and few-label partitions: sizes, classes, groups, nesting, seeds, lists never overwritten."""

import itertools
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.errors import raises_code
from tutelage.data.dataset import Classes, Dataset, Sample
from tutelage.data.folder import FolderSettings, open_folder
from tutelage.data.labels import identity
from tutelage.data.splits import (
    Stratify,
    count_of,
    describe_parts,
    few_label_partitions,
    missing_classes,
    partition_parts,
    size_name,
    split_dataset,
    write_splits,
)
from tutelage.data.statistics import read_statistics

NAMES = ("road", "car", "person", "rider")
SHARES = {"train": 0.7, "val": 0.1, "test": 0.2}


@pytest.fixture(autouse=True)
def _fresh_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is known from another test."""
    monkeypatch.setenv("TUTELAGE_CACHE", str(tmp_path_factory.mktemp("cache")))


def make(root: Path, shown: list[set[int]], groups: list[str] | None = None) -> Dataset:
    """One small image for each set of classes; a class covers a random number of pixels."""
    draw = np.random.default_rng(0)
    samples = []
    for number, classes in enumerate(shown):
        image, label = root / f"images/{number:03}.png", root / f"masks/{number:03}.png"
        for path in (image, label):
            path.parent.mkdir(parents=True, exist_ok=True)
        values = np.zeros((8, 8), np.uint8)
        for row, class_ in enumerate(sorted(classes - {0})):
            values[row, : draw.integers(1, 9)] = class_
        Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(image)
        Image.fromarray(values).save(label)
        group = "" if groups is None else groups[number]
        samples.append(Sample(f"images/{number:03}", image, label, group))
    return Dataset("city", tuple(samples), Classes(NAMES), identity(4))


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """100 images: road in all, car in half, person in a fifth, rider in five; ten groups of ten."""
    draw = np.random.default_rng(1)
    shown = [
        {0} | ({1} if draw.random() < 0.5 else set()) | ({2} if draw.random() < 0.2 else set()) for _ in range(100)
    ]
    for number in draw.choice(100, 5, replace=False):
        shown[number].add(3)
    return make(tmp_path_factory.mktemp("city"), shown, [f"g{number // 10}" for number in range(100)])


def names(dataset: Dataset, indices: list[int]) -> list[str]:
    return [dataset.samples[i].name for i in indices]


def _presence(dataset: Dataset, indices: list[int]) -> np.ndarray:
    """In which share of the images each class occurs."""
    return (read_statistics(dataset).classes[indices] > 0).mean(0)


def test_split_is_whole_and_balanced(city: Dataset) -> None:
    parts = split_dataset(city, SHARES)
    assert [len(indices) for indices in parts.values()] == [70, 10, 20]
    assert sorted(index for indices in parts.values() for index in indices) == list(range(100))
    overall = _presence(city, list(range(100)))
    for indices in parts.values():
        assert indices == sorted(indices)
        assert missing_classes(city, indices) == ()
        assert np.abs(_presence(city, indices) - overall)[:3].max() < 1.5 / len(indices), "off by an image at most"
    pixels = read_statistics(city).classes
    relative = pixels[parts["test"]].sum(0) / pixels.sum(0)
    assert np.abs(relative - 0.2)[:3].max() < 0.06


def test_stratification_beats_chance(city: Dataset) -> None:
    def spread(stratify: Stratify) -> float:
        parts = [split_dataset(city, SHARES, seed, stratify=stratify)["val"] for seed in range(5)]
        return float(
            np.mean([np.abs(_presence(city, part) - _presence(city, list(range(100)))).max() for part in parts])
        )

    assert spread("classes") < 0.6 * spread("none")


def test_split_depends_on_names_and_seed_only(city: Dataset) -> None:
    order = np.random.default_rng(3).permutation(100)
    shuffled = city.subset(order.tolist())
    for part, indices in split_dataset(city, SHARES).items():
        assert names(city, indices) == names(shuffled, split_dataset(shuffled, SHARES)[part])
    assert split_dataset(city, SHARES) == split_dataset(city, SHARES)
    assert split_dataset(city, SHARES, 1) != split_dataset(city, SHARES, 0)


def test_counts_and_a_rest(city: Dataset) -> None:
    parts = split_dataset(city, {"train": 30, "val": "5", "test": Fraction(1, 10)})
    assert [len(indices) for indices in parts.values()] == [30, 5, 10]
    assert all(missing_classes(city, indices) == () for indices in parts.values())
    assert len({index for indices in parts.values() for index in indices}) == 45


def test_every_part_gets_an_image(tmp_path: Path) -> None:
    three = make(tmp_path, [{0}, {0, 1}, {0, 2}])
    assert [len(indices) for indices in split_dataset(three, {"train": 0.8, "val": 0.1, "test": 0.1}).values()] == [
        1,
        1,
        1,
    ]
    nothing = three.without_labels()
    assert [len(indices) for indices in split_dataset(nothing, {"a": 0.6, "b": 0.4}).values()] == [2, 1]


def test_the_only_image_of_a_class_trains(tmp_path: Path) -> None:
    dataset = make(tmp_path, [{0}] * 9 + [{0, 3}])
    for seed in range(5):
        parts = split_dataset(dataset, SHARES, seed)
        assert 9 in parts["train"]
        assert describe_parts(dataset, parts)[1].endswith("rider")


def test_groups_stay_together(city: Dataset) -> None:
    for seed in range(3):
        parts = split_dataset(city, SHARES, seed, group=True)
        groups = [{city.samples[i].group for i in indices} for indices in parts.values()]
        assert [len(group) for group in groups] == [7, 1, 2]
        assert sum(map(len, groups)) == len(set.union(*groups))
    assert describe_parts(city, parts)[2].startswith("test: 20 images of 2 groups")


def test_lopsided_groups_leave_no_part_empty(tmp_path: Path) -> None:
    dataset = make(tmp_path, [{0}] * 12, ["a"] * 10 + ["b", "c"])
    parts = split_dataset(dataset, SHARES, group=True)
    assert sorted(map(len, parts.values())) == [1, 1, 10]
    assert len(parts["train"]) == 10


def test_group_faults(city: Dataset) -> None:
    with raises_code("groups-missing"):
        split_dataset(replace(city, samples=tuple(replace(s, group="") for s in city.samples)), SHARES, group=True)
    with raises_code("split-size", "2 groups", "3 parts"):
        split_dataset(city.subset(range(20)), SHARES, group=True)


@pytest.mark.parametrize(
    ("parts", "facts"),
    [
        ({"train": 0.9, "test": 0.2}, ["110", "100"]),
        ({"train": 90, "test": 20}, ["110", "100"]),
        ({"train": 0}, ["'train'"]),
        ({"train": 0.0, "test": 0.5}, ["'train'"]),
        ({"train": "many"}, ["'many'"]),
        ({"train": 1.5}, ["1.5"]),
        ({"train": "1/0"}, ["'1/0'"]),
    ],
)
def test_impossible_parts(city: Dataset, parts: dict[str, float], facts: list[str]) -> None:
    with raises_code("split-size", *facts):
        split_dataset(city, parts)


def test_sizes() -> None:
    assert [size_name(size) for size in (1 / 16, "1/16", 0.3, Fraction(1, 8), 46, "46")] == [
        "1_16",
        "1_16",
        "3_10",
        "1_8",
        "46",
        "46",
    ]
    assert [count_of(size, 367) for size in ("1/16", "1/8", 0.25, 0.0001, 46, 1.0)] == [23, 46, 92, 1, 46, 367]
    with raises_code("split-size", "[1, 367]", "400"):
        count_of(400, 367)


def test_few_labels_are_nested_and_show_every_class(city: Dataset) -> None:
    partitions = few_label_partitions(city, ["1/16", "1/8", "1/4", 0.5], draws=3)
    assert list(partitions) == [(name, draw) for name in ("1_16", "1_8", "1_4", "1_2") for draw in range(3)]
    for draw in range(3):
        chain = [partitions[name, draw][0] for name in ("1_16", "1_8", "1_4", "1_2")]
        assert [len(labeled) for labeled in chain] == [6, 12, 25, 50]
        for smaller, larger in itertools.pairwise(chain):
            assert set(smaller) < set(larger)
        assert all(missing_classes(city, labeled) == () for labeled in chain)
    for labeled, unlabeled in partitions.values():
        assert sorted(labeled + unlabeled) == list(range(100))
        assert not set(labeled) & set(unlabeled)
    assert len({tuple(partitions["1_16", draw][0]) for draw in range(3)}) == 3


def test_few_labels_do_not_depend_on_the_other_sizes_order(city: Dataset) -> None:
    forward = few_label_partitions(city, [0.125, 0.25])
    assert few_label_partitions(city, [0.25, 0.125]) == forward
    assert few_label_partitions(city, [0.125])["1_8", 0] == forward["1_8", 0]
    assert few_label_partitions(city, [0.125], seed=1) != few_label_partitions(city, [0.125])


def test_few_labels_without_nesting(city: Dataset) -> None:
    partitions = few_label_partitions(city, [0.125, 0.25], nested=False)
    assert not set(partitions["1_8", 0][0]) <= set(partitions["1_4", 0][0])
    assert all(missing_classes(city, labeled) == () for labeled, _ in partitions.values())


def test_few_labels_by_group(city: Dataset) -> None:
    partitions = few_label_partitions(city, [0.2, 0.4], by_group=True)
    for (labeled, unlabeled), count in zip(partitions.values(), (20, 40), strict=True):
        assert len(labeled) == count
        assert not {city.samples[i].group for i in labeled} & {city.samples[i].group for i in unlabeled}


UNEVEN = {"aachen": 45, "bochum": 3, "jena": 20, "ulm": 32}


@pytest.fixture(scope="module")
def towns(city: Dataset) -> Dataset:
    """The same images in four groups of unequal size, in an order that has nothing to do with them."""
    groups = [name for name, count in UNEVEN.items() for _ in range(count)]
    order = np.random.default_rng(7).permutation(100)
    samples = tuple(replace(s, group=groups[place]) for s, place in zip(city.samples, order, strict=True))
    return replace(city, samples=samples)


def _per_group(dataset: Dataset, indices: list[int]) -> dict[str, int]:
    return {name: sum(dataset.samples[i].group == name for i in indices) for name in UNEVEN}


def test_few_labels_take_their_share_of_each_group(towns: Dataset) -> None:
    sizes = ["1/16", "1/8", "1/4", "1/2", 77]
    partitions = few_label_partitions(towns, sizes, draws=3, stratify="group")
    for draw in range(3):
        chain = [partitions[name, draw][0] for name in ("1_16", "1_8", "1_4", "1_2", "77")]
        assert [len(labeled) for labeled in chain] == [6, 12, 25, 50, 77]
        for smaller, larger in itertools.pairwise(chain):
            assert set(smaller) < set(larger)
        for labeled in chain:
            for name, count in _per_group(towns, labeled).items():
                assert abs(count - UNEVEN[name] * len(labeled) / 100) < 1, (name, len(labeled))
    for labeled, unlabeled in partitions.values():
        assert sorted(labeled + unlabeled) == list(range(100))
        assert labeled == sorted(labeled)
    assert len({tuple(partitions["1_16", draw][0]) for draw in range(3)}) == 3
    shuffled = towns.subset(np.random.default_rng(3).permutation(100).tolist())
    again = few_label_partitions(shuffled, sizes, stratify="group")
    assert names(shuffled, again["1_8", 0][0]) == names(towns, partitions["1_8", 0][0])
    apart = few_label_partitions(towns, ["1/8", "1/4"], nested=False, stratify="group")
    assert not set(apart["1_8", 0][0]) <= set(apart["1_4", 0][0])


def test_parts_take_their_share_of_each_group(towns: Dataset) -> None:
    parts = split_dataset(towns, {"train": 0.6, "val": 0.1, "test": 20}, stratify="group")
    assert [len(indices) for indices in parts.values()] == [60, 10, 20]
    assert len({index for indices in parts.values() for index in indices}) == 90
    for indices in parts.values():
        for name, count in _per_group(towns, indices).items():
            assert abs(count - UNEVEN[name] * len(indices) / 100) <= 1, (name, len(indices))


def test_groups_are_whole_or_shared_out(city: Dataset) -> None:
    for split in (
        lambda data, **options: few_label_partitions(data, [0.5], by_group=True, **options),
        lambda data, **options: split_dataset(data, SHARES, group=True, **options),
    ):
        with raises_code("option-conflict"):
            split(city, stratify="group")
    bare = replace(city, samples=tuple(replace(s, group="") for s in city.samples))
    with raises_code("groups-missing"):
        few_label_partitions(bare, [0.5], stratify="group")


def test_few_labels_of_unstratified_and_tiny_sets(city: Dataset, tmp_path: Path) -> None:
    assert len(few_label_partitions(city, [7], stratify="none")["7", 0][0]) == 7
    tiny = make(tmp_path, [{0}, {0, 1}, {0, 1, 2}, {0, 3}])
    partitions = few_label_partitions(tiny, [1, 2, 1.0])
    # Two images can show all four classes: these two.
    assert names(tiny, partitions["2", 0][0])[1] == "images/003"
    assert partitions["1_1", 0] == ([0, 1, 2, 3], [])
    assert "1_1/unlabeled" not in partition_parts(partitions)


def test_classes_are_found_by_swapping(tmp_path: Path) -> None:
    # Two of four images have to carry three rare classes.
    dataset = make(tmp_path, [{0}] * 20 + [{0, 1}, {0, 2}, {0, 3}, {0, 1, 2, 3}])
    for seed in range(10):
        labeled, _ = few_label_partitions(dataset, [3], seed=seed)["3", 0]
        assert missing_classes(dataset, labeled) == ()


def test_large_sets_are_quick(city: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = tuple(Sample(f"{number}", Path("image"), Path("mask")) for number in range(20_000))
    draw = np.random.default_rng(0)
    classes = (draw.random((20_000, 19)) < draw.random(19)) * draw.integers(1, 1000, (20_000, 19))
    large = Dataset("large", samples, Classes(tuple(f"c{i}" for i in range(19))), identity(19))
    monkeypatch.setattr(
        "tutelage.data.stratify.read_statistics", lambda dataset: type("Found", (), {"classes": classes})()
    )
    parts = few_label_partitions(large, [1 / 16])
    assert len(parts["1_16", 0][0]) == 1250


def test_written_lists_are_read_back(city: Dataset, tmp_path: Path) -> None:
    root = city.samples[0].image.parent.parent
    partitions = few_label_partitions(city, ["1/8"], draws=2)
    written = write_splits(city, partition_parts(partitions), tmp_path / "splits", root)
    assert list(written) == [f"1_8/draw{draw}/{part}" for draw in (0, 1) for part in ("labeled", "unlabeled")]
    settings = FolderSettings(
        root=str(root),
        classes=list(NAMES),
        splits={name.replace("/", "-"): str(path) for name, path in written.items()},
    )
    opened = open_folder(settings, tmp_path)
    assert names(opened["1_8-draw1-labeled"], list(range(12))) == names(city, partitions["1_8", 1][0])
    assert opened["1_8-draw0-labeled"].labeled
    one = partition_parts(few_label_partitions(city, ["1/8"]))
    assert list(one) == ["1_8/labeled", "1_8/unlabeled"]


def test_lists_are_not_overwritten(city: Dataset, tmp_path: Path) -> None:
    root = city.samples[0].image.parent.parent
    parts = split_dataset(city, SHARES)
    written = write_splits(city, parts, tmp_path, root)
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in written.values()}
    assert write_splits(city, parts, tmp_path, root) == written
    others = split_dataset(city, SHARES, seed=1)
    written["val"].unlink()
    with raises_code("output-exists", "train.txt and 1 more"):
        write_splits(city, others, tmp_path, root)
    assert not written["val"].exists()  # all or nothing
    assert all(
        (path.read_bytes(), path.stat().st_mtime_ns) == before[path] for path in written.values() if path.exists()
    )
    write_splits(city, others, tmp_path, root, force=True)
    assert written["train"].read_bytes() != before[written["train"]][0]
    with raises_code("split-size", "'none'"):
        write_splits(city, {"none": []}, tmp_path, root)
