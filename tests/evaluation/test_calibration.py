"""Calibration against its definition, bin by bin."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

import tutelage.torchvision_operators  # noqa: F401  (before torchmetrics, which imports torchvision)
from tests.errors import raises_code
from tutelage.evaluation.calibration import Calibration, fit_temperature


def pixels(seed: int, batch: int = 2, classes: int = 4, height: int = 9, width: int = 11) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(batch, classes, height, width, generator=generator)
    label = torch.randint(0, classes, (batch, height, width), generator=generator)
    label = torch.where(torch.rand(label.shape, generator=generator) < 0.5, logits.argmax(1), label)
    return logits, label.masked_fill(torch.rand(label.shape, generator=generator) < 0.2, 255)


def by_hand(logits: Tensor, label: Tensor, bins: int) -> tuple[np.ndarray, float, float]:
    probability = logits.softmax(1)
    confidence, prediction = (values[label != 255].double().numpy() for values in probability.max(1))
    right = prediction == label[label != 255].numpy()
    table = np.zeros((bins, 3))
    for index in range(bins):
        inside = (confidence > index / bins) & (confidence <= (index + 1) / bins)
        table[index] = confidence[inside].sum(), right[inside].sum(), inside.sum()
    error = np.abs(table[:, 0] - table[:, 1]).sum() / len(confidence)
    likelihood = torch.nn.functional.cross_entropy(logits, label, ignore_index=255).item()
    return table, float(error), likelihood


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_definition(bins: int) -> None:
    from torchmetrics.classification import MulticlassCalibrationError

    logits, label = pixels(0)
    table, error, likelihood = by_hand(logits, label, bins)
    metric = Calibration(bins)
    metric.update(logits, label)
    np.testing.assert_allclose(metric.table, table, rtol=1e-5)
    scores = metric.scores()
    assert scores.error == pytest.approx(error, rel=1e-5)
    assert scores.negative_log_likelihood == pytest.approx(likelihood, rel=1e-5)
    reference = MulticlassCalibrationError(4, n_bins=bins, ignore_index=255)
    assert scores.error == pytest.approx(reference(logits, label).item(), rel=1e-4)
    filled = table[:, 2] > 0
    np.testing.assert_allclose(scores.accuracy[filled], table[filled, 1] / table[filled, 2], rtol=1e-5)
    assert np.isnan(scores.confidence[~filled]).all()
    assert scores.largest_gap == pytest.approx(np.nanmax(np.abs(scores.confidence - scores.accuracy)))


def test_streaming_and_log_probabilities() -> None:
    logits, label = pixels(1, batch=3)
    together, first = Calibration(), Calibration()
    together.update(logits, label)
    first.update(logits[:2], label[:2].to(torch.uint8))
    first.update(logits[2:].log_softmax(1), label[2:])
    torch.testing.assert_close(first.table, together.table, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(first.likelihood, together.likelihood, rtol=1e-6, atol=1e-6)
    in_rows = Calibration()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tutelage.evaluation.bands._BAND_BYTES", 1000)
        in_rows.update(logits, label)
    torch.testing.assert_close(in_rows.table, together.table, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(in_rows.likelihood, together.likelihood, rtol=1e-6, atol=1e-6)


def test_sure_and_certain_pixels_fall_into_the_end_bins() -> None:
    metric = Calibration()
    even, certain = torch.zeros(100), torch.zeros(100)
    certain[1] = 1000.0
    metric.update(torch.stack([even, certain], 1)[None, :, None], torch.tensor([[[5, 1]]]))
    assert metric.table[0].tolist() == pytest.approx([0.01, 0, 1])
    assert metric.table[-1].tolist() == [1, 1, 1]


def test_nothing_labelled() -> None:
    metric = Calibration()
    logits, label = pixels(0)
    metric.update(logits, torch.full_like(label, 255))
    metric.update(logits[:0], label[:0])
    assert math.isnan(metric.scores().error)
    with raises_code("no-labels"):
        fit_temperature(logits, torch.full_like(label, 255))


def test_what_does_not_fit() -> None:
    logits, label = pixels(0)
    with raises_code("shape-mismatch"):
        Calibration().update(logits, label[:, 1:])
    with raises_code("invalid-value", "bins"):
        Calibration(0)


@pytest.mark.parametrize("true_temperature", [0.3, 1.0, 2.5, 20.0])
def test_temperature_is_found(true_temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    calm = torch.randn(20000, 5, generator=generator) * 2
    label = torch.multinomial(calm.softmax(1), 1, generator=generator)[:, 0]
    label[::7] = 255
    found = fit_temperature(calm * true_temperature, label)
    assert found == pytest.approx(true_temperature, rel=0.05)

    def likelihood(temperature: float) -> float:
        loss = torch.nn.functional.cross_entropy(
            calm.double() * true_temperature / temperature, label, ignore_index=255
        )
        return loss.item()

    assert likelihood(found) < min(likelihood(found * 1.01), likelihood(found / 1.01))


def test_temperature_of_the_flawless_and_the_hopeless() -> None:
    logits = torch.eye(3).repeat(4, 1)
    label = torch.arange(3).repeat(4)
    assert 0.01 <= fit_temperature(logits, label) < 0.03
    assert 30 < fit_temperature(-logits, label) <= 100
    picture = logits.view(1, 3, 4, 3).permute(0, 3, 1, 2)
    assert fit_temperature(picture, label.view(1, 3, 4)) < 0.03
