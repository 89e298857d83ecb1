"""Folder semi_baselines: what of it stands so far (sliding windows, Mean Teacher, moving averages)."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.golden.compare import assert_gradient, assert_values, labels, tensor
from tests.golden.conftest import Golden
from tutelage.evaluation.inference import predict_logits
from tutelage.evaluation.protocol import Protocol
from tutelage.evaluation.windows import coverage, grid, padded_size
from tutelage.losses.distillation import probability_mse
from tutelage.losses.segmentation import cross_entropy
from tutelage.methods.ema import average, decay_at


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


@pytest.mark.parametrize("name", ["mean_teacher"])
def test_mean_teacher(golden: Golden, name: str) -> None:
    file = golden(f"semi_baselines/{name}")
    students = [tensor(file[f"student_{part}"]).requires_grad_() for part in "lu"]
    label = labels(file["target_l"])
    supervised = cross_entropy(students[0], label)
    teachers = torch.cat([tensor(file[f"teacher_{part}"]) for part in "lu"])
    consistency = float(file["w_consistency"]) * probability_mse(torch.cat(students), teachers)
    assert_values(supervised, file["loss_sup"], absolute=1e-4)
    assert_values(consistency, file["loss_consistency_weighted"], absolute=1e-4)
    assert_values(supervised + consistency, file["loss_total"], absolute=1e-4)
    gradients = torch.autograd.grad(supervised + consistency, students)
    for gradient, part in zip(gradients, "lu", strict=True):
        assert_gradient(gradient, file[f"grad_student_{part}"])


@pytest.mark.parametrize("name", ["ema"])
def test_ema(golden: Golden, name: str) -> None:
    """Integer buffers are copied here; the published code averages and truncates them (specification, 7.11)."""
    file = golden(f"semi_baselines/{name}")

    def net(prefix: str) -> nn.Module:
        values = {key.removeprefix(prefix): tensor(value) for key, value in file.items() if key.startswith(prefix)}
        module = nn.Module()
        for key, value in values.items():
            if "running" in key or "num_batches" in key:
                module.register_buffer(key, value.clone())
            else:
                module.register_parameter(key, nn.Parameter(value))
        return module

    teacher = net("ema_before_")
    for index, iteration in enumerate(file["iterations"]):
        decay = decay_at(int(iteration), float(file["max_ratio"]), ramp=True)
        assert decay == pytest.approx(float(file[f"ratio{index}"]), rel=1e-6)
        student = net(f"student{index}_")
        average(teacher, student, decay, buffers="average")
        for key, value in teacher.state_dict().items():
            expected = student.state_dict()[key].numpy() if "num_batches" in key else file[f"ema_after{index}_{key}"]
            assert_values(value, expected, absolute=1e-4)
