"""cirkd/metric: both conventions of the mean IoU, and pixel accuracy, on three images."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.golden.conftest import Golden
from tutelage.evaluation.confusion import Confusion, counts_of


def counted(prediction: np.ndarray, labels: np.ndarray, ignore: int, num_classes: int) -> Confusion:
    """One image after the other, as an evaluation does."""
    confusion = Confusion(num_classes)
    for guess, truth in zip(prediction, np.where(labels == ignore, 255, labels), strict=True):
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
