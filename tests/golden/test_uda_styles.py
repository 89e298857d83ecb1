"""Folder uda_baselines: FDA's images and entropy, rare classes, class-balanced pseudo labels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.annotate.exact_quantiles import exact_thresholds, keep_confident
from tests.annotate.exact_ratios import exact_ratio_thresholds, ratio_labels
from tests.golden.compare import assert_gradient, assert_values, labels, tensor
from tests.golden.conftest import Golden
from tutelage.data.rare_classes import class_probabilities
from tutelage.data.stylise import fourier_adapt, window_half
from tutelage.losses.segmentation import cross_entropy
from tutelage.losses.self_training import (
    entropy_regularised_labels,
    even_divergence,
    robust_entropy,
    soft_cross_entropy,
)


@pytest.mark.parametrize("name", ["fda"])
def test_fda(golden: Golden, name: str) -> None:
    """On the file's scale of 0-255; the tolerance is the file's 1e-3 there."""
    file = golden(f"uda_baselines/{name}")
    source, target, beta = tensor(file["source"]), tensor(file["target"]), float(file["beta"])
    assert window_half(beta, (source.shape[2], source.shape[3])) == int(file["window_half"])
    symmetric = fourier_adapt(source, target, beta)
    assert_values(symmetric[0], file["symmetric_output"], relative=0.0, absolute=1e-3)
    corners = fourier_adapt(source, target, beta, "corners")
    assert_values(corners, file["asymmetric_output_real"], relative=0.0, absolute=1e-3)
    phase = torch.fft.fft2(source.double()).angle()
    whole = torch.fft.ifft2(torch.polar(tensor(file["asymmetric_amplitude"]).double(), phase))
    assert_values(corners, whole.real.numpy(), relative=0.0, absolute=1e-3)
    # And in 0..1, as the library has its images: the same, scaled.
    assert_values(255.0 * fourier_adapt(source / 255, target / 255, beta), file["symmetric_output"][None], 0.0, 1e-3)
    for image, key in ((source, "amplitude_source"), (target, "amplitude_target")):
        assert_values(torch.fft.fft2(image).abs(), file[key])


@pytest.mark.parametrize("name", ["entropy_advent"])
def test_robust_entropy(golden: Golden, name: str) -> None:
    """The ``robust_*`` keys, FDA's."""
    file = golden(f"uda_baselines/{name}")
    logits = tensor(file["target_logits"]).requires_grad_()
    loss = robust_entropy(logits, float(file["robust_eta"]), float(file["robust_log_normaliser"]))
    assert_values(loss, file["robust_entropy_loss"], absolute=1e-5)
    assert_gradient(torch.autograd.grad(loss, logits)[0], file["robust_entropy_grad"])


@pytest.mark.parametrize("name", ["rcs"])
def test_rcs(golden: Golden, name: str) -> None:
    file = golden(f"uda_baselines/{name}")
    counts = file["pixel_counts"]
    temperatures = [key.removeprefix("class_prob_t") for key in file if key.startswith("class_prob_t")]
    assert temperatures
    for temperature in temperatures:
        order, expected = file[f"class_order_t{temperature}"], file[f"class_prob_t{temperature}"]
        ours = class_probabilities(counts, float(temperature))
        np.testing.assert_allclose(ours[order], expected, rtol=1e-4, atol=1e-5)
        assert set(np.flatnonzero(counts.sum(0))) == set(order)
        assert ours.sum() == pytest.approx(1.0)


@pytest.mark.parametrize("name", ["class_balanced"])
def test_class_balanced(golden: Golden, name: str) -> None:
    """Thresholds and pseudo labels of CBST."""
    file = golden(f"uda_baselines/{name}")
    probability, prediction = file["probability"], file["prediction"]
    classes = probability.shape[-1]
    images = zip(probability.max(-1), prediction, strict=True)
    threshold = exact_ratio_thresholds(images, classes, float(file["portion"]), int(file["stride"]))
    assert_values(threshold, file["class_threshold"], absolute=1e-5)
    of_file = tensor(file["class_threshold"])
    label, confidence = ratio_labels(tensor(probability).permute(0, 3, 1, 2), of_file)
    assert torch.equal(label, labels(file["pseudo_label"]))
    winners = tensor(probability) / of_file
    assert torch.equal(confidence, tensor(probability).gather(3, winners.argmax(3, keepdim=True))[..., 0])


@pytest.mark.parametrize("name", ["class_balanced"])
def test_regularisers_of_self_training(golden: Golden, name: str) -> None:
    """LRENT's labels and MRKLD's loss (CRST)."""
    file = golden(f"uda_baselines/{name}")
    probability, threshold = tensor(file["probability"]).permute(0, 3, 1, 2), tensor(file["class_threshold"])
    made = entropy_regularised_labels(probability, threshold, float(file["lrent_alpha"]))
    assert_values(made.soft_BKHW.permute(0, 2, 3, 1), file["lrent_soft_label"], absolute=1e-5)
    assert torch.equal(made.hard(), labels(file["lrent_hard_label"]))
    assert torch.isfinite(soft_cross_entropy(torch.zeros_like(probability), *made))

    logits, label = tensor(file["mrkld_logits"]).requires_grad_(), labels(file["mrkld_label"])
    of_target = tensor(file["mrkld_image_weight"]) > 0
    regulariser = even_divergence(logits, (label != 255) & of_target[:, None, None])
    loss = cross_entropy(logits, label) + float(file["mrkld_lambda"]) * regulariser
    if np.isfinite(file["mrkld_loss"]):  # without a single label the published mean has no value
        assert_values(loss, file["mrkld_loss"], absolute=1e-5)
        assert_gradient(torch.autograd.grad(loss, logits)[0], file["mrkld_grad"])
    else:
        assert torch.isfinite(loss)


@pytest.mark.parametrize("name", ["class_balanced"])
def test_class_quantiles_of_fda(golden: Golden, name: str) -> None:
    """The thresholds of FDA's second phase are those of the policy ``class_quantile``."""
    file = golden(f"uda_baselines/{name}")
    confidence, prediction = file["probability"].max(-1), file["prediction"]
    classes = file["probability"].shape[-1]
    found = exact_thresholds(confidence, prediction, classes, float(file["fda_quantile"]), float(file["fda_cap"]))
    assert_values(found.threshold_K, file["fda_threshold"], absolute=1e-5)
    ours = keep_confident(confidence, prediction, file["fda_threshold"].astype(np.float64))
    np.testing.assert_array_equal(ours, file["fda_pseudo_label"])
