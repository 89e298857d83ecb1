"""The dual-frequency decoder: bands, gates, the neck, settings, and the net around it."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from tests.errors import raises_code
from tutelage.nets.build import build
from tutelage.nets.cost import flops, parameters
from tutelage.nets.encoders import find_encoder
from tutelage.nets.frequency import (
    NECK_SCALES,
    Band,
    DualFrequencyDecoder,
    FrequencyChannelAttention,
    MultiLevelNeck,
    band_mean,
)
from tutelage.nets.segmentor import Segmentor
from tutelage.nets.settings import Centre, FrequencySettings, NetSettings
from tutelage.nets.storage import load_segmentor, save_segmentor

BANDS: tuple[Band, ...] = ("low", "high")
SIZES = [(8, 12), (9, 12), (8, 11), (7, 5), (1, 6), (2, 2)]


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# Bands


def expected_mean(
    x: torch.Tensor, band: Band, centre: Centre = "centred", cutoff: tuple[float, float] = (3.0, 3.0)
) -> np.ndarray:
    """Section 2.3 of the specification, written out in double precision with shifted spectra."""
    peaks = [side // 2 if centre == "centred" else (side - 1) // 2 for side in x.shape[2:]]
    rows, columns = (
        (np.arange(side) - peak) / bins for side, peak, bins in zip(x.shape[2:], peaks, cutoff, strict=True)
    )
    low = np.exp(-(rows[:, None] ** 2 + columns**2) / 2)
    spectrum = np.fft.fftshift(np.fft.fft2(x.double().numpy()), axes=(-2, -1)) * (low if band == "low" else 1 - low)
    return np.abs(np.fft.ifft2(np.fft.ifftshift(spectrum, axes=(-2, -1)))).mean((2, 3))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("centre", ["centred", "published"])
@pytest.mark.parametrize("band", BANDS)
def test_a_band_is_the_full_spectrum_times_the_mask(size: tuple[int, int], centre: Centre, band: Band) -> None:
    x = draw(2, 3, *size)
    ours = band_mean(x, band, centre=centre, cutoff=3.0)
    np.testing.assert_allclose(ours.numpy(), expected_mean(x, band, centre), atol=2e-6)


def test_the_published_centre_is_the_zero_frequency_on_odd_sides_only() -> None:
    for size in SIZES:
        x = draw(1, 1, *size)
        same = torch.allclose(band_mean(x, "low", centre="published", cutoff=1.0), band_mean(x, "low", cutoff=1.0))
        assert same == all(side % 2 for side in size)
    flat = torch.ones(1, 1, 8, 8)
    assert band_mean(flat, "high", cutoff=2.0) < 1e-6
    assert band_mean(flat, "high", centre="published", cutoff=2.0) > 0.1


@pytest.mark.parametrize("size", [(32, 32), (16, 64)])
def test_a_relative_cutoff_is_a_share_of_each_side(size: tuple[int, int]) -> None:
    x, bound = draw(1, 2, *size), FrequencySettings(relative=True).bound
    ours = band_mean(x, "low", cutoff=bound, relative=True)
    bins = (bound * size[0] / 2, bound * size[1] / 2)
    np.testing.assert_allclose(ours.numpy(), expected_mean(x, "low", cutoff=bins), atol=2e-6)


@pytest.mark.parametrize("centre", ["centred", "published"])
def test_gradients_of_a_band_are_right(centre: Centre) -> None:
    x = draw(1, 2, 4, 5).double().requires_grad_()
    for band in BANDS:
        assert torch.autograd.gradcheck(lambda x, band=band: band_mean(x, band, centre=centre, cutoff=1.0), x)
        assert torch.autograd.gradgradcheck(lambda x, band=band: band_mean(x, band, centre=centre, cutoff=1.0), x)


@pytest.mark.parametrize("centre", ["centred", "published"])
def test_an_empty_map_gives_zeros_and_finite_gradients(centre: Centre) -> None:
    x = torch.zeros(1, 2, 6, 6, requires_grad=True)
    mean = band_mean(x, "high", centre=centre)
    mean.sum().backward()
    assert not mean.any()
    assert torch.isfinite(x.grad).all()


# Gates


def test_gates_are_computed_in_float32_under_autocast() -> None:
    gate = FrequencyChannelAttention(6, 4, "high")
    x = draw(2, 6, 8, 8)
    exact = gate.gate(x.bfloat16().float())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(gate.gate(x.bfloat16()), exact)
        assert gate(x.bfloat16()).dtype == torch.bfloat16
    assert gate.bfloat16()(x.bfloat16()).dtype == torch.bfloat16


def test_a_gate_scales_channels_and_nothing_else() -> None:
    block, x = FrequencyChannelAttention(4, 3, "low"), draw(2, 4, 6, 8)
    weight = block.gate(x)
    assert weight.shape == (2, 4, 1, 1)
    torch.testing.assert_close(block(x), block.proj((1 + weight) * x))
    bare = FrequencyChannelAttention(4, 3, "low", residual=False)
    bare.load_state_dict(block.state_dict())
    torch.testing.assert_close(bare(x), block.proj(weight * x))
    block.attn.weight.data.zero_()
    torch.testing.assert_close(block(x), 1.5 * block.proj(x))


def test_bands_reach_the_levels_and_start_as_published() -> None:
    decoder = DualFrequencyDecoder((64, 64, 64, 64), (64, 64, 64, 16), 32)
    assert [lateral.band for lateral in decoder.lateral] == ["high", "high", "low"]
    for lateral in decoder.lateral:
        for layer in (lateral.attn, lateral.proj):
            assert layer.weight.std().item() == pytest.approx(1 / 8, rel=0.05)  # sqrt(2 / (1 + a^2) / 64), a = 1
    neck = MultiLevelNeck((100,), 100, (1.0,))
    bound = math.sqrt(6 / 200)
    assert 0.99 * bound < neck.lateral[0].conv.weight.abs().max() <= bound


# The decoder and its neck


def test_any_four_sizes_meet_on_the_finest_grid() -> None:
    decoder = DualFrequencyDecoder((4, 5, 6, 7), (3, 4, 5, 6), 8).eval()
    levels = [draw(1, channels, *size) for channels, size in zip((4, 5, 6, 7), SIZES, strict=False)]
    assert decoder(levels).shape == (1, 8, *SIZES[0])


def test_a_neck_rescales_maps_of_any_shape() -> None:
    maps = [draw(1, 4, 5, 6) for _ in range(4)]
    for scales in NECK_SCALES.values():
        levels = MultiLevelNeck((4,) * 4, 8, scales).eval()(maps)
        assert [level.shape[-2:] for level in levels] == [(int(5 * s), int(6 * s)) for s in scales]


# The net


def net_of(encoder: str, width: int = 32, **changes: object) -> Segmentor:
    settings = NetSettings(encoder=encoder, decoder="dual_frequency", width=width, **changes)  # type: ignore[arg-type]
    return build(settings, 3, seed=0)


@pytest.mark.parametrize(
    ("encoder", "stride"),
    [("resnet18", 4), ("tf_efficientnet_lite0", 4), ("mit_b0", 4), ("tiny_vit_5m_224", 4), ("vit_tiny_patch16_224", 4)],
)
def test_every_kind_of_encoder_takes_images_of_any_size(encoder: str, stride: int) -> None:
    net = net_of(encoder).eval()
    assert net.stride == stride
    for height, width in ((33, 65), (70, 31)):
        with torch.no_grad():
            logits = net(torch.rand(1, 3, height, width)).logits
        assert logits.shape == (1, 3, math.ceil(height / stride), math.ceil(width / stride))


def test_the_published_neck_predicts_at_half_of_the_tokens_grid() -> None:
    net = net_of("vit_tiny_patch16_224", frequency={"neck": "published", "centre": "published", "cutoff": 4.0}).eval()
    assert net.stride == 32
    with torch.no_grad():
        assert net(torch.rand(1, 3, 100, 70)).logits.shape == (1, 3, 4, 3)
    gates = [module for module in net.modules() if isinstance(module, FrequencyChannelAttention)]
    assert {(gate.settings.centre, gate.settings.bound) for gate in gates} == {("published", 4.0)}
    assert net_of("vit_small_patch8_224").stride == 2


def test_widths_are_the_papers_and_scale() -> None:
    def widths(encoder: str, width: int = 256) -> list[int]:
        net = Segmentor(NetSettings(encoder=encoder, decoder="dual_frequency", width=width), 2)
        return [layer.out_channels for layer in _last(net)]

    def _last(net: Segmentor) -> list[nn.Conv2d]:
        body = net.decoder.body
        return [*(lateral.proj for lateral in body.lateral), body.ppm_fuse.conv, body.fuse.conv]

    with torch.device("meta"):
        assert widths("resnet18") == [48, 96, 192, 320, 256]
        assert widths("resnet50") == [128, 256, 256, 512, 256]
        assert widths("vit_tiny_patch16_224") == [48, 96, 192, 256, 256]
        assert widths("resnet18", 64) == [12, 24, 48, 80, 64]
        assert widths("resnet18", 16) == [8, 8, 12, 20, 16]


def test_the_published_net_has_the_published_size() -> None:
    """TriKD's hybrid with 11 M: 7.74 M parameters in the decoder, 39.8 G multiply-adds at 512 x 512."""
    with torch.device("meta"):
        net = Segmentor(NetSettings(encoder="tiny_vit_11m_224", decoder="dual_frequency"), 19)
    assert parameters(net.decoder) + parameters(net.classifier) == 7_741_571
    assert round(flops(net, (512, 512)) / 1e8) == 398


def test_a_net_comes_back_from_its_file(tmp_path: Path) -> None:
    net = net_of("tiny_vit_5m_224", width=16, frequency={"relative": True, "cutoff": 0.3}).eval()
    path = tmp_path / "net.safetensors"
    save_segmentor(net, path, classes=("a", "b", "c"), palette=((0, 0, 0),) * 3)
    loaded, metadata = load_segmentor(path)
    assert loaded.settings == metadata.net == net.settings
    images = torch.rand(1, 3, 40, 64)
    with torch.no_grad():
        assert torch.equal(loaded(images).logits, net(images).logits)


def test_bf16_stays_close_to_fp32() -> None:
    net = net_of("resnet18").eval()
    images = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        exact = net(images).logits
        net.precision = "bf16"
        rounded = net(images).logits
    assert 0 < (rounded - exact).abs().max() < 0.05 * exact.abs().max()


def test_settings_read_back() -> None:
    plain = NetSettings(encoder="resnet18", decoder="fpn")
    assert NetSettings.model_validate_json(plain.model_dump_json()) == plain
    chosen = NetSettings(encoder="resnet18", decoder="dual_frequency", frequency={"centre": "published"})  # type: ignore[arg-type]
    assert NetSettings.model_validate_json(chosen.model_dump_json()) == chosen
    assert FrequencySettings().bound == 10.0
    assert all(field.description for field in FrequencySettings.model_fields.values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decoder": "fpn", "frequency": {}}, "decoder fpn has no frequency"),
        ({"output_stride": 16}, "needs output_stride 32"),
        ({"frequency": {"cutoff": 0}}, "greater than 0"),
        ({"frequency": {"centre": "middle"}}, "'centred' or 'published'"),
        ({"encoder": "cirkd_resnet18"}, "no decoder dual_frequency in its papers"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        NetSettings(**{"encoder": "resnet18", "decoder": "dual_frequency", **changes})  # type: ignore[arg-type]


def test_encoders_that_do_not_suit_are_refused_with_a_remedy() -> None:
    for name, fact in (("hiera_tiny_224", "any size"), ("beit_base_patch16_224", "decoder dpt or")):
        with raises_code("encoder-unsupported", fact) as caught:
            find_encoder(name, 32, view=True)
        assert caught.value.remedy
