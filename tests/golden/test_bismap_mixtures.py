"""Folder bismap: mixtures of source features, the labels they give, gathering, and transferability maps."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from tests.golden.compare import assert_values, labels, tensor
from tests.golden.conftest import Golden
from tests.prototypes.likelihoods import component_log_density, image_maps
from tutelage.losses.regions import shrink_labels
from tutelage.losses.segmentation import IGNORE
from tutelage.prototypes.blocks import summary
from tutelage.prototypes.gaussians import Mixture, Mixtures, em
from tutelage.prototypes.kmeans import draw_costs, lloyd
from tutelage.prototypes.likelihood import ABSENT, Scorer
from tutelage.prototypes.means import class_rows, correct_labels
from tutelage.prototypes.transferability import (
    as_bytes,
    cell_distances,
    cell_weights,
    class_bonus,
    running_mean,
    weight_map,
)

NOT_ALLOWED = -99_999_999
PRECISE, COARSE = 1e-6, 1e-3
"""Relative, in float64 and in float32."""


def assert_close(ours: Tensor | float, theirs: NDArray, relative: float) -> None:
    assert_values(ours, theirs, relative, 1e-12)


def mixture(file: dict[str, NDArray], prefix: str = "", number: int | None = None) -> Mixture:
    parts = (file[f"{prefix}{name}"] if number is None else file[name][number] for name in ("pi", "mu", "var"))
    return Mixture(*(tensor(part).double() for part in parts))


@pytest.mark.parametrize("name", ["gmm_em"])
def test_gmm_em(golden: Golden, name: str) -> None:
    file = golden(f"bismap/{name}")
    rows, means = tensor(file["x"]), tensor(file["mu_init"]).double()
    components = int(file["n_components"])
    start = Mixture(means.new_full((components,), 1 / components), means, torch.ones_like(means))
    assert_close((component_log_density(rows, start) - math.log(components)).softmax(1), file["resp_step0"], PRECISE)
    floor = float(file["eps"])
    for key in (key for key in file if key.startswith("pi_after_") and key.endswith("_f64")):
        count = int(key.split("_")[2])
        fit = em(rows, start, tolerance=-math.inf, iterations=count, variance_floor=floor, compat="published")
        assert fit.iterations == count
        ours = (fit.mixture.weight_M, fit.mixture.mean_MC, fit.mixture.variance_MC, fit.log_likelihood)
        for value, part in zip(ours, ("pi", "mu", "var", "mean_log_likelihood"), strict=True):
            assert_close(value, file[f"{part}_after_{count}_f64"], PRECISE)

    fit = em(
        rows,
        start,
        tolerance=float(file["delta"]),
        iterations=int(file["max_iter"]) + 1,
        variance_floor=floor,
        compat="published",
    )
    assert fit.iterations == int(file["fit_iterations"])
    ours = (fit.mixture.weight_M, fit.mixture.mean_MC, fit.mixture.variance_MC, fit.log_likelihood)
    for value, part in zip(ours, ("pi", "mu", "var", "mean_log_likelihood"), strict=True):
        assert_close(value, file[f"fit_{part}"], PRECISE)


@pytest.mark.parametrize("name", ["gmm_em"])
def test_gmm_em_in_float32(golden: Golden, name: str) -> None:
    file = golden(f"bismap/{name}")
    rows, means = tensor(file["x"]).float(), tensor(file["mu_init"]).double()
    start = Mixture(means.new_full((means.shape[0],), 1 / means.shape[0]), means, torch.ones_like(means))
    floor = float(file["eps"])
    for key in (key for key in file if key.startswith("pi_after_") and key.endswith("_f64")):
        count = int(key.split("_")[2])
        fit = em(
            rows,
            start,
            tolerance=-math.inf,
            iterations=count,
            variance_floor=floor,
            compat="published",
            precision="float32",
        )
        ours = (fit.mixture.weight_M, fit.mixture.mean_MC, fit.mixture.variance_MC, fit.log_likelihood)
        for value, part in zip(ours, ("pi", "mu", "var", "mean_log_likelihood"), strict=True):
            assert_close(value, file[f"{part}_after_{count}_f64"], COARSE)


@pytest.mark.parametrize("name", ["gmm_em"])
def test_gmm_em_query(golden: Golden, name: str) -> None:
    file = golden(f"bismap/{name}")
    fitted, query = mixture(file, "fit_"), tensor(file["query"])
    density = component_log_density(query, fitted)
    np.testing.assert_allclose(density, file["query_component_log_prob"], rtol=PRECISE, atol=1e-9)
    assert_close((density + fitted.weight_M.log()).softmax(1), file["query_responsibility"], PRECISE)
    constant = fitted.variance_MC.log().sum(1) + query.shape[1] * math.log(2 * math.pi)
    np.testing.assert_allclose(-2 * density - constant, file["query_mahalanobis_sq"], rtol=PRECISE, atol=1e-9)
    scorer = Scorer(Mixtures.of([fitted], ["one"]))
    np.testing.assert_allclose(scorer.rows(query.double())[:, 0], file["query_log_likelihood"], rtol=PRECISE)
    np.testing.assert_allclose(scorer.rows(query)[:, 0], file["query_log_likelihood"], rtol=1e-3)


@pytest.mark.parametrize("name", ["gmm_kmeans_init"])
@pytest.mark.parametrize(("dtype", "relative"), [(torch.float64, PRECISE), (torch.float32, 1e-3)])
def test_gmm_kmeans_init(golden: Golden, name: str, dtype: torch.dtype, relative: float) -> None:
    file = golden(f"bismap/{name}")
    rows, drawn = tensor(file["x"]).to(dtype), tensor(file["trial_indices"])
    assert tuple(drawn.shape) == (int(file["n_trials"]), int(file["n_components"]))
    known = summary(rows, "the file")
    spread = known.highest - known.lowest
    costs = draw_costs(rows, drawn, known)
    assert_close(costs / spread, file["trial_cost"], relative)
    best = int(costs.argmin())
    assert best == int(file["best_trial"])
    clusters = lloyd(rows, rows[drawn[best]], movement=float(file["min_delta"]) * spread, known=known)
    assert_close(clusters.centres_MC, file["mu"], relative)


@pytest.mark.parametrize("name", ["gmm_pseudo_label"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_gmm_pseudo_label(golden: Golden, name: str, dtype: torch.dtype) -> None:
    file = golden(f"bismap/{name}")
    classes = file["pi"].shape[0]
    allowed = set(file["class_ids"].tolist())
    known = [mixture(file, number=number) if number in allowed else None for number in range(classes)]
    scorer = Scorer(Mixtures.of(known, [str(number) for number in range(classes)]))
    height, width = (int(side) for side in file["image_size"])
    likelihood = image_maps(scorer, tensor(file["features"]).to(dtype), (height, width))
    shown = likelihood.masked_fill(likelihood == torch.tensor(ABSENT, dtype=dtype), NOT_ALLOWED)[0]
    present = sorted(allowed)
    assert (shown[[number for number in range(classes) if number not in allowed]] == NOT_ALLOWED).all()
    assert_close(shown[present], file["log_likelihood"][present], 1e-5)
    best, label = likelihood.max(1)
    assert_close(best[0], file["max_log_likelihood"], 1e-5)
    np.testing.assert_array_equal(label[0], file["argmax_label"])
    kept = label.masked_fill(best < float(file["threshold"]), IGNORE)[0]
    np.testing.assert_array_equal(kept, labels(file["pseudo_label"], int(file["ignore_index"])))


@pytest.mark.parametrize("name", ["feature_gathering"])
def test_feature_gathering(golden: Golden, name: str) -> None:
    file = golden(f"bismap/{name}")
    features, logits = tensor(file["features"]), tensor(file["logits"])
    small = shrink_labels(tensor(file["label"]), (logits.shape[2], logits.shape[3]))
    np.testing.assert_array_equal(small, file["label_small"])
    np.testing.assert_array_equal(correct_labels(logits), file["prediction"])
    rows, label, number = class_rows(features, correct_labels(logits, small), int(file["num_classes"]))
    order = label.argsort(stable=True)
    np.testing.assert_array_equal(rows[order], file["gathered"])
    np.testing.assert_array_equal(label[order], file["gathered_class"])
    assert (number.diff() > 0).all()


@pytest.mark.parametrize("name", ["transferability_map"])
def test_transferability_map(golden: Golden, name: str) -> None:
    file = golden(f"bismap/{name}")
    distance = cell_distances(tensor(file["source_features"]), tensor(file["centers"]))
    assert_close(distance, file["min_distance"], 1e-5)
    scale = running_mean(distance, momentum=float(file["ema_momentum"]))
    assert_close(scale, file["running_mean_distance"], 1e-5)
    # Image by image, as a stage does.
    before = None
    for image, theirs in zip(distance, file["running_mean_distance"], strict=True):
        before = float(running_mean(image[None], momentum=float(file["ema_momentum"]), before=before))
        assert before == pytest.approx(float(theirs), rel=1e-5)
    weight = cell_weights(distance, scale)
    assert_close(weight, file["grid_weight"], 1e-5)
    bonus = class_bonus(tensor(file["class_entropy"]))
    assert_close(bonus, file["class_entropy_normalised"], 1e-9)
    whole = weight_map(weight, tensor(file["label"]), bonus)
    assert_close(whole, file["weight_map"], 1e-5)
    np.testing.assert_array_equal(as_bytes(whole), file["weight_map_uint8"])
