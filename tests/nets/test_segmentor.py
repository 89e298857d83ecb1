"""The segmentor: shapes at every size, the classifier's place, gradients, export, precision and taps."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from tests.errors import raises_code
from tutelage.nets.build import build
from tutelage.nets.segmentor import Features, Prediction, Segmentor
from tutelage.nets.settings import NetSettings

CLASSES = 5

# Every decoder once on a convolutional encoder, and those that take one on transformers and odd kinds.
NETS = {
    "deeplabv2": NetSettings(encoder="resnet18", decoder="deeplabv2"),
    "deeplabv2_reduced": NetSettings(encoder="mobilenetv3_small_050", decoder="deeplabv2_reduced"),
    "deeplabv3": NetSettings(encoder="mobilenetv3_small_050", decoder="deeplabv3", width=32),
    "deeplabv3plus": NetSettings(encoder="resnet18", decoder="deeplabv3plus", width=32),
    "deeplabv3plus-stride8": NetSettings(
        encoder="mobilenetv3_small_050", decoder="deeplabv3plus", width=32, output_stride=8
    ),
    "pspnet": NetSettings(encoder="mobilenetv3_small_050", decoder="pspnet", width=32),
    "fpn": NetSettings(encoder="tf_efficientnet_lite0", decoder="fpn", width=64),
    "upernet": NetSettings(encoder="convnext_atto", decoder="upernet", width=32),
    "segformer": NetSettings(encoder="mit_b0", decoder="segformer", width=32),
    "daformer": NetSettings(encoder="mobilenetv3_small_050", decoder="daformer", width=32),
    "segformer-pvt": NetSettings(encoder="pvt_v2_b0", decoder="segformer", width=32),
    "unet": NetSettings(encoder="mobilenetv3_small_050", decoder="unet", width=64),
    "unet-stride16": NetSettings(encoder="mobilenetv3_small_050", decoder="unet", width=64, output_stride=16),
    "lraspp": NetSettings(encoder="mobilenetv3_small_100", decoder="lraspp"),
    "lraspp-uneven": NetSettings(encoder="mobilevitv2_050", decoder="lraspp", output_stride=32),
    "dpt": NetSettings(encoder="vit_tiny_patch16_224", decoder="dpt", width=32),
    "dual_frequency": NetSettings(encoder="mobilenetv3_small_050", decoder="dual_frequency", width=32),
    "dual_frequency-tiny_vit": NetSettings(encoder="tiny_vit_5m_224", decoder="dual_frequency", width=32),
    "dual_frequency-vit": NetSettings(
        encoder="deit_tiny_distilled_patch16_224", decoder="dual_frequency", width=32, frequency={"centre": "published"}
    ),
}

SMALL = NETS["lraspp"]

DROPOUT = {"deeplabv3plus": 0.5, "fpn": 0.2, "dpt": 0.1, "dual_frequency": 0.1, "daformer": 0.1}


def _net(name: str, **changes: object) -> Segmentor:
    return build(NETS[name].model_copy(update=changes), CLASSES, seed=0)


def _images(height: int = 64, width: int = 96, batch: int = 2) -> torch.Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", NETS)
def test_every_map_covers_the_image_at_its_stride(name: str) -> None:
    net = _net(name, auxiliary=True).eval()
    for height, width in ((64, 96), (65, 97)):
        with torch.no_grad():
            prediction = net(_images(height, width, batch=1))

        def grid(stride: int, height: int = height, width: int = width) -> tuple[int, int]:
            return math.ceil(height / stride), math.ceil(width / stride)

        assert prediction.logits.shape == (1, CLASSES, *grid(net.stride))
        assert prediction.embedding.shape == (1, net.embedding_channels, *grid(net.stride))
        assert prediction.auxiliary.shape == (1, CLASSES, *grid(net.feature_strides[-2]))
        assert [level.shape for level in prediction.features] == [
            (1, channels, *grid(stride))
            for channels, stride in zip(net.feature_channels, net.feature_strides, strict=True)
        ]
        torch.testing.assert_close(net.classifier(prediction.embedding), prediction.logits)


@pytest.mark.parametrize("name", NETS)
def test_gradients_reach_every_parameter(name: str) -> None:
    net = _net(name, auxiliary=True).train()
    prediction = net(_images(65, 97))
    (prediction.logits.square().mean() + prediction.auxiliary.square().mean()).backward()
    assert [name for name, parameter in net.named_parameters() if parameter.grad is None] == []


def test_forward_is_encode_then_decode_and_features_can_be_perturbed() -> None:
    net = _net("deeplabv3plus").eval()
    images = _images(65, 97)
    with torch.no_grad():
        features = net.encode(images)
        assert isinstance(features, Features)
        assert features.size == (65, 97)
        torch.testing.assert_close(net.decode(features).logits, net(images).logits)
        halved = features._replace(levels=tuple(level * 0.5 for level in features.levels))
        assert not torch.allclose(net.decode(halved).logits, net(images).logits)


def test_filling_up_is_with_the_mean_colour() -> None:
    net = _net("deeplabv3plus").eval()
    images = _images(50, 70)
    filled = net.mean.expand(2, 3, 64, 80).clone()
    filled[..., :50, :70] = images
    with torch.no_grad():
        torch.testing.assert_close(net(images).logits, net(filled).logits[..., :13, :18])


def test_the_net_normalises_as_the_settings_say() -> None:
    def statistics(normalisation: str) -> tuple[list[float], list[float]]:
        net = build(SMALL.model_copy(update={"normalisation": normalisation, "encoder": "tf_efficientnet_lite0"}), 2)
        return net.mean.flatten().tolist(), net.std.flatten().tolist()

    assert statistics("encoder") == ([0.5] * 3, [0.5] * 3)
    assert statistics("half") == ([0.5] * 3, [0.5] * 3)
    assert statistics("none") == ([0.0] * 3, [1.0] * 3)
    assert statistics("imagenet")[0] == pytest.approx([0.485, 0.456, 0.406])


def test_settings_reach_the_layers() -> None:
    net = build(
        NetSettings(
            encoder="mit_b0", decoder="segformer", width=32, dropout=0.25, drop_path=0.2, batch_norm_momentum=0.01
        ),
        CLASSES,
        seed=0,
    )
    assert {m.momentum for m in net.modules() if isinstance(m, nn.BatchNorm2d)} == {0.01}
    assert [m.p for m in net.decoder.modules() if isinstance(m, nn.Dropout2d)] == [0.25]
    rates = [m.drop_prob for m in net.modules() if type(m).__name__ == "DropPath"]
    assert max(rates) == pytest.approx(0.2)
    plain = build(NetSettings(encoder="mit_b0", decoder="segformer", width=32), CLASSES, seed=0)
    assert {m.drop_prob for m in plain.modules() if type(m).__name__ == "DropPath"} == {0.0}
    timm_net = build(SMALL.model_copy(update={"drop_path": 0.3}), CLASSES, seed=0)
    assert any(getattr(m, "drop_prob", 0) > 0.2 for m in timm_net.modules())
    with raises_code("encoder-unsupported"):
        build(NetSettings(encoder="vgg11_bn", decoder="fpn", drop_path=0.1), 2)


@pytest.mark.parametrize(("decoder", "share"), DROPOUT.items())
def test_dropout_is_the_decoders_own_unless_set(decoder: str, share: float) -> None:
    def shares(**changes: object) -> set[float]:
        layers = _net(decoder, **changes).decoder.modules()
        return {layer.p for layer in layers if isinstance(layer, (nn.Dropout, nn.Dropout2d))}

    assert shares() == {share}
    assert shares(dropout=0.3) == {0.3}


def test_a_seed_fixes_the_weights_and_leaves_global_generators_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = build(SMALL, CLASSES, seed=3).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(7)
    second = build(SMALL, CLASSES, seed=3).state_dict()
    other = build(SMALL, CLASSES, seed=4).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["classifier.weight"], other["classifier.weight"])
    assert not torch.equal(first["encoder.conv_stem.weight"], other["encoder.conv_stem.weight"])


@pytest.mark.parametrize("name", ["deeplabv3plus", "lraspp", "segformer", "dpt", "dual_frequency-vit"])
def test_exports_for_one_size(name: str) -> None:
    net = _net(name).eval()
    images = _images(65, 97, batch=1)
    with torch.no_grad():
        exported = torch.export.export(net, (images,), strict=False).module()
        torch.testing.assert_close(exported(images).logits, net(images).logits)


def test_exports_for_any_size() -> None:
    net = _net("lraspp").eval()
    sides = torch.export.Dim.AUTO
    with torch.no_grad():
        program = torch.export.export(net, (_images(65, 97),), strict=False, dynamic_shapes=({2: sides, 3: sides},))
        exported = program.module()
        for height, width in ((64, 96), (70, 128), (33, 65)):
            images = _images(height, width)
            torch.testing.assert_close(exported(images).logits, net(images).logits)


def test_bf16_gives_float32_logits_close_to_fp32() -> None:
    net = _net("lraspp", auxiliary=True).eval()
    images = _images()
    with torch.no_grad():
        exact = net(images)
        net.precision = "bf16"
        rounded = net(images)
    assert rounded.logits.dtype == rounded.auxiliary.dtype == torch.float32
    assert rounded.embedding.dtype == torch.bfloat16
    scale = exact.logits.abs().max().item()
    assert 0 < (rounded.logits - exact.logits).abs().max().item() < 0.05 * scale
    with raises_code("invalid-value", "fp32, bf16 or fp16"):
        net.precision = "fp8"  # type: ignore[assignment]


def test_taps_record_named_submodules_in_either_half() -> None:
    net = build(NETS["deeplabv3plus"], CLASSES, seed=0, taps=("encoder.layer4", "decoder.body.aspp")).eval()
    images = _images()
    with torch.no_grad():
        prediction = net(images)
        assert set(prediction.taps) == {"encoder.layer4", "decoder.body.aspp"}
        torch.testing.assert_close(prediction.taps["encoder.layer4"], prediction.features[-1])
        features = net.encode(images)
        assert all(set(net.decode(features).taps) == set(prediction.taps) for _ in range(2))
    assert net._recorded == {}
    net.tap(())
    assert net(images).taps == {}


def test_a_copy_of_a_tapped_net_keeps_its_taps_to_itself() -> None:
    net = build(SMALL, CLASSES, seed=0, taps=("decoder",))
    twin = copy.deepcopy(net).eval()
    assert set(twin(_images()).taps) == {"decoder"}
    assert net._recorded == {}
    twin.tap(())
    assert set(net.eval()(_images()).taps) == {"decoder"}


def test_taps_that_cannot_be_name_the_remedy() -> None:
    net = _net("deeplabv3plus")
    with raises_code("invalid-tap", "encoder.layer4"):
        net.tap(["encoder.layer5"])
    net.tap(["encoder"])
    with raises_code("invalid-tap"):
        net(_images())
    net.tap(["classifier"])
    assert set(net(_images()).taps) == {"classifier"}


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("training", [False, True])
def test_compiles_without_a_break(precision: str, training: bool) -> None:
    torch._dynamo.reset()
    net = build(SMALL, CLASSES, seed=0, taps=("decoder",)).train(training)
    net.precision = precision  # type: ignore[assignment]
    images = _images(65, 97)
    compiled = torch.compile(net, fullgraph=True)(images)
    assert isinstance(compiled, Prediction)
    assert set(compiled.taps) == {"decoder"}
    tolerance = 1e-3 if precision == "fp32" else 0.2
    torch.testing.assert_close(compiled.logits, net(images).logits, atol=tolerance, rtol=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETS)
def test_traces_without_a_break(name: str) -> None:
    torch._dynamo.reset()
    net = _net(name, auxiliary=True).eval()
    images = _images(65, 97)
    with torch.no_grad():
        traced = torch.compile(net, fullgraph=True, backend="eager")(images)
        torch.testing.assert_close(traced.logits, net(images).logits)
