"""The pseudo-label format: written, read like masks, refused where it does not fit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.errors import raises_code
from tutelage.data.dataset import Classes, Dataset, Sample
from tutelage.data.labels import LabelMap, identity
from tutelage.data.pseudo_labels import MANIFEST, PseudoLabelFolder, with_pseudo_labels, write_grey
from tutelage.data.settings import ViewSettings
from tutelage.data.stream import Stream

NAMES = ("a", "sub/b", "c.d")


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """Three images whose own masks would be read otherwise: with other values, by another map."""
    samples = []
    for number, name in enumerate(NAMES):
        image, mask = tmp_path / "images" / f"{name}.png", tmp_path / "masks" / f"{name}.png"
        for path in (image, mask):
            path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((6, 8, 3), 40 * number, dtype=np.uint8)).save(image)
        Image.fromarray(np.full((6, 8), 7, dtype=np.uint8)).save(mask)
        samples.append(Sample(name, image, mask, group="g"))
    return Dataset("mine", tuple(samples), Classes(("road", "car")), LabelMap({7: 0}))


def label(number: int) -> np.ndarray:
    values = np.full((6, 8), number % 2, dtype=np.uint8)
    values[number] = 255
    return values


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = PseudoLabelFolder(tmp_path / "labels of mine")
    for number, name in enumerate(NAMES):
        folder.write(name, label(number), np.full((6, 8), 100 + number, dtype=np.uint8))
    folder.finish(["road", "car"], {"producer": "k", "policy": "argmax"}, NAMES)
    return folder.root


def test_maps_are_eight_bit_grey_and_come_back(root: Path) -> None:
    folder = PseudoLabelFolder(root)
    for number, name in enumerate(NAMES):
        with Image.open(folder.label(name)) as image:
            assert (image.mode, image.format) == ("L", "PNG")
            np.testing.assert_array_equal(np.asarray(image), label(number))
        with Image.open(folder.confidence(name)) as image:
            assert np.unique(np.asarray(image)).tolist() == [100 + number]


def test_done_means_both_maps(root: Path) -> None:
    folder = PseudoLabelFolder(root)
    assert folder.has("sub/b")
    assert not folder.has("b")
    folder.label("sub/b").unlink()
    assert not folder.has("sub/b")
    folder.confidence("a").unlink()
    assert not folder.has("a")


def test_the_label_is_written_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    monkeypatch.setattr("tutelage.data.pseudo_labels.write_grey", lambda path, values: order.append(path.parent.name))
    PseudoLabelFolder(tmp_path).write("a", label(0), label(0))
    assert order == ["confidence", "labels"]


def test_equal_maps_are_equal_files(tmp_path: Path) -> None:
    for name in "xy":
        write_grey(tmp_path / f"{name}.png", label(1))
    assert (tmp_path / "x.png").read_bytes() == (tmp_path / "y.png").read_bytes()


def test_finishing_lists_every_file(root: Path) -> None:
    files = PseudoLabelFolder(root).finish(["road", "car"], {}, NAMES)
    assert files[0] == root / MANIFEST
    assert set(files) == {path for path in root.rglob("*") if path.is_file()}
    manifest = json.loads((root / MANIFEST).read_text())
    assert manifest == {"format": 1, "classes": ["road", "car"], "samples": list(NAMES)}


def test_a_dataset_is_labelled_by_them_and_forgets_its_own_masks(dataset: Dataset, root: Path) -> None:
    labelled = with_pseudo_labels(dataset, root)
    assert labelled.labeled
    assert [sample.name for sample in labelled.samples] == list(NAMES)
    assert [sample.group for sample in labelled.samples] == ["g"] * 3
    for number in range(3):
        np.testing.assert_array_equal(labelled.label(number), label(number))
        assert labelled.samples[number].label == root / "labels" / f"{NAMES[number]}.png"
        assert labelled.samples[number].confidence == root / "confidence" / f"{NAMES[number]}.png"
        assert labelled.samples[number].image == dataset.samples[number].image
    assert dataset.label(0).tolist() == np.zeros((6, 8), dtype=int).tolist(), "the data set itself is left alone"
    assert labelled.fingerprint != dataset.fingerprint


def test_an_unlabelled_dataset_gets_labels(dataset: Dataset, root: Path) -> None:
    assert with_pseudo_labels(dataset.without_labels(), root) == with_pseudo_labels(dataset, root)


def test_images_without_maps_are_left_out(dataset: Dataset, root: Path) -> None:
    PseudoLabelFolder(root).finish(["road", "car"], {}, ["sub/b", "gone"])
    assert [sample.name for sample in with_pseudo_labels(dataset, root).samples] == ["sub/b"]


def test_a_stream_hands_out_labels_and_confidences(dataset: Dataset, root: Path) -> None:
    labelled = with_pseudo_labels(dataset, root)
    stream = Stream("labeled", [labelled], 0, 3, {"weak": ViewSettings()})
    batch = next(stream.batches(0, 1, 1, 0, 1, torch.device("cpu")))
    maps = batch["weak"].maps
    assert maps.keys() == {"label", "confidence"}
    for place, sample in enumerate(batch.samples):
        number = NAMES.index(sample.partition(":")[2])
        assert set(maps["label"][place].unique().tolist()) == {number % 2, 255}
        np.testing.assert_allclose(maps["confidence"][place].numpy(), (100 + number) / 255)


def test_labels_for_other_classes_are_refused(dataset: Dataset, root: Path) -> None:
    for names in (("car", "road"), ("road", "car", "sky"), ("road",)):
        other = replace(dataset, classes=Classes(names), label_map=identity(len(names)))
        with raises_code("artefact-mismatch") as raised:
            with_pseudo_labels(other, root)
        assert ", ".join(names) in raised.value.remedy


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "{}", '{"format": 1, "classes": ["road", "car"]}'])
def test_a_damaged_manifest_is_said(dataset: Dataset, root: Path, content: str) -> None:
    (root / MANIFEST).write_text(content)
    with raises_code("file-damaged") as raised:
        with_pseudo_labels(dataset, root)
    assert "annotate" in raised.value.remedy


def test_another_format_and_none_at_all_are_said(dataset: Dataset, root: Path) -> None:
    (root / MANIFEST).write_text('{"format": 2, "classes": ["road", "car"], "samples": []}')
    with raises_code("artefact-mismatch", "2", "1"):
        with_pseudo_labels(dataset, root)
    with raises_code("file-damaged"):
        with_pseudo_labels(dataset, root / "nowhere")
