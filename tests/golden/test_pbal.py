"""Folder pbal: losses, one step of either stage, pseudo labels, and the net's parts with weights of a formula."""

from __future__ import annotations

import math
from itertools import chain

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tests.annotate.exact_quantiles import confidence_histogram, exact_thresholds, keep_confident
from tests.golden.compare import assert_gradient, assert_values, labels, tensor
from tests.golden.conftest import Golden
from tutelage.annotate.class_quantiles import histogram_thresholds
from tutelage.losses.adversarial import SOURCE, TARGET, domain_loss
from tutelage.losses.prototype_contrast import prototype_contrast
from tutelage.losses.regions import shrink_labels
from tutelage.losses.resize import resize_logits
from tutelage.losses.segmentation import cross_entropy
from tutelage.losses.transport import cosine_cost, cosines, pixel_to_prototype, prototype_to_pixel
from tutelage.nets.discriminators import OutputDiscriminator
from tutelage.nets.multigrid_deeplab import Fusion, PlainASPP

Arrays = dict[str, NDArray]
LOSS, GRADIENT = 1e-5, 1e-4


def given(file: Arrays, *names: str) -> list[Tensor]:
    """Inputs whose gradient is asked for."""
    return [tensor(file[name]).requires_grad_() for name in names]


def ignore_of(file: Arrays) -> int:
    return int(file["ignore_index"]) if "ignore_index" in file else 250


def cross_entropy_at_crop(logits_BKhw: Tensor, label_BHW: Tensor) -> Tensor:
    return cross_entropy(resize_logits(logits_BKhw, (label_BHW.shape[1], label_BHW.shape[2]), "corners", 4), label_BHW)


@pytest.mark.parametrize("name", ["bpl"])
def test_both_directions(golden: Golden, name: str) -> None:
    file = golden(f"pbal/{name}")
    weight = tensor(file["classifier_weight"]).requires_grad_()
    assert_values(cosines(tensor(file["feat"]), weight), file["cosine"], LOSS)
    for loss, key in ((pixel_to_prototype, "pixel_to_proto"), (prototype_to_pixel, "proto_to_pixel")):
        logits, features = given(file, "logits", "feat")
        value = loss(logits, cosine_cost(features, weight))
        assert_values(value, file[f"loss_{key}"], LOSS, 0)
        value.backward()
        assert_gradient(logits.grad, file[f"grad_logits_{key}"], GRADIENT)
        assert_gradient(features.grad, file[f"grad_feat_{key}"], GRADIENT)
    assert weight.grad is None


@pytest.mark.parametrize("name", ["bpl_step"])
def test_bidirectional_step(golden: Golden, name: str) -> None:
    file = golden(f"pbal/{name}")
    source, target, features = given(file, "source_logits", "target_logits", "target_feat")
    critic = discriminator(file)
    height, width = (int(side) for side in file["crop_hw"])
    at_crop = [resize_logits(logits, (height, width), "corners", 4) for logits in (source, target)]
    on_source = cross_entropy(at_crop[0], labels(file["source_label"], ignore_of(file)))
    fooling = domain_loss(critic(at_crop[1].softmax(1)), SOURCE)
    cost = cosine_cost(features, tensor(file["classifier_weight"]))
    transport = pixel_to_prototype(target, cost) + prototype_to_pixel(target, cost)
    total = on_source + float(file["lambda_adv"]) * fooling + float(file["lambda_bpl"]) * transport
    for value, key in ((on_source, "source"), (fooling, "adv_g"), (transport, "bpl"), (total, "total")):
        assert_values(value, file[f"loss_{key}"], LOSS, 0)
    for grad, key in zip(
        torch.autograd.grad(total, (source, target, features)),
        ("source_logits", "target_logits", "target_feat"),
        strict=True,
    ):
        assert_gradient(grad, file[f"grad_{key}"], GRADIENT)
    told = sum(
        0.5 * domain_loss(critic(logits.detach().softmax(1)), domain)
        for logits, domain in zip(at_crop, (SOURCE, TARGET), strict=True)
    )
    assert_values(told, file["loss_d"], LOSS, 0)
    told.backward()
    assert_gradient(critic.layers[0].weight.grad, file["grad_d_conv1_weight"], GRADIENT)
    assert_gradient(critic.layers[-1].weight.grad, file["grad_d_classifier_weight"], GRADIENT)


def discriminator(file: Arrays) -> OutputDiscriminator:
    critic = OutputDiscriminator(int(file["num_classes"]), int(file["d_planes"]))
    parts = [*(f"conv{i}" for i in range(1, 5)), "classifier"]
    names = [f"d_{part}_{kind}" for part in parts for kind in ("weight", "bias")]
    critic.load_state_dict({own: tensor(file[key]) for own, key in zip(critic.state_dict(), names, strict=True)})
    return critic


@pytest.mark.parametrize("name", ["proto_contrast"])
def test_contrast(golden: Golden, name: str) -> None:
    file = golden(f"pbal/{name}")
    features, weight = given(file, "feat", "classifier_weight")
    small = shrink_labels(labels(file["labels"], ignore_of(file)), (features.shape[2], features.shape[3]))
    assert torch.equal(small, labels(file["labels_down"], ignore_of(file)))
    temperature = float(file["temperature"])
    loss = prototype_contrast(features, small, weight, temperature)
    assert_values(loss, file["loss"], LOSS, 0)
    valid = prototype_contrast(features, small, weight, temperature, reduction="valid")
    if int(file["num_valid"]):
        assert_values(valid, file["loss_valid_mean"], LOSS, 0)
    else:
        assert float(valid) == 0
    assert int((small != 255).sum()) == int(file["num_valid"])
    assert small.numel() == int(file["num_total"])
    loss.backward()
    assert_gradient(features.grad, file["grad_feat"], GRADIENT)
    assert_gradient(weight.grad, file["grad_classifier_weight"], GRADIENT)


@pytest.mark.parametrize("name", ["pst_step"])
def test_self_training_step(golden: Golden, name: str) -> None:
    file = golden(f"pbal/{name}")
    sides = {"source": "source_label", "target": "target_pseudo_label"}
    (weight,) = given(file, "classifier_weight")
    total = contrast = torch.zeros(())
    inputs: dict[str, Tensor] = {}
    for side, key in sides.items():
        logits, features = given(file, f"{side}_logits", f"{side}_feat")
        label = labels(file[key], ignore_of(file))
        task = cross_entropy_at_crop(logits, label)
        assert_values(task, file[f"loss_{side}"], LOSS, 0)
        small = shrink_labels(label, (features.shape[2], features.shape[3]))
        contrast = contrast + prototype_contrast(features, small, weight, float(file["temperature"]))
        total = total + task
        inputs |= {f"{side}_logits": logits, f"{side}_feat": features}
    assert_values(contrast, file["loss_contrast"], LOSS, 0)
    assert_values(total + contrast, file["loss_total"], LOSS, 0)
    (total + contrast).backward()
    for key, value in {**inputs, "classifier_weight": weight}.items():
        assert_gradient(value.grad, file[f"grad_{key}"], GRADIENT)


@pytest.mark.parametrize("name", ["pseudo_labels"])
def test_pseudo_labels(golden: Golden, name: str) -> None:
    file = golden(f"pbal/{name}")
    classes = int(file["num_classes"])
    probability = file["probabilities"]
    confidence, prediction = probability.max(1), probability.argmax(1)
    np.testing.assert_array_equal(prediction, file["prediction"])
    np.testing.assert_allclose(confidence, file["confidence"], rtol=1e-6)
    for kind in sorted(key.removeprefix("cap_") for key in file if key.startswith("cap_")):
        cap, quantile = float(file[f"cap_{kind}"]), float(file[f"quantile_{kind}"])
        exact = exact_thresholds(confidence, prediction, classes, quantile, cap)
        np.testing.assert_allclose(exact.threshold_K, file[f"thresholds_{kind}"], rtol=1e-12, atol=0)
        np.testing.assert_array_equal(exact.pixels_K, np.bincount(prediction.ravel(), minlength=classes))
        kept = np.stack([keep_confident(*pair, exact.threshold_K) for pair in zip(confidence, prediction, strict=True)])
        np.testing.assert_array_equal(kept, file[f"labels_{kind}"])
        histogram = sum(confidence_histogram(*pair, classes) for pair in zip(confidence, prediction, strict=True))
        binned = histogram_thresholds(histogram, quantile, cap)
        below = exact.threshold_K - binned.threshold_K
        assert ((below >= 0) & (below <= 1 / 4096)).all()
        np.testing.assert_array_equal(binned.pixels_K, exact.pixels_K)


def by_formula(file: Arrays, *modules: nn.Module) -> None:
    """Fill parameters and running statistics as the folder's README says, in the modules' own order."""
    b, c = float(file["formula_b"]), float(file["formula_c"])

    def wave(function: np.ufunc, factor: float, size: int) -> NDArray[np.float64]:
        return function(factor * np.arange(size, dtype=np.float64))

    norms = [one for module in modules for one in module.modules() if isinstance(one, nn.BatchNorm2d)]
    shifted = {id(norm.weight) for norm in norms}
    with torch.no_grad():
        for k, parameter in enumerate(chain.from_iterable(module.parameters() for module in modules)):
            values = 0.05 * np.sin(b * (k + 1) * np.arange(parameter.numel(), dtype=np.float64) + c * k)
            values += id(parameter) in shifted
            parameter.copy_(torch.from_numpy(values).view_as(parameter))
        for m, norm in enumerate(norms, start=1):
            assert math.isclose(norm.eps, 1e-5)
            norm.running_mean.copy_(torch.from_numpy(0.02 * wave(np.sin, b * m, norm.num_features)))
            norm.running_var.copy_(torch.from_numpy(1 + 0.1 * wave(np.cos, b * (m + 1), norm.num_features)))


@pytest.mark.parametrize("name", ["aspp"])
def test_pyramid(golden: Golden, name: str) -> None:
    file = golden(f"pbal/{name}")
    rates = [rate * 16 // int(file["output_stride"]) for rate in (6, 12, 18)]
    pyramid = PlainASPP(int(file["in_channels"]), file["out"].shape[1], rates).eval()
    by_formula(file, pyramid)
    with torch.no_grad():
        assert_values(pyramid(tensor(file["x"])), file["out"], GRADIENT, 0)


@pytest.mark.parametrize("name", ["decoder"])
def test_decoder(golden: Golden, name: str) -> None:
    file = golden(f"pbal/{name}")
    width = file["x"].shape[1]
    fusion = Fusion(file["low_level"].shape[1], width, 1, nn.Dropout(0.1)).eval()
    classifier = nn.Conv2d(width, int(file["num_classes"]), 1)
    by_formula(file, fusion, classifier)
    with torch.no_grad():
        feature = fusion(tensor(file["x"]), tensor(file["low_level"]))
        assert_values(feature, file["feat"], GRADIENT, 0)
        assert_values(classifier(feature), file["logits"], GRADIENT, 0)
