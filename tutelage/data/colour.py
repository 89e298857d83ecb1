"""Photometric augmentation as one colour matrix per image, applied to the whole batch on its device.

Brightness, contrast, saturation, hue and greyscale are all linear in RGB once the image's mean grey is known, so
their composition is one 3x3 matrix and one offset, applied in one matrix product that also converts bytes to floats.
A weak and a strong view therefore share one decoded crop, and a second strong view needs no second decoding.
Differences from the usual chain of operations: the order is fixed (brightness, contrast, saturation, hue, grey),
values are clipped once, at the end, and the hue is rotated in the YIQ plane instead of the HSV cone.
"""

# Legend: B batch, H W pixels, 3 channels RGB; images are laid out (B, H, W, 3) as they come from the decoder.

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tutelage.data.draws import generator
from tutelage.data.settings import ColourSettings

GREY = (0.299, 0.587, 0.114)
PLAIN = (1.0, 1.0, 1.0, 0.0, 0.0, 0.0)  # brightness, contrast, saturation, hue (turns), grey, blur sigma


def draw_colour(settings: ColourSettings, seed: int, stream: str, position: int) -> tuple[float, ...]:
    """Draw the six colour parameters (order of :data:`PLAIN`) of one view at one position.

    A pure function of its arguments.
    """
    draw = generator(seed, stream, "colour", position)
    coins, amounts = draw.random(3), draw.uniform(-1.0, 1.0, 4)
    brightness, contrast, saturation, hue, grey, sigma = PLAIN
    if coins[0] < settings.probability:
        brightness, contrast, saturation = (
            1.0 + float(amount) * strength
            for amount, strength in zip(
                amounts, (settings.brightness, settings.contrast, settings.saturation), strict=False
            )
        )
        hue = float(amounts[3]) * settings.hue
    if coins[1] < settings.grey:
        grey = 1.0
    if coins[2] < settings.blur:
        sigma = float(draw.uniform(*settings.blur_sigma))
    return brightness, contrast, saturation, hue, grey, sigma


def _matrices(colour_B6: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Colour matrices (B, 3, 3), and weights (B, 3) of the mean colour in the offset, from colour parameters (B, 6)."""
    grey = np.outer(np.ones(3), GREY)
    to_yiq = np.array([GREY, (0.595716, -0.274453, -0.321263), (0.211456, -0.522591, 0.311135)])
    from_yiq = np.linalg.inv(to_yiq)
    matrices = np.empty((len(colour_B6), 3, 3))
    weights = np.empty((len(colour_B6), 3))
    for i, (brightness, contrast, saturation, hue, greyed, _) in enumerate(colour_B6):
        angle = -2.0 * math.pi * hue  # red, green, blue follow in the negative direction of the YIQ plane
        turn = np.eye(3)
        turn[1:, 1:] = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
        saturate = saturation * np.eye(3) + (1.0 - saturation) * grey
        matrix = contrast * brightness * (from_yiq @ turn @ to_yiq @ saturate)
        matrices[i] = grey @ matrix if greyed else matrix
        weights[i] = (1.0 - contrast) * brightness * np.array(GREY)
    return matrices, weights


def colour_batch(image_BHW3: Tensor, colour_B6: np.ndarray) -> Tensor:
    """Convert bytes (B, H, W, 3) to float RGB (B, 3, H, W) in 0..1, channels last, with colour parameters per image."""
    device = image_BHW3.device
    image = image_BHW3.to(torch.float32)
    if (colour_B6[:, :5] == PLAIN[:5]).all():
        image = image.div_(255.0)
    else:
        matrices, weights = _matrices(colour_B6)
        mean_B3 = image.mean(dim=(1, 2))
        offset_B1 = (mean_B3 * torch.as_tensor(weights, dtype=torch.float32, device=device)).sum(1, keepdim=True)
        mix_B33 = torch.as_tensor(matrices / 255.0, dtype=torch.float32, device=device)
        flat = image.view(image.shape[0], -1, 3)
        image = torch.baddbmm((offset_B1 / 255.0)[..., None], flat, mix_B33.mT).view(image.shape).clamp_(0.0, 1.0)
    image_B3HW = image.permute(0, 3, 1, 2)
    blurred = np.flatnonzero(colour_B6[:, 5] > 0)
    if len(blurred):
        chosen = torch.as_tensor(blurred, device=device)
        image_B3HW[chosen] = blur(image_B3HW[chosen], colour_B6[blurred, 5])
    return image_B3HW


def blur(image_B3HW: Tensor, sigma_B: np.ndarray) -> Tensor:
    """Gaussian blur of (B, 3, H, W) with one standard deviation per image, in pixels; the border is reflected."""
    batch, channels, height, width = image_B3HW.shape
    radius = max(min(math.ceil(3.0 * float(sigma_B.max())), height - 1, width - 1), 0)
    if radius == 0:
        return image_B3HW
    distance = np.arange(-radius, radius + 1)
    kernel = np.exp(-0.5 * (distance / sigma_B[:, None]) ** 2)
    # Each image has its own kernel width: the result must not depend on the other images of the batch.
    kernel[np.abs(distance) > np.ceil(3.0 * sigma_B[:, None])] = 0.0
    kernel = np.repeat(kernel / kernel.sum(1, keepdims=True), channels, axis=0)
    weight = torch.as_tensor(kernel, dtype=image_B3HW.dtype, device=image_B3HW.device)
    planes = image_B3HW.reshape(1, batch * channels, height, width)
    planes = F.pad(planes, (radius, radius, radius, radius), mode="reflect")
    planes = F.conv2d(planes, weight[:, None, None, :], groups=batch * channels)
    planes = F.conv2d(planes, weight[:, None, :, None], groups=batch * channels)
    return planes.view(batch, channels, height, width)
