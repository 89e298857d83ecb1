"""Strong colour augmentation on the device, after mixing, so that both parts of a mixed image change alike.

Whether to jitter colours and whether to blur is drawn once per step; the strength is drawn per image.
Source: code of DACS (WACV 2021) and of the DAFormer family.

Legend: B images, H W pixels, 3 channels RGB.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tutelage.data.colour import PLAIN, colour_batch, draw_colour
from tutelage.data.draws import generator
from tutelage.data.settings import ColourSettings


def draw_colours(settings: ColourSettings, seed: int, stream: str, step: int, positions: Iterable[int]) -> NDArray:
    """Draw the colour parameters (B, 6) of the images of one step, as :func:`tutelage.data.colour.draw_colour`."""
    jitter, blur = generator(seed, stream, "coins", step).random(2)
    chances = {"probability": float(jitter < settings.probability), "blur": float(blur < settings.blur)}
    decided = settings.model_copy(update=chances)
    return np.array([draw_colour(decided, seed, stream, position) for position in positions])


def recoloured(image_B3HW: Tensor, colour_B6: NDArray) -> Tensor:
    """Apply colour parameters per image to images (B, 3, H, W) in 0..1; the result is clipped to 0..1, channels last.

    If no image changes, the input is returned.
    """
    if (colour_B6 == PLAIN).all():
        return image_B3HW
    bytes_BHW3 = (image_B3HW * 255.0).permute(0, 2, 3, 1).contiguous()
    return colour_batch(bytes_BHW3.to(torch.float32), colour_B6)
