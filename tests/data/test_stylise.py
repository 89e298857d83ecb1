"""Styles: what is carried over, what stays, and the edges of both windows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from tutelage.data.settings import StyleSettings
from tutelage.data.stylise import fourier_adapt, lab_to_rgb, match_statistics, rgb_to_lab, stylise, window_half


def images(seed: int, count: int = 2, size: tuple[int, int] = (20, 30)) -> Tensor:
    return torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(seed))


def by_hand(image: np.ndarray, style: np.ndarray, half: int) -> np.ndarray:
    """FDA with a centred spectrum, in numpy."""
    ours, theirs = (np.fft.fftshift(np.fft.fft2(x), axes=(-2, -1)) for x in (image, style))
    row, column = image.shape[-2] // 2, image.shape[-1] // 2
    place = (..., slice(max(row - half, 0), row + half + 1), slice(max(column - half, 0), column + half + 1))
    ours[place] = np.abs(theirs[place]) * np.exp(1j * np.angle(ours[place]))
    return np.fft.ifft2(np.fft.ifftshift(ours, axes=(-2, -1))).real


@pytest.mark.parametrize("size", [(20, 30), (21, 17), (8, 8), (1, 5)])
@pytest.mark.parametrize("beta", [0.0, 0.1, 0.3, 0.5])
def test_fda_by_hand(size: tuple[int, int], beta: float) -> None:
    image, style = images(0, size=size), images(1, size=size)
    half = int(np.floor(min(size) * beta))
    assert window_half(beta, size) == half
    expected = by_hand(image.double().numpy(), style.double().numpy(), half)
    np.testing.assert_allclose(fourier_adapt(image, style, beta).numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["fda", "statistics"])
@pytest.mark.parametrize("window", ["symmetric", "corners"])
def test_its_own_style_changes_nothing(kind: str, window: str) -> None:
    image = images(0)
    styled = stylise(image, image, StyleSettings(kind=kind, window=window, beta=0.2))
    torch.testing.assert_close(styled, image, atol=2e-4, rtol=0)
    assert styled.is_contiguous(memory_format=torch.channels_last)


def test_the_windows_at_their_narrowest() -> None:
    image, style = images(0), images(1) * 0.3
    symmetric = fourier_adapt(image, style, 0.0)
    torch.testing.assert_close(symmetric.mean((2, 3)), style.mean((2, 3)), atol=1e-5, rtol=0)
    torch.testing.assert_close(symmetric - symmetric.mean((2, 3), True), image - image.mean((2, 3), True))
    torch.testing.assert_close(fourier_adapt(image, style, 0.0, "corners"), image, atol=1e-5, rtol=0)


def test_each_image_has_its_own_style_or_all_have_one() -> None:
    image, style = images(0), images(1)
    for kind in ("fda", "statistics"):
        settings = StyleSettings(kind=kind, beta=0.1)
        both = stylise(image, style, settings)
        for i in range(2):
            torch.testing.assert_close(both[i], stylise(image[i : i + 1], style[i : i + 1], settings)[0])
        one = stylise(image, style[:1], settings)
        torch.testing.assert_close(one[1], stylise(image[1:], style[:1], settings)[0])
    with pytest.raises(ValueError, match="3"):
        stylise(image, images(1, 3), StyleSettings())


def test_a_style_of_another_size() -> None:
    image, style = images(0), images(1, size=(40, 60)) * 0.5
    for kind in ("fda", "statistics"):
        styled = stylise(image, style, StyleSettings(kind=kind))
        assert styled.shape == image.shape
        torch.testing.assert_close(styled.mean(), style.mean(), atol=0.02, rtol=0)


def test_clipping() -> None:
    image = torch.zeros(1, 3, 16, 16)
    image[..., 8:] = 1.0
    bright = stylise(image, torch.full_like(image, 0.9), StyleSettings())
    assert bright.max() > 1.2
    clipped = stylise(image, torch.full_like(image, 0.9), StyleSettings(clip=True))
    torch.testing.assert_close(clipped, bright.clamp(0, 1))


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("kind", ["fda", "statistics"])
def test_flat_images_stay_finite(kind: str, value: float) -> None:
    flat = torch.full((1, 3, 16, 16), value)
    for image, style in ((flat, images(0, 1)), (images(0, 1), flat), (flat, flat)):
        assert torch.isfinite(stylise(image, style, StyleSettings(kind=kind, beta=0.1))).all()
    torch.testing.assert_close(stylise(images(0, 1, (16, 16)), flat, StyleSettings(kind="statistics")), flat,
                               atol=1e-4, rtol=0)  # fmt: skip


def test_cielab() -> None:
    colours = torch.tensor([[1.0, 1, 1], [0, 0, 0], [1, 0, 0], [0, 0, 1], [0.5, 0.5, 0.5]]).T.reshape(1, 3, 1, 5)
    expected = torch.tensor(
        [[100.0, 0, 0], [0, 0, 0], [53.24, 80.09, 67.20], [32.30, 79.19, -107.86], [53.39, 0, 0]]
    ).T.reshape(1, 3, 1, 5)
    torch.testing.assert_close(rgb_to_lab(colours), expected, atol=0.03, rtol=0)
    image = images(3)
    torch.testing.assert_close(lab_to_rgb(rgb_to_lab(image)), image, atol=1e-4, rtol=0)


def test_statistics_are_carried_over() -> None:
    image, style = 0.3 + 0.2 * images(0), 0.4 + 0.1 * images(1)
    std, mean = torch.std_mean(rgb_to_lab(match_statistics(image, style)), (2, 3))
    style_std, style_mean = torch.std_mean(rgb_to_lab(style), (2, 3))
    torch.testing.assert_close(mean, style_mean, atol=0.05, rtol=0)
    torch.testing.assert_close(std, style_std, atol=0.05, rtol=0)
