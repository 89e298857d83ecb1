"""Encoders and settings: what is measured, and what is refused with a remedy."""

from __future__ import annotations

import subprocess
import sys

import pytest
from pydantic import ValidationError

from tests.errors import raises_code
from tutelage.nets.encoders import find_encoder
from tutelage.nets.settings import NetSettings


def test_strides_channels_and_multiples_are_measured() -> None:
    plain = find_encoder("resnet18", 16, plain=False)
    assert plain.strides == (2, 4, 8, 16, 16)
    assert plain.channels == (64, 64, 128, 256, 512)
    assert plain.multiple == 16
    assert find_encoder("convnext_atto", 32, plain=False).strides == (4, 8, 16, 32)
    # Its last blocks fold 2x2 cells, so image sides must be multiples of 64.
    assert find_encoder("mobilevitv2_050", 32, plain=False).multiple == 64
    assert find_encoder("swin_tiny_patch4_window7_224", 32, plain=False).channels_last


def test_vision_transformers_with_patches_of_14_are_given_16() -> None:
    spec = find_encoder("vit_small_patch14_dinov2", 32, plain=True)
    assert spec.strides == (16, 16, 16, 16)
    assert spec.indices == (2, 5, 8, 11)


@pytest.mark.parametrize(
    ("name", "stride", "plain", "code", "fact"),
    [
        ("resnet81", 32, False, "unknown-encoder", "resnet18"),
        ("hf-hub:somebody/net", 32, False, "unknown-encoder", "weights:"),
        ("pvt_v2_b0", 16, False, "encoder-unsupported", "output_stride: 32"),
        ("mit_b0", 16, False, "encoder-unsupported", "output stride 16"),
        ("starnet_s1", 8, False, "encoder-unsupported", "output stride 8"),
        ("hiera_tiny_224", 32, False, "encoder-unsupported", "any size"),
        ("vit_tiny_patch16_224", 32, False, "encoder-unsupported", "decoder dpt"),
        ("resnet18", 32, True, "encoder-unsupported", "plain vision transformer"),
        ("mit_b0", 32, True, "encoder-unsupported", "plain vision transformer"),
        ("beit_base_patch16_224", 32, True, "encoder-unsupported", "plain vision transformer"),
    ],
)
def test_what_cannot_be_is_refused_with_a_remedy(name: str, stride: int, plain: bool, code: str, fact: str) -> None:
    with raises_code(code, fact) as caught:
        find_encoder(name, stride, plain=plain)
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("decoder", "changes", "message"),
    [
        ("fpn", {"output_stride": 16}, "needs output_stride 32"),
        ("deeplabv3", {"output_stride": 32}, "needs output_stride 8 or 16"),
        ("fpn", {"width": 96}, "multiple of 64"),
        ("unet", {"width": 40}, "multiple of 16"),
        ("lraspp", {"dropout": 1.0}, "less than 1"),
        ("lraspp", {"colour": 1}, "Extra inputs"),
        ("linknet", {}, "Input should be"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(decoder: str, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        NetSettings(encoder="resnet18", decoder=decoder, **changes)  # type: ignore[arg-type]


def test_natural_strides_and_widths() -> None:
    def natural(decoder: str) -> tuple[int, int]:
        settings = NetSettings(encoder="resnet18", decoder=decoder)  # type: ignore[arg-type]
        return settings.stride, settings.channels

    assert natural("deeplabv3") == natural("deeplabv3plus") == (16, 256)
    assert natural("lraspp") == (16, 128)
    assert natural("pspnet") == (8, 512)
    assert natural("fpn") == (32, 256)


def test_every_setting_is_described() -> None:
    assert all(field.description for field in NetSettings.model_fields.values())


def test_settings_and_catalogue_open_without_torch() -> None:
    code = (
        "import sys, tutelage.nets.settings, tutelage.nets.catalogue as c; c.rows(); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
