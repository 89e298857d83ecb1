"""A model: what it accepts, what it says, and that large images are cut without a trace."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.deploy.nets import CLASSES, PALETTE, model
from tests.errors import raises_code
from tutelage.data.images import read_image
from tutelage.deploy import large
from tutelage.deploy.decoded_image import DecodedImage, allowing
from tutelage.deploy.large import WHOLE_PIXELS, WINDOWED, column_blocks, label_image
from tutelage.deploy.model import load_model
from tutelage.evaluation.inference import predict_labels
from tutelage.evaluation.protocol import Protocol
from tutelage.nets.build import build
from tutelage.nets.settings import NetSettings
from tutelage.nets.storage import save_segmentor
from tutelage.runs.store import Artefact


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A smooth image in which every class has its places."""
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 12 + 2, width // 12 + 2, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


@pytest.fixture(scope="module")
def artefact(tmp_path_factory: pytest.TempPathFactory) -> Artefact:
    net = build(NetSettings(encoder="mobilenetv3_small_050", decoder="lraspp", width=16), 3, seed=0)
    artefact = Artefact(tmp_path_factory.mktemp("runs") / "student-0123456789ab", "0123456789ab")
    save_segmentor(net, artefact.net("student"), classes=CLASSES, palette=PALETTE)
    return artefact


# Loading


def test_a_net_from_its_file_and_from_its_folder(artefact: Artefact) -> None:
    image = picture(37, 53)
    one, other = load_model(artefact.net("student"), device="cpu"), load_model(str(artefact.folder), device="cpu")
    assert one.classes == CLASSES
    assert one.palette == PALETTE
    results = [each.predict(image, confidence=True) for each in (one, other)]
    np.testing.assert_array_equal(results[0].labels, results[1].labels)
    assert results[0].labels.shape == (37, 53)
    assert results[0].labels.dtype == np.uint8
    assert results[0].confidence is not None
    assert results[0].confidence.dtype == np.uint8
    assert one.predict(image).confidence is None
    labels, sure = predict_labels(one.net, image, Protocol(), "cpu", confidence=True)
    np.testing.assert_array_equal(results[0].labels, labels)
    np.testing.assert_array_equal(results[0].confidence, sure)


def test_precision_in_either_place(artefact: Artefact) -> None:
    image = picture(64, 64)
    by_name = load_model(artefact.folder, "cpu", precision="bf16")
    by_protocol = load_model(artefact.folder, "cpu", protocol=Protocol(precision="bf16", flip=True))
    assert by_name.predict(image).protocol.precision == "bf16"
    assert by_protocol.predict(image).protocol == Protocol(precision="bf16", flip=True)
    assert by_protocol.precision == by_name.precision == "bf16"
    with raises_code("invalid-value", "fp17"):
        load_model(artefact.folder, "cpu", precision="fp17")
    with raises_code("option-conflict"):
        load_model(artefact.folder, "cpu", precision="fp16", protocol=Protocol(precision="bf16"))


def test_what_cannot_be_loaded(artefact: Artefact, tmp_path: Path) -> None:
    with raises_code("file-missing"):
        load_model(tmp_path / "gone.safetensors")
    with raises_code("net-missing"):
        load_model(tmp_path)
    with raises_code("ambiguous-path") as caught:
        load_model(artefact.folder.parent)
    assert artefact.folder.name in caught.value.remedy
    nets = tmp_path / "adapted-000000000000" / "nets"
    nets.mkdir(parents=True)
    (nets / "critic.safetensors").touch()
    with raises_code("net-missing", "critic"):
        load_model(nets.parent)
    with raises_code("device-unavailable", "tpu"):
        load_model(artefact.folder, device="tpu")


# Inputs


def test_every_kind_of_image_is_seen_alike(tmp_path: Path) -> None:
    image = picture(30, 45)
    Image.fromarray(image).save(tmp_path / "a.png")
    used, _ = model()
    expected = used.predict(image).labels
    assert set(np.unique(expected)) == {0, 1, 2}
    for given in (tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(image), image[:, ::-1][:, ::-1]):
        np.testing.assert_array_equal(used.predict(given).labels, expected)
    opaque = Image.fromarray(image)
    opaque.putalpha(7)
    np.testing.assert_array_equal(used.predict(opaque).labels, expected)
    grey = image[..., 0]
    np.testing.assert_array_equal(used.predict(grey).labels, used.predict(np.repeat(grey[..., None], 3, 2)).labels)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I", "F"])
def test_windows_of_a_picture_are_those_of_the_image(mode: str, tmp_path: Path) -> None:
    colours = Image.fromarray(picture(21, 34))
    if mode in ("I;16", "I", "F"):
        deep = np.asarray(colours.convert("L")).astype(np.uint16) * 257
        image = Image.fromarray(deep if mode == "I;16" else deep.astype(np.int32 if mode == "I" else np.float32))
    else:
        image = colours.convert(mode)
    path = tmp_path / ("a.tif" if mode in ("CMYK", "YCbCr", "F", "I") else "a.png")
    image.save(path)
    expected, read = read_image(path), DecodedImage.read(path)
    assert read.shape == expected.shape
    assert read.size == expected.size
    np.testing.assert_array_equal(read[:, :], expected)
    np.testing.assert_array_equal(read[3:9, 5:40], expected[3:9, 5:40])
    part = read.columns(10, 30)
    assert part.shape == (21, 20, 3)
    np.testing.assert_array_equal(part[2:4, 3:9], expected[2:4, 13:19])
    np.testing.assert_array_equal(part[2:4, 3:99], expected[2:4, 13:30])


def test_a_file_is_turned_upright(tmp_path: Path) -> None:
    image = picture(20, 30)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(image).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    used, _ = model()
    labels = used.predict(tmp_path / "turned.jpg").labels
    assert labels.shape == (30, 20)
    np.testing.assert_array_equal(labels, used.predict(read_image(tmp_path / "turned.jpg")).labels)
    with Image.open(tmp_path / "turned.jpg") as opened:  # its user sees it lying down
        assert used.predict(opened).labels.shape == (20, 30)


@pytest.mark.parametrize(
    ("given", "code", "fact"),
    [
        (np.zeros((4, 4, 3)), "image-array", "multiply by 255"),
        (np.zeros((4, 4), dtype=np.int64), "image-array", "uint8"),
        (np.zeros((4, 4, 4), dtype=np.uint8), "image-array", "alpha"),
        (np.zeros((4, 4, 1), dtype=np.uint8), "image-array", "image[..., 0]"),
        (np.zeros((3, 4, 5), dtype=np.uint8), "image-array", "transpose(1, 2, 0)"),
        (np.zeros((1, 4, 4, 3), dtype=np.uint8), "image-array", "(1, 4, 4, 3)"),
        (np.zeros(4, dtype=np.uint8), "image-array", "(4,)"),
        (np.zeros((0, 4, 3), dtype=np.uint8), "image-array", "(0, 4, 3)"),
        ([[1, 2], [3, 4]], "image-array", "list"),
        (torch.zeros(3, 4, 4), "image-array", "Tensor"),
    ],
)
def test_what_is_no_image(given: object, code: str, fact: str) -> None:
    with raises_code(code, fact):
        model()[0].predict(given)  # type: ignore[arg-type]


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"nothing")
    for name, code in (("a.jpg", "image-unreadable"), ("gone.jpg", "file-missing")):
        with raises_code(code, name):
            model()[0].predict(tmp_path / name)


def test_pillows_limit_is_lifted_and_put_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    image = picture(20, 30)
    Image.fromarray(image).save(tmp_path / "a.png")
    with raises_code("image-large"):
        read_image(tmp_path / "a.png")
    assert model()[0].predict(tmp_path / "a.png").labels.shape == (20, 30)
    assert Image.MAX_IMAGE_PIXELS == 50
    with allowing(590), raises_code("image-large"):
        DecodedImage.read(tmp_path / "a.png")
    with allowing(100), allowing(600), allowing(200):
        DecodedImage.read(tmp_path / "a.png")
    assert Image.MAX_IMAGE_PIXELS == 50


# Results


def test_pictures_of_a_result() -> None:
    image = picture(20, 30)
    before = image.copy()
    result = model()[0].predict(image)
    coloured = result.coloured()
    assert coloured.mode == "P"
    np.testing.assert_array_equal(np.asarray(coloured), result.labels)
    colours = np.array(PALETTE)[result.labels]
    np.testing.assert_array_equal(np.asarray(coloured.convert("RGB")), colours)
    for alpha in (0.0, 0.3, 0.5, 1.0):
        overlay = np.asarray(result.overlay(image, alpha)).astype(int)
        assert np.abs(overlay - ((1 - alpha) * image + alpha * colours)).max() <= 1
    given = Image.fromarray(image)
    result.overlay(given)
    np.testing.assert_array_equal(np.asarray(given), before)
    np.testing.assert_array_equal(image, before)
    assert result.overlay(image[..., 0]).mode == "RGB"
    with raises_code("size-mismatch", "29x20"):
        result.overlay(image[:, :-1])
    with raises_code("invalid-value", "alpha"):
        result.overlay(image, 50)


# Large images


def test_large_images_are_cut_unless_a_protocol_is_given() -> None:
    used, _ = model()
    assert used.protocol_for(2048, 2048).kind == "whole"
    assert used.protocol_for(2049, 2048) == WINDOWED
    assert model(Protocol())[0].protocol_for(10_000, 10_000) == Protocol()
    assert WHOLE_PIXELS == 2048 * 2048


SLIDING = Protocol(kind="sliding", window=(24, 32), overlap=0.25, weighting="gaussian")


@pytest.mark.parametrize(
    ("size", "protocol"),
    [
        ((50, 301), SLIDING),
        ((20, 300), SLIDING),  # padded above and below
        ((61, 283), SLIDING.model_copy(update={"weighting": "uniform", "overlap": 0.8})),
        ((61, 283), SLIDING.model_copy(update={"overlap": 0.0})),
        ((24, 129), SLIDING.model_copy(update={"blend": "logits"})),
    ],
)
def test_blocks_of_columns_leave_no_trace(
    size: tuple[int, int], protocol: Protocol, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = picture(*size)
    used, net = model()
    expected = predict_labels(net, image, protocol, "cpu", confidence=True)
    whole_calls = len(net.calls)
    net.calls.clear()
    monkeypatch.setattr(large.column_blocks, "__defaults__", (1,))
    blocks = column_blocks(*size, protocol, 3)
    assert len(blocks) > 1
    assert blocks[0].first == 0
    assert blocks[-1].last == size[1]
    assert all(before.last == after.first for before, after in itertools.pairwise(blocks))
    for given in (image, DecodedImage(Image.fromarray(image))):
        labels, sure = label_image(used.net, given, protocol, used.device, 3, confidence=True)
        np.testing.assert_array_equal(labels, expected[0])
        np.testing.assert_array_equal(sure, expected[1])
    assert {call[-2:] for call in net.calls} == {protocol.window}
    assert whole_calls <= len(net.calls) // 2 <= 1.4 * whole_calls


@pytest.mark.parametrize(
    "update", [{"flip": True}, {"scales": (1.0, 0.5)}, {"border": "truncated"}, {"size": (40, 40)}, {"multiple": 8}]
)
def test_what_cannot_be_cut_is_not(update: dict[str, object]) -> None:
    protocol = SLIDING.model_copy(update=update)
    assert len(column_blocks(50, 301, protocol, 3, limit=1)) == 1
    assert len(column_blocks(50, 301, Protocol(), 3, limit=1)) == 1
    assert len(column_blocks(50, 30, SLIDING, 3, limit=1)) == 1


def test_the_scores_of_a_block_are_bounded() -> None:
    for classes, width in ((11, 30_000), (19, 10_000), (150, 60_000)):
        blocks = column_blocks(10_000, width, WINDOWED, classes)
        widest = max(block.right - block.left for block in blocks)
        least = 768 + 3 * 576
        assert widest <= max(least, (256 << 20) / (4 * classes * 768))
        assert sum(block.right - block.left for block in blocks) <= 1.5 * width


def test_a_large_image_in_windows_agrees_with_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tutelage.deploy.model.WHOLE_PIXELS", 3000)
    monkeypatch.setattr("tutelage.deploy.model.WINDOWED", SLIDING)
    image = picture(90, 110)
    used, net = model()
    result = used.predict(image)
    assert result.protocol.kind == "sliding"
    assert {call[-2:] for call in net.calls} == {(24, 32)}
    whole = model(Protocol())[0].predict(image)
    assert (result.labels == whole.labels).mean() > 0.95
