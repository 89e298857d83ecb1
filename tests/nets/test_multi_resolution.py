"""Nets of two resolutions, and DAFormer's decoder: shapes at every size, what is fused where, files, gradients."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from tutelage.nets.build import build
from tutelage.nets.daformer import ContextFusion
from tutelage.nets.multi_resolution import MultiResolution, Window, _starts, fuse, in_two_resolutions
from tutelage.nets.segmentor import Segmentor
from tutelage.nets.settings import MultiResolutionSettings, NetSettings
from tutelage.nets.storage import load_segmentor, save_segmentor

PLAIN = NetSettings(encoder="mobilenetv3_small_050", decoder="lraspp", width=32, auxiliary=True)
TWO = PLAIN.model_copy(update={"multi_resolution": MultiResolutionSettings()})
FORMER = NetSettings(encoder="mit_b0", decoder="daformer", width=16, multi_resolution=MultiResolutionSettings(width=8))


def net_of(settings: NetSettings = TWO) -> MultiResolution:
    net = build(settings, 4, seed=0).eval()
    assert isinstance(net, MultiResolution)
    return net


def images(height: int, width: int) -> torch.Tensor:
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("size", [(64, 96), (65, 97), (16, 16), (40, 200)])
@pytest.mark.parametrize("settings", [TWO, FORMER], ids=["lraspp", "daformer"])
def test_logits_cover_the_image_at_the_stride_of_a_plain_net(settings: NetSettings, size: tuple[int, int]) -> None:
    net = net_of(settings)
    assert net.stride == (8 if settings is TWO else 4)
    with torch.no_grad():
        found = net(images(*size))
    assert found.logits.shape == (2, 4, *(math.ceil(side / net.stride) for side in size))
    assert found.logits.isfinite().all()
    halves = [math.ceil(side / 2) for side in size]
    assert found.embedding.shape[2:] == tuple(math.ceil(half / net.stride) for half in halves)


def test_gradients_reach_every_parameter() -> None:
    net = net_of().train()
    found = net(images(64, 64))
    (found.logits.square().mean() + found.auxiliary.square().mean()).backward()
    assert [name for name, parameter in net.named_parameters() if parameter.grad is None] == []


def test_a_window_as_large_as_the_image_is_the_whole_detail() -> None:
    net = net_of(TWO.model_copy(update={"multi_resolution": MultiResolutionSettings(detail=(900, 900))}))
    image = images(64, 96)
    assert net.window_of((64, 96)) == (64, 96)
    with torch.no_grad():
        output = net.forward_with_window(image, Window(0, 0, 64, 96))
        torch.testing.assert_close(output.logits, net(image).logits)
        alone = build(PLAIN, 4, seed=0).eval()
        alone.load_state_dict({name: net.state_dict()[name] for name in alone.state_dict()})
        torch.testing.assert_close(output.detail, alone(image).logits)
        half = F.interpolate(image, scale_factor=0.5, mode="bilinear")
        torch.testing.assert_close(output.context.logits, alone(half).logits)


def test_beside_the_window_the_context_speaks_alone() -> None:
    net, image = net_of(), images(64, 64)
    with torch.no_grad():
        output = net.forward_with_window(image, Window(32, 0, 32, 32))
        context = F.interpolate(output.context.logits, scale_factor=2, mode="bilinear")
    # One cell beyond the window is touched by the enlarged attention.
    torch.testing.assert_close(output.logits[..., :3, :], context[..., :3, :])
    torch.testing.assert_close(output.logits[..., 5:], context[..., 5:])
    assert not torch.isclose(output.logits[..., 5:, :3], context[..., 5:, :3]).any()


def test_full_attention_takes_the_detail_and_none_the_context() -> None:
    context, detail = torch.randn(1, 2, 3, 3), torch.randn(1, 2, 6, 6)
    torch.testing.assert_close(fuse(context, detail, torch.ones_like(context)), detail)
    enlarged = F.interpolate(context, scale_factor=2, mode="bilinear")
    torch.testing.assert_close(fuse(context, detail, torch.zeros_like(context)), enlarged)


def test_windows_overlap_by_half_and_reach_the_end() -> None:
    assert _starts(64, 32, 16) == [0, 16, 32]
    assert _starts(80, 32, 16) == [0, 16, 32, 48]
    assert _starts(112, 64, 16) == [0, 32, 48]
    assert _starts(48, 48, 16) == [0]
    assert _starts(48, 16, 16) == [0, 16, 32]


def test_sliding_windows_are_averaged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each window answers with its own number: where two lie on one another the mean must come out."""
    net = net_of()

    def answer(self: Segmentor, image: torch.Tensor) -> object:
        number = torch.arange(len(image), dtype=torch.float32).view(-1, 1, 1, 1) // 2
        logits = number.expand(-1, 4, image.shape[2] // 8, image.shape[3] // 8)
        return type("Said", (), {"logits": logits})()

    monkeypatch.setattr(Segmentor, "forward", answer)
    found = net._detail_everywhere(images(64, 32))
    # Windows 32 high from rows 0, 16, 32, and 16 wide from columns 0, 16: two images of each, numbers 0 to 5.
    columns = [[0, 0, 1, 1], [0, 0, 1, 1], [1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4], [3, 3, 4, 4], [4, 4, 5, 5]]
    torch.testing.assert_close(found[0, 0, :7], torch.tensor(columns).float())


def test_a_plain_net_becomes_one_and_keeps_its_weights() -> None:
    plain = build(PLAIN, 4, seed=3)
    made = in_two_resolutions(plain, MultiResolutionSettings(width=8))
    assert {name for name in made.state_dict() if name not in plain.state_dict()} == {
        name for name in made.state_dict() if name.startswith("attention.")
    }
    assert all(torch.equal(value, made.state_dict()[name]) for name, value in plain.state_dict().items())
    assert in_two_resolutions(made, MultiResolutionSettings()) is made


def test_files_say_that_a_net_has_two_resolutions(tmp_path: Path) -> None:
    net = net_of()
    save_segmentor(net, tmp_path / "net.safetensors", classes="abcd", palette=[(0, 0, 0)] * 4)
    loaded, metadata = load_segmentor(tmp_path / "net.safetensors")
    assert metadata.net.multi_resolution == MultiResolutionSettings()
    with torch.no_grad():
        torch.testing.assert_close(loaded(images(40, 72)).logits, net(images(40, 72)).logits)


def test_another_net_may_start_from_such_a_file(tmp_path: Path) -> None:
    net, path = net_of(), tmp_path / "net.safetensors"
    save_segmentor(net, path, classes="abcd", palette=[(0, 0, 0)] * 4)
    for settings in (TWO, PLAIN):
        other = build(settings.model_copy(update={"weights": str(path)}), 4, seed=5)
        assert all(torch.equal(value, net.state_dict()[name]) for name, value in other.state_dict().items())


@pytest.mark.parametrize(("encoder", "stride"), [("mit_b0", 4), ("mobilenetv3_small_050", 4), ("convnext_atto", 4)])
def test_daformers_decoder_stands_at_the_finest_of_four_levels(encoder: str, stride: int) -> None:
    net = build(NetSettings(encoder=encoder, decoder="daformer", width=16), 3, seed=0)
    assert isinstance(net.decoder, ContextFusion)
    assert net.stride == stride
    assert net.embedding_channels == 16
    assert net(images(64, 64)).logits.shape == (2, 3, 16, 16)
    depthwise = [branch[0] for branch in net.decoder.atrous]
    assert [layer.dilation for layer in depthwise] == [(6, 6), (12, 12), (18, 18)]  # type: ignore[index, union-attr]
    assert all(layer.groups == 64 for layer in depthwise)  # type: ignore[union-attr]
    default = NetSettings(encoder=encoder, decoder="daformer")
    assert (default.channels, default.stride) == (256, 32)
