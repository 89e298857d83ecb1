"""Policies against brute force: thresholds from histograms, labels by ratio, by quantile and by mixtures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.annotate.exact_quantiles import exact_thresholds, keep_confident
from tests.annotate.exact_ratios import exact_ratio_thresholds, ratio_labels
from tests.annotate.nets import ColourNet, write_dataset
from tests.annotate.test_pseudo_labels import contents, maps, read
from tests.prototypes.likelihoods import image_maps, quantile_thresholds
from tutelage.annotate.image_scores import ImageScores
from tutelage.annotate.policies import (
    BINS,
    ClassQuantile,
    ClassRatio,
    MixtureLabels,
    Policy,
    likelihood_edges,
    likelihood_thresholds,
    lowest_float32,
    ratio_thresholds,
)
from tutelage.annotate.pseudo_labels import Written, annotate
from tutelage.data.dataset import Dataset
from tutelage.data.labels import IGNORE
from tutelage.data.pseudo_labels import PseudoLabelFolder
from tutelage.errors import TutelageError
from tutelage.evaluation.protocol import Protocol
from tutelage.prototypes.gaussians import Mixture, Mixtures
from tutelage.prototypes.likelihood import Scorer

CPU = torch.device("cpu")
CLASSES = 4


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return write_dataset(tmp_path)


def run(dataset: Dataset, root: Path, policy: Policy, protocol: Protocol | None = None) -> Written:
    given = {"device": CPU, "protocol": protocol or Protocol(resize="centers"), "producer": "key.student"}
    written = annotate(ColourNet(), dataset, root, policy=policy, **given)
    assert written is not None
    return written


def probabilities(dataset: Dataset, index: int) -> Tensor:
    """(1, K, H, W), written out."""
    image = torch.from_numpy(dataset.image(index).copy()).permute(2, 0, 1)[None].float() / 255
    logits = torch.nn.functional.interpolate(ColourNet()(image).logits, scale_factor=2.0, mode="bilinear")
    return logits.softmax(1)


def surest(dataset: Dataset) -> list[tuple[np.ndarray, np.ndarray]]:
    """Confidence and class (H, W) of every image."""
    highest = [probabilities(dataset, index)[0].max(0) for index in range(len(dataset))]
    return [(one.values.numpy(), one.indices.numpy()) for one in highest]


def pooled(pairs: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    confidence, prediction = zip(*pairs, strict=True)
    return np.concatenate([one.ravel() for one in confidence]), np.concatenate([one.ravel() for one in prediction])


# By class and quantile


@pytest.mark.parametrize(("quantile", "cap"), [(0.5, 0.9), (0.66, 0.9), (0.2, 1.0), (0.0, 0.5), (1.0, 1.0)])
def test_class_quantiles_are_those_of_sorted_confidences(
    dataset: Dataset, tmp_path: Path, quantile: float, cap: float
) -> None:
    written = run(dataset, tmp_path / "out", ClassQuantile(CLASSES, quantile, cap))
    pairs = surest(dataset)
    exact = exact_thresholds(*pooled(pairs), CLASSES, quantile, cap)
    assert (written.threshold_K <= exact.threshold_K + 1e-6).all()
    assert (written.threshold_K >= exact.threshold_K - 1 / BINS - 1e-6).all()
    np.testing.assert_array_equal(written.said_K, exact.pixels_K)
    for (confidence, prediction), (label, _) in zip(pairs, maps(dataset, tmp_path / "out"), strict=True):
        near = np.abs(confidence - exact.threshold_K[prediction]) < 2 / BINS
        expected = keep_confident(confidence, prediction, exact.threshold_K)
        np.testing.assert_array_equal(np.where(near, 0, label), np.where(near, 0, expected))
        assert near.mean() < 0.1


def test_a_bound_that_is_no_float32_is_compared_exactly() -> None:
    draw = np.random.default_rng(0)
    bounds = np.array([0.9, 0.1, 1 / 3, 0.5, 1.0, 0.0, -np.inf, *draw.random(100)])
    lowest = lowest_float32(bounds, CPU).numpy()
    np.testing.assert_array_equal(lowest.astype(np.float64) >= bounds, True)
    with np.errstate(invalid="ignore"):
        below = np.nextafter(lowest, np.float32(-np.inf)).astype(np.float64) < bounds
    np.testing.assert_array_equal(below | np.isneginf(bounds), True)


# By ratio


@pytest.mark.parametrize("portion", [0.05, 0.2, 0.5, 1.0])
def test_class_ratios_are_those_of_sorted_confidences(dataset: Dataset, tmp_path: Path, portion: float) -> None:
    written = run(dataset, tmp_path / "out", ClassRatio(CLASSES, portion))
    exact_K = exact_ratio_thresholds(surest(dataset), CLASSES, portion)
    assert (written.threshold_K <= exact_K + 1e-6).all()
    assert (written.threshold_K >= exact_K - 1 / BINS - 1e-6).all()
    assert written.threshold_K[3] == 1.0, "of a class that no pixel shows"
    for index, (label, confidence) in enumerate(maps(dataset, tmp_path / "out")):
        probability = probabilities(dataset, index)
        expected, sure = ratio_labels(probability, torch.from_numpy(written.threshold_K))
        ratio = (probability[0] / torch.from_numpy(written.threshold_K)[:, None, None]).sort(0).values
        near = ((ratio[-1] - 1).abs() < 1e-5) | (ratio[-1] - ratio[-2] < 1e-5)
        assert near.float().mean() < 0.2
        np.testing.assert_array_equal(np.where(near, 0, label), np.where(near, 0, expected[0]))
        assert np.abs(np.where(near, 0, confidence - 255 * sure[0].numpy())).max() <= 0.51


def test_a_class_that_is_hardly_ever_sure_wins_pixels(dataset: Dataset) -> None:
    class Net:
        stride = 1

        def __call__(self, image: Tensor, /) -> SimpleNamespace:
            probability = torch.tensor([[0.6, 0.4], [0.96, 0.04], [0.8, 0.2]]).T[None, :, None, :]
            return SimpleNamespace(logits=probability.log())

    image, threshold_K = np.zeros((1, 3, 3), dtype=np.uint8), np.array([0.9, 0.3])
    said = ClassRatio(2, 0.2).label(ImageScores(Net(), image, Protocol(), CPU), threshold_K)
    assert said.label_HW.tolist() == [[1, 0, 0]]
    assert said.kept_HW is not None
    assert said.kept_HW.tolist() == [[True, True, False]]
    assert said.confidence_HW.tolist() == [[102, 245, 204]]
    named, sure = ClassRatio(2, 0.2).judge(Net()(torch.zeros(0)).logits, threshold_K)
    assert (named[0].tolist(), sure[0].tolist()) == ([[1, 0, 0]], [[True, True, False]])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("portion", [0.01, 0.2, 0.77, 1.0])
def test_ratio_thresholds_keep_every_rank(seed: int, portion: float) -> None:
    """Of confidences that are lower ends of bins the histogram loses nothing; histograms of parts add up."""
    draw = np.random.default_rng(seed)
    level = draw.integers(0, 64, 500)
    prediction = np.where(draw.random(500) < 0.004, 3, draw.integers(0, 3, 500))
    histogram = sum(
        np.bincount(prediction[part] * 64 + level[part], minlength=5 * 64).reshape(5, 64)
        for part in np.array_split(np.arange(500), 7)
    )
    exact = exact_ratio_thresholds([(level / 64, prediction)], 5, portion)
    found = ratio_thresholds(histogram, portion)
    np.testing.assert_array_equal(found.threshold_K, exact)
    np.testing.assert_array_equal(found.pixels_K, np.bincount(prediction, minlength=5))


# By mixtures


@pytest.fixture
def mixtures() -> Mixtures:
    """Two Gaussians for each of three colours; the fourth class has none."""
    draw = torch.Generator().manual_seed(0)
    own = [
        Mixture(
            torch.tensor([0.3, 0.7], dtype=torch.float64),
            torch.rand(2, 3, generator=draw, dtype=torch.float64),
            0.02 + 0.1 * torch.rand(2, 3, generator=draw, dtype=torch.float64),
        )
        for _ in range(3)
    ]
    return Mixtures.of([*own, None], ("red", "green", "blue", "never"))


def likelihoods(dataset: Dataset, mixtures: Mixtures, score_at: str, flip: bool = False) -> list[Tensor]:
    result = []
    for index in range(len(dataset)):
        image = torch.from_numpy(dataset.image(index).copy()).permute(2, 0, 1)[None].float() / 255
        features = ColourNet()(image).embedding
        if flip:
            features = (features + ColourNet()(image.flip(-1)).embedding.flip(-1)) / 2
        result.append(image_maps(Scorer(mixtures), features, (image.shape[2], image.shape[3]), score_at))
    return result


@pytest.mark.parametrize("score_at", ["image", "feature"])
@pytest.mark.parametrize("flip", [False, True])
def test_mixtures_label_what_is_likely_in_nats(
    dataset: Dataset, tmp_path: Path, mixtures: Mixtures, score_at: str, flip: bool
) -> None:
    policy = MixtureLabels(mixtures, CPU, threshold=0.5, score_at=score_at)  # type: ignore[arg-type]
    written = run(dataset, tmp_path / "out", policy, Protocol(flip=flip))
    assert not (tmp_path / "out" / "thresholds.json").exists(), "no first look"
    found = zip(likelihoods(dataset, mixtures, score_at, flip), maps(dataset, tmp_path / "out"), strict=True)
    kept = 0
    for likelihood, (label, confidence) in found:
        value, best = likelihood.max(1)
        expected = best.masked_fill(value < 0.5, IGNORE)[0].numpy()
        near = ((value[0] - 0.5).abs() < 1e-4) | (likelihood[0].sort(0).values[-2:].diff(dim=0)[0] < 1e-4)
        np.testing.assert_array_equal(np.where(near, 0, label), np.where(near, 0, expected))
        posterior = likelihood[0].softmax(0).max(0).values.numpy()
        assert np.abs(confidence - 255 * posterior).max() <= 0.6
        kept += int((label != IGNORE).sum())
    assert 0 < kept < written.said_K.sum()
    assert written.said_K[3] == 0, "a class without a mixture is never said"
    assert written.kept_K.sum() == kept


@pytest.mark.parametrize("per_class", [True, False])
@pytest.mark.parametrize("quantile", [0.0, 0.3, 0.9])
def test_mixtures_leave_out_a_quantile(
    dataset: Dataset, tmp_path: Path, mixtures: Mixtures, quantile: float, per_class: bool
) -> None:
    written = run(dataset, tmp_path / "out", MixtureLabels(mixtures, CPU, quantile=quantile, per_class=per_class))
    best = [one.max(1) for one in likelihoods(dataset, mixtures, "image")]
    label, value = torch.cat([one.indices.flatten() for one in best]), torch.cat([one.values.flatten() for one in best])
    exact = quantile_thresholds(value, label, CLASSES, quantile, per_class=per_class).numpy()
    assert np.isneginf(written.threshold_K[3])
    gap = exact[:3] - written.threshold_K[:3]
    assert (gap > -1e-4).all()
    assert (gap < 0.05).all(), "a bin"
    if per_class:
        share = written.kept_K[:3] / written.said_K[:3]
        assert np.abs(share - (1 - quantile)).max() < 0.06
    assert written.kept_K.sum() / written.said_K.sum() == pytest.approx(1 - quantile, abs=0.05)


@pytest.mark.parametrize("per_class", [True, False])
def test_likelihood_thresholds_keep_every_rank(per_class: bool) -> None:
    draw = np.random.default_rng(0)
    level, label = draw.integers(20_000, 50_000, 300), draw.integers(0, 3, 300)
    histogram = np.bincount(label * BINS + level, minlength=4 * BINS).reshape(4, BINS)
    value = torch.from_numpy(likelihood_edges()[level])
    for quantile in (0.0, 0.25, 0.5, 1.0):
        exact = quantile_thresholds(value, torch.from_numpy(label), 4, quantile, per_class=per_class)
        found = likelihood_thresholds(histogram, quantile, per_class)
        np.testing.assert_array_equal(found.threshold_K, exact.numpy())


def test_the_scale_of_log_likelihoods() -> None:
    edges = likelihood_edges().astype(np.float64)
    assert len(edges) == BINS
    step = np.diff(edges)
    assert (step > 0).all()
    for value, width in ((0.0, 0.021), (100.0, 0.04), (-1000.0, 0.34)):
        assert step[np.searchsorted(edges, value) - 1] < width


def test_mixtures_of_other_features_are_refused(dataset: Dataset, tmp_path: Path) -> None:
    one = Mixture(torch.ones(1).double(), torch.zeros(1, 5).double(), torch.ones(1, 5).double())
    other = Mixtures.of([one, None, None, None], ("red", "green", "blue", "never"))
    with pytest.raises(TutelageError) as refused:
        run(dataset, tmp_path / "out", MixtureLabels(other, CPU, threshold=0.0))
    assert refused.value.code == "fit-of-other-net"


# What is told


def test_a_quantile_of_what_is_like_nothing_is_doubted(dataset: Dataset, tmp_path: Path, mixtures: Mixtures) -> None:
    """A variance a million times too small: half of the pixels are labelled all the same, and that is said."""
    narrow = replace(mixtures, variance_KMC=1e-6 * mixtures.variance_KMC)
    for way, policy, doubted in (
        ("narrow", MixtureLabels(narrow, CPU, quantile=0.5), True),
        ("wide", MixtureLabels(mixtures, CPU, quantile=0.5), False),
        ("nats", MixtureLabels(narrow, CPU, threshold=0.0), False),  # which rejects such pixels
    ):
        said: list[str] = []
        annotate(
            ColourNet(),
            dataset,
            tmp_path / way,
            policy=policy,
            device=CPU,
            protocol=Protocol(),
            producer="key",
            say=said.append,
        )
        found = [line for line in said if "features differ" in line]
        assert bool(found) == doubted, (way, said)
        assert all("warning: class" in line and "variance_floor" in line for line in found)


def test_what_is_kept_of_each_class_is_told_and_stored(dataset: Dataset, tmp_path: Path) -> None:
    told: list[str] = []
    written = annotate(
        ColourNet(),
        dataset,
        tmp_path / "out",
        policy=ClassQuantile(CLASSES, 0.5, 0.9),
        device=CPU,
        protocol=Protocol(resize="centers"),
        producer="key.student",
        say=told.append,
    )
    assert written is not None
    share = 100 * written.kept_K[0] / written.said_K[0]
    assert f"red {share:.1f} %" in told[0]
    assert "never -" in told[0]
    assert told[1:] == ["  warning: class never got no pseudo label: no pixel shows it"]
    manifest = (tmp_path / "out" / "pseudo_labels.json").read_text()
    assert '"never": {\n      "kept": 0,\n      "said": 0,\n      "share": null' in manifest
    kept = np.zeros(CLASSES, dtype=np.int64)
    for sample in dataset.samples:
        kept += np.bincount(read(PseudoLabelFolder(tmp_path / "out").label(sample.name)).ravel(), minlength=256)[:4]
    np.testing.assert_array_equal(written.kept_K, kept)
    assert not list((tmp_path / "out").glob("images-*"))
    assert "survey" not in {path.split("/")[0] for path in contents(tmp_path / "out")}


def test_a_class_of_which_nothing_is_sure_enough(dataset: Dataset, tmp_path: Path, mixtures: Mixtures) -> None:
    told: list[str] = []
    annotate(
        ColourNet(),
        dataset,
        tmp_path / "out",
        policy=MixtureLabels(mixtures, CPU, threshold=1e5),
        device=CPU,
        protocol=Protocol(),
        producer="key.student",
        say=told.append,
    )
    assert any("class red got no pseudo label: none of its" in line and "threshold 1e+05" in line for line in told)
    assert "  warning: class never got no pseudo label: no pixel shows it" in told
