"""A net's file: round trips, equal bytes, and every way of being damaged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.errors import raises_code
from tutelage.nets.build import build
from tutelage.nets.segmentor import Segmentor
from tutelage.nets.settings import NetSettings
from tutelage.nets.storage import check_classes, load_segmentor, read_metadata, save_segmentor

SETTINGS = NetSettings(
    encoder="mobilenetv3_small_050", decoder="lraspp", width=32, auxiliary=True, normalisation="half"
)
CLASSES = ("road", "vélo", "sky")
PALETTE = ((128, 64, 128), (0, 0, 255), (70, 130, 180))


@pytest.fixture(scope="module")
def net() -> Segmentor:
    return build(SETTINGS, 3, seed=0)


@pytest.fixture
def path(net: Segmentor, tmp_path: Path) -> Path:
    save_segmentor(net, tmp_path / "net.safetensors", classes=CLASSES, palette=PALETTE, extra={"miou": 0.5, "step": 10})
    return tmp_path / "net.safetensors"


def test_a_net_comes_back_as_it_was(net: Segmentor, path: Path) -> None:
    state = torch.get_rng_state()
    loaded, metadata = load_segmentor(path)
    assert torch.equal(torch.get_rng_state(), state)
    assert not loaded.training
    images = torch.rand(1, 3, 65, 97)
    with torch.no_grad():
        assert torch.equal(loaded(images).logits, net.eval()(images).logits)
    assert loaded.settings == SETTINGS
    assert metadata.classes == CLASSES
    assert metadata.palette == PALETTE
    assert metadata.mean == metadata.std == (0.5, 0.5, 0.5)
    assert metadata.extra == {"miou": 0.5, "step": 10}
    assert read_metadata(path) == metadata


def test_equal_content_gives_equal_bytes(net: Segmentor, path: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.safetensors"
    save_segmentor(
        net, again, classes=list(CLASSES), palette=[list(c) for c in PALETTE], extra={"step": 10, "miou": 0.5}
    )
    assert again.read_bytes() == path.read_bytes()
    loaded, metadata = load_segmentor(path)
    save_segmentor(loaded, again, classes=metadata.classes, palette=metadata.palette, extra=metadata.extra)
    assert again.read_bytes() == path.read_bytes()
    assert sorted(tmp_path.iterdir()) == [again, path]


def test_where_the_weights_came_from_is_not_asked_again(tmp_path: Path) -> None:
    source = tmp_path / "first.pth"
    torch.save(build(SETTINGS, 3, seed=1).state_dict(), source)
    net = build(SETTINGS.model_copy(update={"weights": str(source)}), 3, seed=0)
    save_segmentor(net, tmp_path / "net.safetensors", classes=CLASSES, palette=PALETTE)
    source.unlink()
    loaded, metadata = load_segmentor(tmp_path / "net.safetensors")
    assert metadata.net.weights is None
    assert torch.equal(loaded.classifier.weight, net.classifier.weight)


def test_names_and_colours_must_match_the_net(net: Segmentor, tmp_path: Path) -> None:
    with raises_code("class-palette", "3 classes", "2 names"):
        save_segmentor(net, tmp_path / "net.safetensors", classes=CLASSES[:2], palette=PALETTE)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_truncated_files_are_named(path: Path, share: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with raises_code("file-damaged"):
        load_segmentor(path)


def test_a_flipped_bit_is_found(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1000] ^= 4
    path.write_bytes(content)
    with raises_code("file-damaged", "checksum"):
        load_segmentor(path)


def test_other_files_are_named(net: Segmentor, tmp_path: Path) -> None:
    with raises_code("file-missing"):
        load_segmentor(tmp_path / "nothing.safetensors")
    torch.save(net.state_dict(), tmp_path / "net.pth")
    with raises_code("file-damaged", "weights:"):
        load_segmentor(tmp_path / "net.pth")
    save_file(net.state_dict(), tmp_path / "bare.safetensors")
    with raises_code("net-undescribed"):
        load_segmentor(tmp_path / "bare.safetensors")


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"format": 99}, "newer-format"),
        ({"net": {"encoder": "resnet18", "decoder": "lraspp", "temper": 1}}, "file-damaged"),
        ({"net": {"encoder": "lcnet_050", "decoder": "lraspp"}}, "weights-mismatch"),
    ],
)
def test_descriptions_that_do_not_fit_are_named(
    path: Path, net: Segmentor, change: dict[str, object], code: str
) -> None:
    content = {**read_metadata(path).model_dump(mode="json"), **change}
    save_file(net.state_dict(), path, metadata={"tutelage": json.dumps(content)})
    with raises_code(code):
        load_segmentor(path)


def test_classes_are_compared_by_name_and_order(path: Path) -> None:
    metadata = read_metadata(path)
    check_classes(metadata, CLASSES, "camvid")
    with raises_code("other-classes", "0 on: road and sky"):
        check_classes(metadata, CLASSES[::-1], "camvid")
    with raises_code("other-classes"):
        check_classes(metadata, ("road", "vélo", "tree"), "camvid")
