"""Folder kd_baselines: the distillation losses of the CIRKD repository."""

from __future__ import annotations

import pytest
import torch

from tests.golden.compare import assert_gradient, assert_values, tensor
from tests.golden.conftest import Golden
from tutelage.losses.distillation import pixel_kd


@pytest.mark.parametrize("name", ["pixel_kd"])
def test_pixel_kd(golden: Golden, name: str) -> None:
    file = golden(f"kd_baselines/{name}")
    for index in range(sum(key.startswith("temperature_") for key in file)):
        student = tensor(file["student_logits"]).requires_grad_()
        loss = pixel_kd(student, tensor(file["teacher_logits"]), float(file[f"temperature_{index}"]))
        assert_values(loss, file[f"loss_{index}"], absolute=1e-10)
        assert_gradient(torch.autograd.grad(loss, student)[0], file[f"grad_student_logits_{index}"])
