"""SimCLRv2's ResNets: selective kernels, the layout without them, and files under their own names."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tutelage.nets.build import build
from tutelage.nets.published.simclr import (
    CHANNELS,
    NAMES,
    Bottleneck,
    SelectiveKernel,
    SimCLRResNet,
    is_simclr_file,
    renamed,
)  # fmt: skip
from tutelage.nets.segmentor import Segmentor
from tutelage.nets.settings import NetSettings

import timm  # isort: skip
from tests.errors import raises_code

PLAIN, SELECTIVE = "simclrv2_r50_1x_sk0", "simclrv2_r50_1x_sk1"


def net(encoder: str, weights: Path | None = None, decoder: str = "segformer", **changes: object) -> Segmentor:
    given = {"encoder": encoder, "decoder": decoder, "width": 16, "weights": weights and str(weights), **changes}
    return build(NetSettings.model_validate(given), 3, seed=0).eval()


def file_names(encoder: SimCLRResNet) -> dict[str, Tensor]:
    """The encoder's tensors in the order and under the names of a converted file, its classifier last."""
    tensors: dict[str, Tensor] = {}
    own = encoder.state_dict()

    def put(theirs: str, ours: str) -> None:
        for leaf in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            if f"{ours}.{leaf}" in own:
                tensors[f"{theirs}.{leaf}"] = own[f"{ours}.{leaf}"].clone()

    stem = 3 if encoder.selective else 1
    for number in range(stem):
        put(f"net.0.{2 * number}", f"conv{number + 1}")
        put(f"net.0.{2 * number + 1}.0", f"bn{number + 1}")
    for stage in range(1, 5):
        for index, block in enumerate(encoder.get_submodule(f"layer{stage}")):  # type: ignore[arg-type]
            theirs, ours = f"net.{stage}.blocks.{index}", f"layer{stage}.{index}"
            if block.downsample is not None:
                put(f"{theirs}.projection.shortcut" + (".2" if encoder.selective else ""), f"{ours}.downsample.0")
                put(f"{theirs}.projection.bn.0", f"{ours}.downsample.1")
            put(f"{theirs}.net.0", f"{ours}.conv1")
            put(f"{theirs}.net.1.0", f"{ours}.bn1")
            last = 3 if encoder.selective else 4
            if encoder.selective:
                put(f"{theirs}.net.2.main_conv.0", f"{ours}.select.conv")
                put(f"{theirs}.net.2.main_conv.1.0", f"{ours}.select.bn")
                put(f"{theirs}.net.2.mixing_conv.0", f"{ours}.select.squeeze")
                put(f"{theirs}.net.2.mixing_conv.1.0", f"{ours}.select.squeeze_bn")
                put(f"{theirs}.net.2.mixing_conv.2", f"{ours}.select.excite")
            else:
                put(f"{theirs}.net.2", f"{ours}.conv2")
                put(f"{theirs}.net.3.0", f"{ours}.bn2")
            put(f"{theirs}.net.{last}", f"{ours}.conv3")
            put(f"{theirs}.net.{last + 1}.0", f"{ours}.bn3")
    tensors["fc.weight"], tensors["fc.bias"] = torch.zeros(1000, 2048), torch.zeros(1000)
    return tensors


def saved(path: Path, tensors: dict[str, Tensor]) -> Path:
    """As the converter saves them: the net beside its contrastive head."""
    torch.save({"resnet": tensors, "head": {"layers.0.weight": torch.zeros(8, 8)}}, path)
    return path


def other(name: str) -> SimCLRResNet:
    """An encoder with weights and statistics of its own."""
    torch.manual_seed(7)
    made = SimCLRResNet(name)
    for layer in made.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.0)
            nn.init.uniform_(layer.running_mean, -0.1, 0.1)  # type: ignore[arg-type]
            nn.init.uniform_(layer.running_var, 0.9, 1.1)  # type: ignore[arg-type]
    return made.eval()


def test_without_selective_kernels_it_is_torchvisions_layout() -> None:
    ours, timms = other(PLAIN), timm.create_model("resnet50", num_classes=0, zero_init_last=False).eval()
    timms.load_state_dict(ours.state_dict())
    images = torch.rand(1, 3, 70, 90)
    with torch.no_grad():
        torch.testing.assert_close(ours(images)[-1], timms.forward_features(images))


@pytest.mark.parametrize("stride", [8, 16, 32])
def test_dilated_stages_are_timms(stride: int) -> None:
    ours = SimCLRResNet(PLAIN, stride)
    timms = timm.create_model("resnet50", num_classes=0, output_stride=stride)
    for name, layer in timms.named_modules():
        if isinstance(layer, nn.Conv2d) and name.startswith("layer"):
            mine = ours.get_submodule(name)
            assert (mine.stride, mine.dilation, mine.padding) == (layer.stride, layer.dilation, layer.padding), name


def test_a_selective_kernel_weighs_its_two_maps() -> None:
    unit = SelectiveKernel(4, 6, stride=2).eval()
    x = torch.rand(2, 4, 9, 12)
    with torch.no_grad():
        both = torch.relu(unit.bn(unit.conv(x)))
        first, second = both[:, :6], both[:, 6:]
        scores = unit.excite(torch.relu(unit.squeeze_bn(unit.squeeze((first + second).mean((2, 3), keepdim=True)))))
        share = torch.stack(scores.chunk(2, 1)).softmax(0)
        torch.testing.assert_close(unit(x), share[0] * first + share[1] * second)
    assert unit.squeeze.out_channels == 32
    assert SelectiveKernel(1024, 1024, 1).squeeze.out_channels == 64


@pytest.mark.parametrize(("stride", "first"), [(1, True), (2, True), (1, False)])
def test_a_block_of_any_size(stride: int, first: bool) -> None:
    inner = 8 if first else 16
    for selective in (False, True):
        block = Bottleneck(inner, 4, stride, 1, selective, first).eval()
        for height, width in ((8, 12), (7, 13)):
            found = block(torch.rand(1, inner, height, width))
            assert found.shape == (1, 16, -(-height // stride), -(-width // stride))


@pytest.mark.parametrize("name", [PLAIN, SELECTIVE])
def test_as_a_segmentors_encoder(name: str) -> None:
    model = net(name)
    with torch.no_grad():
        prediction = model(torch.rand(1, 3, 65, 97))
    assert [level.shape[1:] for level in prediction.features] == [
        (channels, -(-65 // stride), -(-97 // stride))
        for channels, stride in zip(CHANNELS, (4, 8, 16, 32), strict=True)
    ]
    assert prediction.logits.shape == (1, 3, 17, 25)
    assert prediction.features[-1].min() >= 0
    assert not model.mean.any(), "images in 0..1 are not normalised"
    assert (model.std == 1).all()


def test_deeplab_on_it_and_what_is_refused() -> None:
    model = net(SELECTIVE, decoder="deeplabv3plus_bismap")
    with torch.no_grad():
        prediction = model(torch.rand(1, 3, 64, 96))
    assert prediction.features[-1].shape[-2:] == (4, 6)
    assert prediction.logits.shape == (1, 3, 16, 24)
    with pytest.raises(ValueError, match=r"takes decoder deeplabv2, .*deeplabv3plus_bismap"):
        net(SELECTIVE, decoder="unet")
    with pytest.raises(ValueError, match="no drop path"):
        net(SELECTIVE, drop_path=0.1)
    with raises_code("unknown-encoder", "simclrv2_r152_1x_sk1"):
        net("simclrv2_r152_2x_sk1")


@pytest.mark.parametrize("name", [PLAIN, SELECTIVE])
def test_converted_files_fill_their_encoder(name: str, tmp_path: Path) -> None:
    source = other(name)
    tensors = file_names(source)
    assert is_simclr_file(tensors)
    assert {key for key in renamed(tensors) if not key.startswith("fc.")} == set(source.state_dict())
    model = net(name, saved(tmp_path / "r50_1x.pth", tensors))
    assert all(torch.equal(value, source.state_dict()[key]) for key, value in model.encoder.state_dict().items())
    assert model.load_report is not None
    assert model.load_report.fraction == 1.0
    assert model.load_report.unexpected == ["fc.weight", "fc.bias"]


def test_a_plain_file_fills_any_resnet_of_its_depth(tmp_path: Path) -> None:
    """Among them the multi-grid one of BiSMAP's second and third training."""
    source = other(PLAIN)
    path = saved(tmp_path / "r50_1x_sk0.pth", file_names(source))
    model = net("resnet50_multigrid", path, decoder="deeplabv3plus_bismap")
    assert all(torch.equal(value, source.state_dict()[key]) for key, value in model.encoder.state_dict().items())


@pytest.mark.parametrize("missing", ["net.4.blocks.2.net.4.weight", "net.1.blocks.0.projection.bn.0.running_var"])
def test_a_file_that_lacks_a_tensor_is_refused(missing: str, tmp_path: Path) -> None:
    tensors = file_names(other(PLAIN))
    del tensors[missing]
    with raises_code("weights-mismatch") as refused:
        net(PLAIN, saved(tmp_path / "part.pth", tensors))
    own = renamed({missing: torch.zeros(1)})
    assert next(iter(own)) in str(refused.value)


def test_files_of_another_net_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "r50_1x_sk1.pth", file_names(other(SELECTIVE)))
    with raises_code("weights-mismatch"):
        net("resnet50_multigrid", path, decoder="deeplabv3plus_bismap")
    with raises_code("weights-mismatch", "net.9.weight"):
        renamed({"net.9.weight": torch.zeros(1)})
    with raises_code("weights-unavailable"):
        build(NetSettings(encoder=SELECTIVE, decoder="segformer", weights="hub"), 3, seed=0)


def test_sizes_are_those_of_the_papers_nets() -> None:
    """Millions of parameters without the classifier; with it the paper's table has 24, 35, 43, 65, 58 and 89."""
    sizes = {}
    for name in NAMES:
        with torch.device("meta"):
            sizes[name] = sum(parameter.numel() for parameter in SimCLRResNet(name).parameters()) / 1e6
    published = {
        "r50_1x_sk0": 24,
        "r50_1x_sk1": 35,
        "r101_1x_sk0": 43,
        "r101_1x_sk1": 65,
        "r152_1x_sk0": 58,
        "r152_1x_sk1": 89,
    }
    for name, size in published.items():
        assert sizes[f"simclrv2_{name}"] == pytest.approx(size, abs=1)
