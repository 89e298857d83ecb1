"""Folder trikd: bands, gates, the dual-frequency decoder, its neck, and how TriKD reads transformers."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tests.golden.compare import assert_gradient, assert_values, tensor
from tests.golden.conftest import Golden
from tutelage.nets.attention import attention_logits
from tutelage.nets.frequency import (
    Band,
    DualFrequencyDecoder,
    FrequencyChannelAttention,
    MultiLevelNeck,
    band_mean,
)
from tutelage.nets.settings import FrequencySettings
from tutelage.nets.tokens import GlobalAttention, attend_globally, keep_no_biases, patch_levels

from timm.models.tiny_vit import TinyVit  # isort: skip
from timm.models.vision_transformer import VisionTransformer  # isort: skip

Arrays = dict[str, NDArray]
TWO_BANDS: tuple[Band, ...] = ("low", "high")


def key_of(name: str) -> str:
    """A tensor's name without what separates its parts, which the folder and the modules write differently."""
    return name.replace(".", "").replace("_", "").lower()


def fill(net: nn.Module, file: Arrays, missing: tuple[str, ...] = (), unused: tuple[str, ...] = ()) -> None:
    """Load the file's ``w_*``; nothing but what is named may be missing in the file or unused by the net."""
    given = {key_of(key[2:]): tensor(values) for key, values in file.items() if key.startswith("w_")}
    own = {name: key_of(name) for name in net.state_dict() if not name.endswith("num_batches_tracked")}
    assert {name for name, key in own.items() if key not in given} == set(missing)
    assert set(given) - set(own.values()) == {key_of(name) for name in unused}
    net.load_state_dict({name: given[key] for name, key in own.items() if key in given}, strict=False)


def filtered(x: Tensor, mask: Tensor) -> Tensor:
    return torch.fft.ifft2(torch.fft.fft2(x) * mask).abs()


@pytest.mark.parametrize("name", ["fft_separation"])
def test_bands(golden: Golden, name: str) -> None:
    file = golden(f"trikd/{name}")
    cutoff = float(file["d0"])
    for band in TWO_BANDS:
        mask = torch.fft.ifftshift(tensor(file[f"{band}_mask"]))
        x = tensor(file["x"]).requires_grad_()
        out = filtered(x, mask)
        assert_values(out, file[f"{band}_out"])
        assert_gradient(torch.autograd.grad(out, x, tensor(file["upstream"]))[0], file[f"grad_x_{band}"])
        for key, out_key in (("x", f"{band}_out"), ("x2", f"{band}_out2")):
            x = tensor(file[key]).requires_grad_()
            ours = band_mean(x, band, centre="published", cutoff=cutoff)
            if x.shape[2:] == file[f"{band}_mask"].shape:
                expected = torch.autograd.grad(filtered(x, mask).mean((2, 3)).square().sum(), x)[0]
                assert_gradient(torch.autograd.grad(ours.square().sum(), x)[0], expected.numpy())
            assert_values(ours, file[out_key].mean((2, 3)))


@pytest.mark.parametrize("name", ["frequency_channel_attention"])
def test_gates(golden: Golden, name: str) -> None:
    file = golden(f"trikd/{name}")
    out_channels, channels = file["w_proj"].shape[:2]
    settings = FrequencySettings(centre="published", cutoff=float(file["d0"]))
    for band in TWO_BANDS:
        block = FrequencyChannelAttention(channels, out_channels, band, settings)
        block.load_state_dict({f"{part}.weight": tensor(file[f"w_{part}"]) for part in ("attn", "proj")})
        x = tensor(file["x"]).requires_grad_()
        out = block(x)
        assert_values(block.gate(x), file[f"gate_{band}"])
        assert_values(out, file[f"out_{band}_residual"])
        grads = torch.autograd.grad(out, (x, block.attn.weight, block.proj.weight), tensor(file["upstream"]))
        for key, grad in zip(("x", "w_attn", "w_proj"), grads, strict=True):
            assert_gradient(grad, file[f"grad_{key}_{band}"])
        bare = FrequencyChannelAttention(channels, out_channels, band, settings, residual=False)
        bare.load_state_dict(block.state_dict())
        assert_values(bare(x), file[f"out_{band}_noskip"])
    # The squeeze-and-excitation variant of the released code is the same mean behind two linear layers.
    x = tensor(file["se_x"])
    mean = band_mean(x, "high", centre="published", cutoff=float(file["d0"]))
    gate = torch.sigmoid(torch.relu(mean @ tensor(file["se_w_reduce"]).T) @ tensor(file["se_w_expand"]).T)
    assert_values(x * gate[..., None, None], file["se_out_high"])


def decoder_of(file: Arrays) -> nn.ModuleDict:
    in_channels, out_channels = ([int(c) for c in file[f"{side}_channels"]] for side in ("in", "out"))
    width = int(file["fuse_channels"])
    body = DualFrequencyDecoder(
        in_channels,
        out_channels,
        width,
        FrequencySettings(centre="published"),
        pool_sides=[int(side) for side in file["pool_scales"]],
    )
    whole = nn.ModuleDict({**dict(body.named_children()), "classifier": nn.Conv2d(width, int(file["num_classes"]), 1)})
    fill(whole, file)
    return nn.ModuleDict({"body": body, "classifier": whole["classifier"]})


@pytest.mark.parametrize("name", ["dual_frequency_decoder"])
def test_decoder(golden: Golden, name: str) -> None:
    file = golden(f"trikd/{name}")
    net = decoder_of(file).eval()
    levels = [tensor(file[f"x{i}"]).requires_grad_() for i in range(4)]
    out = net["classifier"](net["body"](levels))
    assert_values(out, file["out_eval"])
    grads = torch.autograd.grad(out, levels, tensor(file["upstream"]))
    for i, grad in enumerate(grads):
        assert_gradient(grad, file[f"grad_x{i}"])

    net.train()
    assert float(file["dropout"]) == 0
    assert_values(net["classifier"](net["body"](levels)), file["out_train"], relative=1e-3, absolute=1e-3)
    states = {key_of(key): value for key, value in net["body"].state_dict().items()}
    after = {key: values for key, values in file.items() if key.startswith("after_train_")}
    assert after
    for key, values in after.items():
        assert_values(states[key_of(key.removeprefix("after_train_"))], values, relative=1e-3, absolute=1e-3)


@pytest.mark.parametrize("name", ["multi_level_neck"])
def test_neck(golden: Golden, name: str) -> None:
    file = golden(f"trikd/{name}")
    height, width = np.broadcast_to(file["grid"], 2)
    maps = [tensor(file[f"tokens{i}"]).transpose(1, 2).unflatten(2, (int(height), int(width))) for i in range(4)]
    channels = file["w_lateral0_conv_weight"].shape[0]
    neck = MultiLevelNeck([level.shape[1] for level in maps], channels, [float(s) for s in file["scales"]]).eval()
    fill(neck, file)
    for i, level in enumerate(neck(maps)):
        assert_values(level, file[f"out{i}"])


@pytest.mark.parametrize("name", ["vit_view"])
def test_vision_transformer(golden: Golden, name: str) -> None:
    file = golden(f"trikd/{name}")
    image = tensor(file["image"])
    dim, depth, heads = (int(file[key]) for key in ("embed_dim", "depth", "num_heads"))
    net = VisionTransformer(
        img_size=tuple(image.shape[-2:]),
        patch_size=int(file["patch_size"]),
        embed_dim=dim,
        depth=depth,
        num_heads=heads,
        mlp_ratio=file["w_blocks_0_mlp_fc1_weight"].shape[0] / dim,
        norm_layer=partial(nn.LayerNorm, eps=float(file["layernorm_eps"])),
        num_classes=0,
        dynamic_img_size=True,
    ).eval()
    net.norm = nn.Identity()
    fill(net, file)
    taps: dict[int, Tensor] = {}
    for i, block in enumerate(net.blocks):
        block.attn.qkv.register_forward_hook(lambda _, __, qkv, i=i: taps.update({i: qkv}))
    levels = patch_levels(net, image, range(depth))
    for i, level in enumerate(levels):
        assert_values(level.flatten(2).transpose(1, 2), file[f"tokens{i}"])
        attention = net.blocks[i].attn
        logits = attention_logits(
            taps[i], heads=heads, key_dim=attention.head_dim, scale=attention.scale, layout="by_part"
        )
        assert_values(logits, file[f"attn_logits{i}"])


def tiny_vit(file: Arrays) -> TinyVit:
    shape = {key: tuple(int(n) for n in file[key]) for key in ("depths", "embed_dims", "num_heads", "window_sizes")}
    return TinyVit(num_classes=0, **shape).eval()


@pytest.mark.parametrize("name", ["tinyvit_view"])
def test_tiny_vit(golden: Golden, name: str) -> None:
    file = golden(f"trikd/{name}")
    head = ("head.norm.weight", "head.norm.bias")
    plain, net = tiny_vit(file), tiny_vit(file)
    fill(plain, file, missing=head)
    attend_globally(net)
    keep_no_biases(net)
    found = [name for name, module in net.named_modules() if isinstance(module, GlobalAttention)]
    assert found == [f"stages.3.blocks.{int(file['depths'][-1]) - 1}.attn"]
    fill(net, file, missing=head, unused=(f"{found[0]}.attention_biases",))
    attention = net.get_submodule(found[0])
    taps: list[Tensor] = []
    attention.qkv.register_forward_hook(lambda _, __, qkv: taps.append(qkv))
    with torch.no_grad():
        x, y = (model.patch_embed(tensor(file["image"])) for model in (plain, net))
        for i in range(4):
            x, y = plain.stages[i](x), net.stages[i](y)
            assert_values(y, file[f"feat{i}"])
            if i < 3:
                assert_values(x, file[f"feat{i}"])
    logits = attention_logits(
        taps[0], heads=attention.num_heads, key_dim=attention.key_dim, scale=attention.scale, layout="by_head"
    )
    assert_values(logits, file["attn_logits_last"])
