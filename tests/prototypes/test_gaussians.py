"""Mixtures: what fitting finds, that it never makes NaN, restarts, absent classes, files."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.errors import raises_code
from tests.prototypes.likelihoods import component_log_density
from tutelage.prototypes import blocks, gaussians
from tutelage.prototypes.gaussians import Fit, Mixture, Mixtures, em, fit_mixture, fit_mixtures
from tutelage.prototypes.means import ClassMeans
from tutelage.prototypes.settings import MixtureSettings

SMALL = MixtureSettings(components=3, tries=5)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(weight: Tensor, mean: Tensor, deviation: Tensor, number: int, seed: int = 0) -> Tensor:
    """Rows of a mixture."""
    which = torch.multinomial(weight, number, replacement=True, generator=generator(seed))
    return mean[which] + deviation[which] * torch.randn(number, mean.shape[1], generator=generator(seed + 1))


MEAN = torch.tensor([[0.0, 0.0, 1.0], [4.0, 0.0, 1.0], [0.0, 4.0, 1.0]])
DEVIATION = torch.tensor([[0.2, 0.3, 0.0], [0.1, 0.6, 0.0], [0.4, 0.2, 0.0]])  # the last channel is constant
WEIGHT = torch.tensor([0.5, 0.3, 0.2])


@pytest.mark.parametrize("start", ["published", "clusters"])
def test_the_parameters_of_a_mixture_are_found(start: str) -> None:
    rows = drawn(WEIGHT, MEAN, DEVIATION, 3000)
    fit = fit_mixture(rows, SMALL.model_copy(update={"start": start}), seed=0)
    order = torch.cdist(MEAN.double(), fit.mixture.mean_MC).argmin(1)
    torch.testing.assert_close(fit.mixture.weight_M[order], WEIGHT.double(), rtol=0, atol=0.05)
    torch.testing.assert_close(fit.mixture.mean_MC[order], MEAN.double(), rtol=0, atol=0.08)
    torch.testing.assert_close(fit.mixture.variance_MC[order], DEVIATION.double().square() + 1e-6, rtol=0.3, atol=1e-8)
    assert fit.restarts == 0
    assert fit.iterations < 30


def test_the_likelihood_is_that_of_the_mixture_and_never_falls() -> None:
    rows = drawn(WEIGHT, MEAN, DEVIATION, 300)
    start = Mixture(torch.full((3,), 1 / 3).double(), rows[:3].double(), torch.ones(3, 3).double())
    before = -math.inf
    for count in range(1, 8):
        fit = em(rows, start, tolerance=-math.inf, iterations=count)
        density = component_log_density(rows, fit.mixture) + fit.mixture.weight_M.log()
        assert fit.log_likelihood == pytest.approx(float(density.logsumexp(1).mean()), rel=1e-9)
        # The variance floor is added in every iteration, so that it may fall by as much as that costs.
        assert fit.log_likelihood > before - 1e-3
        before = fit.log_likelihood


def test_fitting_stops_by_the_published_rule() -> None:
    rows = drawn(WEIGHT, MEAN, DEVIATION, 300)
    start = Mixture(torch.full((3,), 1 / 3).double(), MEAN.double(), torch.ones(3, 3).double())
    curve = [em(rows, start, tolerance=-math.inf, iterations=count).log_likelihood for count in range(1, 20)]
    first = next(i for i in range(1, 19) if curve[i] - curve[i - 1] < 1e-3)
    fit = em(rows, start)
    assert fit.iterations == first + 1
    assert fit.log_likelihood == pytest.approx(curve[first])
    assert em(rows, start, iterations=2).iterations == 2


def test_a_constant_channel_with_a_large_mean_has_the_smallest_variance() -> None:
    """In float32 E[x^2] - mu^2 would be off by 1e-7 mu^2, far more than the variance, or negative."""
    rows = torch.cat([torch.randn(400, 2, generator=generator(0)), torch.full((400, 2), 1234.5)], 1)
    fit = fit_mixture(rows, SMALL, seed=0)
    torch.testing.assert_close(fit.mixture.variance_MC[:, 2:], torch.full((3, 2), 1e-6).double(), rtol=1e-3, atol=0)
    torch.testing.assert_close(fit.mixture.mean_MC[:, 2:], torch.full((3, 2), 1234.5).double(), rtol=1e-9, atol=0)


def test_the_published_number_of_rows_draws_means_towards_0() -> None:
    rows = torch.cat([torch.randn(400, 2, generator=generator(0)), torch.full((400, 2), 12.5)], 1)
    start = Mixture(torch.ones(1).double(), rows[:1].double(), torch.ones(1, 4).double())
    ours, published = (em(rows, start, compat=compat).mixture for compat in ("corrected", "published"))
    torch.testing.assert_close(published.mean_MC, ours.mean_MC * (400 / (400 + 1e-6)), rtol=1e-12, atol=0)
    widened = 1e-6 + 1e-6 / 400 * 12.5**2
    torch.testing.assert_close(published.variance_MC[:, 2:], torch.full((1, 2), widened).double(), rtol=1e-6, atol=0)
    torch.testing.assert_close(ours.variance_MC[:, 2:], torch.full((1, 2), 1e-6).double(), rtol=1e-6, atol=0)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 60),
    channels=st.integers(1, 6),
    distinct=st.integers(1, 60),
    constant=st.integers(0, 6),
    scale=st.sampled_from([1e-8, 1e-3, 1.0, 1e4]),
    offset=st.sampled_from([0.0, -50.0, 3e4]),
    half=st.booleans(),
    compat=st.sampled_from(["corrected", "published"]),
    start=st.sampled_from(["published", "clusters"]),
    precision=st.sampled_from(["float64", "float32"]),
    pilot=st.sampled_from([None, 1, 10]),
    seed=st.integers(0, 999),
)
def test_never_nan(
    rows: int,
    channels: int,
    distinct: int,
    constant: int,
    scale: float,
    offset: float,
    half: bool,
    compat: str,
    start: str,
    precision: str,
    pilot: int | None,
    seed: int,
) -> None:
    values = torch.randn(distinct, channels, generator=generator(seed)) * scale + offset
    values[:, : min(constant, channels)] = offset
    values = values[torch.arange(rows) % distinct]
    if half:
        values = values.clamp(-6e4, 6e4).half()
    how = {"compat": compat, "start": start, "precision": precision, "pilot_rows": pilot}
    fit = fit_mixture(values, MixtureSettings(components=8, tries=3, iterations=20, **how), seed=seed)
    mixture = fit.mixture
    assert math.isfinite(fit.log_likelihood)
    assert all(part.isfinite().all() for part in (mixture.weight_M, mixture.mean_MC, mixture.variance_MC))
    assert (mixture.variance_MC >= 1e-6).all()
    assert float(mixture.weight_M.sum()) == pytest.approx(1.0, abs=1e-4)
    assert component_log_density(values, mixture).isfinite().all()


@pytest.mark.parametrize("start", ["published", "clusters"])
def test_a_pilot_finds_the_same_mixture_with_fewer_passes_over_all_rows(start: str) -> None:
    overlapping = 4 * DEVIATION + torch.tensor([0.0, 0.0, 0.1])
    rows = drawn(WEIGHT, MEAN, overlapping, 4000)
    settings = MixtureSettings(components=3, tries=5, start=start, tolerance=1e-6, iterations=500)
    whole = fit_mixture(rows, settings, seed=0)
    piloted = fit_mixture(rows, settings.model_copy(update={"pilot_rows": 1000}), seed=0)
    assert piloted.iterations < whole.iterations
    assert piloted.log_likelihood == pytest.approx(whole.log_likelihood, abs=1e-3)
    again = fit_mixture(rows, settings.model_copy(update={"pilot_rows": 1000}), seed=0)
    assert torch.equal(again.mixture.mean_MC, piloted.mixture.mean_MC)
    # One of too few rows has as many as there are components.
    assert fit_mixture(rows, settings.model_copy(update={"pilot_rows": 1}), seed=0).mixture.weight_M.shape == (3,)
    # A pilot of all rows, or of more, is none.
    same = fit_mixture(rows, settings.model_copy(update={"pilot_rows": 4000}), seed=0)
    assert torch.equal(same.mixture.mean_MC, whole.mixture.mean_MC)


def test_float32_finds_what_float64_does() -> None:
    rows = torch.cat([drawn(WEIGHT, MEAN, DEVIATION, 3000), torch.full((3000, 1), 1234.5)], 1)
    exact, fast = (
        fit_mixture(rows, SMALL.model_copy(update={"precision": precision}), seed=0)
        for precision in ("float64", "float32")
    )
    assert not torch.equal(exact.mixture.mean_MC, fast.mixture.mean_MC)  # it is another path
    assert fast.iterations == exact.iterations
    assert fast.log_likelihood == pytest.approx(exact.log_likelihood, abs=1e-3)
    torch.testing.assert_close(fast.mixture.mean_MC, exact.mixture.mean_MC, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(fast.mixture.variance_MC, exact.mixture.variance_MC, rtol=1e-3, atol=1e-8)


def test_float32_is_not_used_where_it_is_not_safe() -> None:
    """Two sharp components far apart in one channel: whatever is subtracted, one has terms of 1e12 nats."""
    channel = torch.tensor([0.0, 1234.5]).repeat(200)[:, None]
    rows = torch.cat([channel, torch.randn(400, 2, generator=generator(0))], 1)
    exact, fast = (
        fit_mixture(rows, MixtureSettings(components=2, start="clusters", precision=precision), seed=0).mixture
        for precision in ("float64", "float32")
    )
    assert torch.equal(fast.variance_MC, exact.variance_MC)
    # Rows of float64 may hold more than float32 tells apart.
    far = drawn(WEIGHT, MEAN, DEVIATION, 300).double() + 1e9
    exact, fast = (
        fit_mixture(far, SMALL.model_copy(update={"precision": precision}), seed=0).mixture
        for precision in ("float64", "float32")
    )
    assert torch.equal(fast.mean_MC, exact.mean_MC)


def test_clusters_do_not_depend_on_the_scale() -> None:
    rows = drawn(WEIGHT, MEAN[:, :2], DEVIATION[:, :2], 300)
    settings = MixtureSettings(components=3, start="clusters", variance_floor=1e-300)
    fits = [fit_mixture(scale * rows.double(), settings, seed=0) for scale in (1.0, 2.0**-20)]
    assert fits[0].iterations == fits[1].iterations
    torch.testing.assert_close(fits[1].mixture.mean_MC * 2.0**20, fits[0].mixture.mean_MC)
    torch.testing.assert_close(fits[1].mixture.variance_MC * 2.0**40, fits[0].mixture.variance_MC)


def test_one_sample_is_a_mixture_of_one() -> None:
    fit = fit_mixture(torch.tensor([[1.0, 2.0]]), seed=0)
    assert fit.mixture.mean_MC.shape == (1, 2)
    torch.testing.assert_close(fit.mixture.mean_MC, torch.tensor([[1.0, 2.0]]).double(), rtol=1e-5, atol=0)
    assert fit.mixture.variance_MC.max() < 1e-5


def test_draws_are_keyed_by_seed_and_class() -> None:
    rows = torch.randn(200, 4, generator=generator(0))
    fits = [
        fit_mixture(rows, SMALL, seed=seed, owner=owner) for seed, owner in ((0, "a"), (0, "a"), (1, "a"), (0, "b"))
    ]
    means = [fit.mixture.mean_MC for fit in fits]
    assert torch.equal(means[0], means[1])
    assert not torch.equal(means[0], means[2])
    assert not torch.equal(means[0], means[3])


def test_blocks_change_nothing_but_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = drawn(WEIGHT, MEAN, DEVIATION, 500)
    whole = fit_mixture(rows, SMALL, seed=0)
    monkeypatch.setattr(blocks, "block_length", lambda channels, device: 17)
    cut = fit_mixture(rows, SMALL, seed=0)
    assert cut.iterations == whole.iterations
    torch.testing.assert_close(cut.mixture.mean_MC, whole.mixture.mean_MC)
    torch.testing.assert_close(cut.mixture.variance_MC, whole.mixture.variance_MC)


def test_a_likelihood_that_is_not_finite_starts_again_with_another_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    starts, fitted = [], em

    def fails_twice(rows: Tensor, start: Mixture, **given: object) -> Fit:
        starts.append(start.mean_MC)
        fit = fitted(rows, start, **given)  # type: ignore[arg-type]
        return Fit(fit.mixture, math.nan, 1) if len(starts) < 3 else fit

    monkeypatch.setattr(gaussians, "em", fails_twice)
    rows = torch.randn(100, 4, generator=generator(0))
    fit = fit_mixture(rows, MixtureSettings(components=3, tries=1), seed=0)
    assert fit.restarts == 2
    assert not torch.equal(starts[0], starts[1])
    assert math.isfinite(fit.log_likelihood)


def test_too_many_restarts_are_an_error_that_names_the_class() -> None:
    rows = 1e200 * torch.randn(30, 2, generator=generator(0), dtype=torch.float64)  # their squares overflow
    with raises_code("mixture-diverged", "class 1 (fence)", "4"):
        fit_mixtures([torch.zeros(0, 2), rows], ["road", "fence"], SMALL, seed=0)


def test_features_that_are_not_finite_are_refused_by_name() -> None:
    rows = torch.randn(30, 2)
    rows[7, 1] = math.inf
    with raises_code("features-not-finite", "the bus"):
        fit_mixture(rows, SMALL, seed=0, owner="the bus")


def some() -> Mixtures:
    rows = (drawn(WEIGHT, MEAN, DEVIATION, 100), torch.empty(0, 3), torch.rand(2, 3, generator=generator(1)))
    return fit_mixtures(iter(rows), ["road", "fence", "bus"], SMALL, seed=0)[0]


def test_absent_classes_and_classes_with_fewer_rows_than_components() -> None:
    mixtures = some()
    assert mixtures.present_K.tolist() == [True, False, True]
    assert mixtures.weight_KM.shape == (3, 3)
    assert mixtures.mixture(1) is None
    few = mixtures.mixture(2)
    assert few is not None
    assert few.mean_MC.shape == (2, 3)
    with raises_code("no-mixtures"):
        fit_mixtures([torch.empty(0, 3)], ["road"], seed=0)
    with pytest.raises(ValueError, match="2 mixtures for 1 classes"):
        Mixtures.of([None, None], ["road"])


def test_a_file_holds_everything(tmp_path: Path) -> None:
    mixtures = some()
    for name in ("one", "two"):
        mixtures.save(tmp_path / f"{name}.safetensors", {"seed": 3, "rows": [100, 0, 2]})
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "two.safetensors").read_bytes()
    assert len(list(tmp_path.iterdir())) == 2
    read, facts = Mixtures.load(tmp_path / "one.safetensors")
    assert facts == {"seed": 3, "rows": [100, 0, 2]}
    assert read.classes == mixtures.classes
    for name in ("present_K", "weight_KM", "mean_KMC", "variance_KMC"):
        assert torch.equal(getattr(read, name), getattr(mixtures, name))


def test_a_file_that_is_not_right_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    path = tmp_path / "mixtures.safetensors"
    with raises_code("missing-file", "mixtures"):
        Mixtures.load(path)
    some().save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-8])
    with raises_code("damaged-file"):
        Mixtures.load(path)
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with raises_code("damaged-file", "checksum"):
        Mixtures.load(path)
    ClassMeans(2, 3).save(path, ["road", "bus"])
    with raises_code("file-kind", "mixtures", "class means"):
        Mixtures.load(path)
    path.write_bytes(b"nothing of the kind")
    with raises_code("damaged-file"):
        Mixtures.load(path)
