"""The policies of `annotate` against labels of published implementations, from logits and features to the map."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.golden.conftest import Golden
from tutelage.annotate.image_scores import ImageScores
from tutelage.annotate.policies import ClassQuantile, ClassRatio, MixtureLabels, thinned
from tutelage.data.labels import IGNORE
from tutelage.evaluation.protocol import Protocol
from tutelage.prototypes.gaussians import Mixture, Mixtures

CPU = torch.device("cpu")


class Answers:
    """A net that says the same of every image."""

    stride = 1

    def __init__(self, **said: Tensor) -> None:
        self._said = said

    def __call__(self, image: Tensor, /) -> Any:
        return SimpleNamespace(**self._said)


@pytest.mark.parametrize("name", ["class_balanced"])
@pytest.mark.parametrize("rule", ["ratio", "quantile"])
def test_class_balanced(golden: Golden, name: str, rule: str) -> None:
    given = golden(f"uda_baselines/{name}")
    probability = given["probability"]
    classes = probability.shape[-1]
    if rule == "ratio":
        policy, threshold_K, expected = ClassRatio(classes, 0.2), given["class_threshold"], given["pseudo_label"]
    else:
        policy = ClassQuantile(classes, float(given["fda_quantile"]), float(given["fda_cap"]))  # type: ignore[assignment]
        threshold_K, expected = given["fda_threshold"], given["fda_pseudo_label"]
    for probability_HWK, label_HW in zip(probability, expected, strict=True):
        height, width = label_HW.shape
        logits = torch.from_numpy(probability_HWK).float().permute(2, 0, 1)[None].log()
        image = np.zeros((height, width, 3), dtype=np.uint8)
        said = policy.label(ImageScores(Answers(logits=logits), image, Protocol(), CPU), threshold_K.astype(np.float64))
        # A softmax of logarithms gives a probability again up to its last bits: thresholds are one of the pixels' own.
        compared = probability_HWK.astype(np.float64)
        ratio = compared / threshold_K if rule == "ratio" else compared
        first, second = np.sort(ratio, -1)[..., -1], np.sort(ratio, -1)[..., -2]
        bound = 1.0 if rule == "ratio" else threshold_K[probability_HWK.argmax(-1)]
        near = (np.abs(first - bound) < 1e-5) | (first - second < 1e-6)
        wanted = np.where(label_HW > classes, IGNORE, label_HW)
        np.testing.assert_array_equal(np.where(near, 0, thinned(said)), np.where(near, 0, wanted))


@pytest.mark.parametrize("name", ["gmm_pseudo_label"])
def test_gmm_pseudo_label(golden: Golden, name: str) -> None:
    given = golden(f"bismap/{name}")
    allowed = {int(one) for one in given["class_ids"]}
    own = [
        Mixture(*(torch.from_numpy(given[key][class_]).double() for key in ("pi", "mu", "var")))
        if class_ in allowed
        else None
        for class_ in range(len(given["pi"]))
    ]
    mixtures = Mixtures.of(own, [str(class_) for class_ in range(len(own))])
    threshold = float(given["threshold"])
    policy = MixtureLabels(mixtures, CPU, threshold=threshold)
    height, width = (int(side) for side in given["image_size"])
    features = torch.from_numpy(given["features"])
    net = Answers(embedding=features, logits=features)
    image = np.zeros((height, width, 3), dtype=np.uint8)
    said = policy.label(ImageScores(net, image, Protocol(), CPU), np.full(len(own), threshold))
    best = given["max_log_likelihood"]
    second = np.sort(given["log_likelihood"], 0)[-2]
    near = (np.abs(best - threshold) < 1e-3) | (best - second < 1e-3)
    wanted = np.where(given["pseudo_label"] == int(given["ignore_index"]), IGNORE, given["pseudo_label"])
    np.testing.assert_array_equal(np.where(near, 0, thinned(said)), np.where(near, 0, wanted))
