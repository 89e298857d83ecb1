"""Style transfer between domains by arithmetic on whole batches, without a net and without training.

    fda         F = FFT2(image);  |F| <- |FFT2(style)| at low frequencies, phase of F unchanged;  image' = IFFT2(F)
    statistics  each CIELAB channel gets the mean and standard deviation of the style:
                l' = (l - mean l) std l_style / std l + mean l_style

``fda`` is Fourier domain adaptation (CVPR 2020). The window of low frequencies extends b = floor(beta min(H, W))
frequencies from the centre. ``symmetric`` uses -b..b in both axes, which keeps the spectrum of a real image (the
paper's demonstration); ``corners`` uses -b..b-1, which does not (the published training code): the imaginary part is
dropped, and b = 0 changes nothing, while the symmetric window with b = 0 still transfers the mean colour. The two
differ by one row and one column of frequencies. ``statistics`` is colour transfer (Reinhard et al., 2001) in CIELAB
(D65) instead of their logarithmic space, which is undefined for black.
"""

# Legend: B images, 3 channels RGB, H W pixels, h w frequencies (rows, and columns of a half spectrum).

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tutelage.data.settings import StyleSettings, Window

# Linear RGB of sRGB's primaries to XYZ over its white (D65): each row sums to 1, so that white is (1, 1, 1).
_TO_XYZ = (
    (0.4339499, 0.3762098, 0.1898403),
    (0.2126729, 0.7151522, 0.0721750),
    (0.0177566, 0.1094680, 0.8727754),
)
_FROM_XYZ = np.linalg.inv(np.array(_TO_XYZ)).tolist()
_BEND = 6.0 / 29.0  # below its cube CIELAB's root is linear
_LEAST_STD = 1e-2  # in CIELAB units; avoids division by zero for a constant channel


@torch.no_grad()
def stylise(image_B3HW: Tensor, style_B3HW: Tensor, settings: StyleSettings) -> Tensor:
    """Transfer the style of ``style`` to images (B, 3, H, W) RGB 0..1: one style image per image, or one for all.

    Style images of another size are resized first. Returns float32, channels last; results of ``fda`` may be outside
    0..1 unless ``clip`` is set. Raises ``ValueError`` if the number of styles is neither 1 nor B.
    """
    if len(style_B3HW) not in (1, len(image_B3HW)):
        raise ValueError(f"number of styles must be 1 or {len(image_B3HW)}, got {len(style_B3HW)}")
    image_B3HW, style_B3HW = image_B3HW.float(), style_B3HW.float()
    if settings.kind == "statistics":
        styled_B3HW = match_statistics(image_B3HW, style_B3HW)
    else:
        size = image_B3HW.shape[-2:]
        if style_B3HW.shape[-2:] != size:
            style_B3HW = F.interpolate(style_B3HW, size, mode="bilinear", align_corners=False, antialias=True)
        styled_B3HW = fourier_adapt(image_B3HW, style_B3HW, settings.beta, settings.window)
        styled_B3HW = styled_B3HW.clamp(0.0, 1.0) if settings.clip else styled_B3HW
    return styled_B3HW.contiguous(memory_format=torch.channels_last)


def window_half(beta: float, size: tuple[int, int]) -> int:
    """Half-width b of the window, in frequencies: floor(beta min(H, W)). Source: FDA, equation 3."""
    return math.floor(min(size) * beta)


def fourier_adapt(image_B3HW: Tensor, style_B3HW: Tensor, beta: float, window: Window = "symmetric") -> Tensor:
    """Replace low-frequency amplitudes by those of ``style`` (same size), keeping phases: (B, 3, H, W), not clipped.

    Values may have any scale; the result has the same. Source: FDA (CVPR 2020), equation 4 and its code.
    """
    height, width = image_B3HW.shape[-2], image_B3HW.shape[-1]
    half = window_half(beta, (height, width))
    if window == "corners":
        spectrum_B3hw, style_B3hw = torch.fft.fft2(image_B3HW), torch.fft.fft2(style_B3HW)
        for rows in (slice(0, half), slice(height - half, height)):
            for columns in (slice(0, half), slice(width - half, width)):
                _swap_amplitude(spectrum_B3hw, style_B3hw, rows, columns)
        corners_B3HW: Tensor = torch.fft.ifft2(spectrum_B3hw).real
        return corners_B3HW
    # The window is symmetric about the origin, so the half spectrum of a real image contains all of it.
    spectrum_B3hw, style_B3hw = torch.fft.rfft2(image_B3HW), torch.fft.rfft2(style_B3HW)
    for rows in (slice(0, half + 1), slice(max(height - half, half + 1), height)):
        _swap_amplitude(spectrum_B3hw, style_B3hw, rows, slice(0, half + 1))
    styled_B3HW: Tensor = torch.fft.irfft2(spectrum_B3hw, s=(height, width))
    return styled_B3HW


def _swap_amplitude(spectrum_B3hw: Tensor, style_B3hw: Tensor, rows: slice, columns: slice) -> None:
    """Replace amplitudes by those of the style in place and keep the phases; a zero coefficient has phase 0."""
    here_B3hw = spectrum_B3hw[..., rows, columns]
    amplitude_B3hw = style_B3hw[..., rows, columns].abs().expand(here_B3hw.shape)
    spectrum_B3hw[..., rows, columns] = torch.polar(amplitude_B3hw, here_B3hw.angle())


def match_statistics(image_B3HW: Tensor, style_B3HW: Tensor) -> Tensor:
    """Match the mean and standard deviation of ``style`` per CIELAB channel; RGB 0..1, clipped.

    Sizes may differ. Source: Reinhard et al., Color transfer between images (2001), in another colour space.
    """
    lab_B3HW, style_lab_B3HW = rgb_to_lab(image_B3HW), rgb_to_lab(style_B3HW)
    std, mean = torch.std_mean(lab_B3HW, (2, 3), keepdim=True, correction=0)
    style_std, style_mean = torch.std_mean(style_lab_B3HW, (2, 3), keepdim=True, correction=0)
    return lab_to_rgb((lab_B3HW - mean) * (style_std / std.clamp(min=_LEAST_STD)) + style_mean)


def rgb_to_lab(image_B3HW: Tensor) -> Tensor:
    """Convert sRGB 0..1 to CIELAB (L 0..100, a and b about -100..100), white point D65."""
    image = image_B3HW.clamp(0.0, 1.0)
    linear = torch.where(image <= 0.04045, image / 12.92, ((image + 0.055) / 1.055) ** 2.4)
    xyz = torch.einsum("xc,bchw->bxhw", linear.new_tensor(_TO_XYZ), linear)
    # clamp: torch.where evaluates both branches, and a NaN or gradient of the root near 0 must not propagate
    root = torch.where(xyz > _BEND**3, xyz.clamp(min=_BEND**3) ** (1.0 / 3.0), xyz / (3.0 * _BEND**2) + 4.0 / 29.0)
    x, y, z = root.unbind(1)
    return torch.stack((116.0 * y - 16.0, 500.0 * (x - y), 200.0 * (y - z)), 1)


def lab_to_rgb(lab_B3HW: Tensor) -> Tensor:
    """Convert CIELAB to sRGB; colours outside the sRGB gamut are clipped to 0..1."""
    light, a, b = lab_B3HW.unbind(1)
    y = (light + 16.0) / 116.0
    root = torch.stack((y + a / 500.0, y, y - b / 200.0), 1)
    xyz = torch.where(root > _BEND, root**3, 3.0 * _BEND**2 * (root - 4.0 / 29.0))
    linear = torch.einsum("cx,bxhw->bchw", xyz.new_tensor(_FROM_XYZ), xyz).clamp(0.0, 1.0)
    return torch.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1.0 / 2.4) - 0.055)
