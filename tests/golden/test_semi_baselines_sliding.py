"""semi_baselines/sliding_window: the windows of UniMatch V1 (cut off), UniMatch V2 and U2PL (moved back)."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.golden.conftest import Golden
from tutelage.evaluation.inference import predict_logits
from tutelage.evaluation.protocol import Protocol
from tutelage.evaluation.windows import coverage, grid, padded_size


class PositionNet:
    """A convolution whose result also depends on the place in the window."""

    stride = 1

    def __init__(self, file: dict[str, np.ndarray]) -> None:
        self.weight = torch.from_numpy(file["w_conv"])
        self.position = torch.from_numpy(file["w_position"])

    def __call__(self, image: Tensor, /) -> SimpleNamespace:
        height, width = image.shape[-2:]
        padding = self.weight.shape[-1] // 2
        return SimpleNamespace(logits=F.conv2d(image, self.weight, padding=padding) + self.position[:, :height, :width])


def protocol_of(file: dict[str, np.ndarray], border: str, blend: str, rounding: str) -> Protocol:
    crop = int(file["crop"])
    step = math.ceil(crop * 2 / 3) if rounding == "up" else math.floor(crop * 2 / 3)
    return Protocol.model_validate(
        {
            "kind": "sliding",
            "window": [crop, crop],
            "stride": [step, step],
            "border": border,
            "blend": blend,
            "fill": [0, 0, 0],
        }
    )


@pytest.mark.parametrize(("border", "expected"), [("truncated", "sum_prob_truncated"), ("shifted", "sum_prob_shifted")])
def test_sum_of_probabilities(golden: Golden, border: str, expected: str) -> None:
    file = golden("semi_baselines/sliding_window")
    image = torch.from_numpy(file["image"])
    protocol = protocol_of(file, border, "probabilities", "down")
    mean = predict_logits(PositionNet(file), image, protocol).exp().numpy()
    height, width = image.shape[-2:]
    assert padded_size(height, width, protocol) == (height, width)
    down, across = (
        coverage(length, windows, "uniform")
        for length, windows in zip((height, width), grid(height, width, protocol), strict=True)
    )
    np.testing.assert_allclose(mean * down[:, None] * across, file[expected], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("image", "expected"), [("image", "mean_logits_shifted"), ("small_image", "mean_logits_small")]
)
def test_mean_of_logits(golden: Golden, image: str, expected: str) -> None:
    file = golden("semi_baselines/sliding_window")
    protocol = protocol_of(file, "shifted", "logits", "up")
    logits = predict_logits(PositionNet(file), torch.from_numpy(file[image]), protocol)
    np.testing.assert_allclose(logits[0].numpy(), file[expected], rtol=1e-4, atol=1e-4)
