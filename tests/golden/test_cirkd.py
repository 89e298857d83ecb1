"""Folder cirkd: what of it stands so far (metric, pixel KD, task loss, rate)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.golden.compare import assert_gradient, assert_values, labels, tensor
from tests.golden.conftest import Golden
from tutelage.engine.settings import ScheduleSettings
from tutelage.evaluation.confusion import Confusion, counts_of
from tutelage.losses.distillation import pixel_kd
from tutelage.losses.resize import resize_logits
from tutelage.losses.segmentation import cross_entropy


def counted(prediction: np.ndarray, truths: np.ndarray, ignore: int, num_classes: int) -> Confusion:
    """One image after the other, as an evaluation does."""
    confusion = Confusion(num_classes)
    for guess, truth in zip(prediction, np.where(truths == ignore, 255, truths), strict=True):
        confusion.update(torch.from_numpy(guess), torch.from_numpy(truth))
    return confusion


@pytest.mark.parametrize("name", ["metric"])
def test_cirkd(golden: Golden, name: str) -> None:
    file = golden(f"cirkd/{name}")
    ignore, num_classes = int(file["ignore_label"]), int(file["num_classes"])
    confusion = counted(file["logits"].argmax(1), file["labels"], ignore, num_classes)
    counts = counts_of(confusion.matrix).numpy()
    np.testing.assert_array_equal(counts[:, 0], file["intersection"])
    np.testing.assert_array_equal(counts.sum(1), file["union"])
    scores = confusion.scores()
    assert scores.absent == int((file["union"] == 0).sum())
    assert scores.miou_all == pytest.approx(float(file["miou_published"]), rel=1e-4, abs=1e-6)
    if scores.absent < num_classes:
        assert scores.miou == pytest.approx(float(file["miou_present_classes"]), rel=1e-4, abs=1e-6)
        assert scores.pixel_accuracy == pytest.approx(float(file["pixel_accuracy"]), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("name", ["metric"])
def test_published_pixel_accuracy_is_that_of_truncated_logits(golden: Golden, name: str) -> None:
    file = golden(f"cirkd/{name}")
    truncated = file["logits"].astype(np.int64).argmax(1)
    confusion = counted(truncated, file["labels"], int(file["ignore_label"]), int(file["num_classes"]))
    accuracy = np.nan_to_num(confusion.scores().pixel_accuracy)
    assert accuracy == pytest.approx(float(file["pixel_accuracy_published"]), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("name", ["pixel_kd"])
def test_pixel_kd(golden: Golden, name: str) -> None:
    file = golden(f"cirkd/{name}")
    student = tensor(file["student_logits"]).requires_grad_()
    loss = pixel_kd(student, tensor(file["teacher_logits"]), float(file["temperature"]))
    assert_values(loss, file["loss"])
    assert_gradient(torch.autograd.grad(loss, student)[0], file["grad_student_logits"])


@pytest.mark.parametrize("name", ["task_loss"])
def test_task_loss(golden: Golden, name: str) -> None:
    file = golden(f"cirkd/{name}")
    logits, auxiliary = (tensor(file[key]).requires_grad_() for key in ("logits", "aux_logits"))
    label = labels(file["labels"], int(file["ignore_label"]))
    size = (label.shape[1], label.shape[2])
    upsampled = resize_logits(logits, size, "corners", 1)
    assert_values(upsampled, file["upsampled_logits"])
    main = cross_entropy(upsampled, label)
    beside = cross_entropy(resize_logits(auxiliary, size, "corners", 1), label)
    total = main + float(file["aux_weight"]) * beside
    for ours, key in ((main, "loss_main"), (beside, "loss_aux"), (total, "loss_total")):
        assert_values(ours, file[key])
    for gradient, key in zip(torch.autograd.grad(total, (logits, auxiliary)), ("logits", "aux_logits"), strict=True):
        assert_gradient(gradient, file[f"grad_total_{key}"])


@pytest.mark.parametrize("name", ["poly_lr"])
def test_poly_lr(golden: Golden, name: str) -> None:
    file = golden(f"cirkd/{name}")
    schedule = ScheduleSettings(kind="poly", power=float(file["power"]))
    factors = [schedule.factor(int(step), int(file["max_iterations"])) for step in file["iterations"]]
    assert_values(torch.tensor(factors) * float(file["base_lr"]), file["lr"], absolute=1e-9)
