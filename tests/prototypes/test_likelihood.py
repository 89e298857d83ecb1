"""Scoring: equal to the broadcast form in float64, exact where variances are tiny, in any blocks; labels and shares."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Normal

from tests.prototypes.likelihoods import image_maps
from tutelage.prototypes import likelihood
from tutelage.prototypes.gaussians import Mixtures
from tutelage.prototypes.likelihood import (
    ABSENT,
    Scorer,
)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some(seed: int = 0, classes: int = 4, components: int = 3, channels: int = 12, dead: float = 0.0) -> Mixtures:
    """Random mixtures; the share ``dead`` of all channels of components is 0 with the smallest variance."""
    given = generator(seed)
    shape = (classes, components, channels)
    mean = 2 * torch.rand(shape, generator=given, dtype=torch.float64)
    variance = 0.02 + 0.3 * torch.rand(shape, generator=given, dtype=torch.float64)
    off = torch.rand(shape, generator=given) < dead
    weight = torch.rand(classes, components, generator=given, dtype=torch.float64) + 0.1
    return Mixtures(
        tuple("abcdefgh"[:classes]),
        torch.ones(classes, dtype=torch.bool),
        weight / weight.sum(1, keepdim=True),
        mean.masked_fill(off, 0.0),
        variance.masked_fill(off, 1e-6),
    )


def broadcast(mixtures: Mixtures, rows: Tensor) -> Tensor:
    """(N, K) with every term of every component."""
    terms = Normal(mixtures.mean_KMC, mixtures.variance_KMC.sqrt()).log_prob(rows.double()[:, None, None])
    joint = terms.sum(3) + mixtures.weight_KM.log()
    return joint.logsumexp(2).masked_fill(~mixtures.present_K, ABSENT)


def rows_of(mixtures: Mixtures, number: int, seed: int = 1) -> Tensor:
    given = generator(seed)
    classes, components, channels = mixtures.mean_KMC.shape
    which = (torch.randint(classes, (number,), generator=given), torch.randint(components, (number,), generator=given))
    noise = torch.randn(number, channels, generator=given, dtype=torch.float64)
    return mixtures.mean_KMC[which] + noise * mixtures.variance_KMC[which].sqrt()


@pytest.mark.parametrize("dead", [0.0, 0.4])
def test_it_is_the_likelihood(dead: float) -> None:
    mixtures = some(dead=dead)
    rows = rows_of(mixtures, 200)
    scorer = Scorer(mixtures)
    torch.testing.assert_close(scorer.rows(rows), broadcast(mixtures, rows), rtol=1e-9, atol=1e-6)
    rows32 = rows.float()
    torch.testing.assert_close(scorer.rows(rows32).double(), broadcast(mixtures, rows32), rtol=1e-5, atol=1e-3)


def test_dead_units_are_exact_in_float32_without_float64_channels() -> None:
    mixtures = some(dead=0.5, channels=64)
    scorer = Scorer(mixtures)
    assert scorer.stiff == 0
    rows = rows_of(mixtures, 100).float()
    best = broadcast(mixtures, rows).max(1)
    found = scorer.rows(rows).max(1)
    torch.testing.assert_close(found.values.double(), best.values, rtol=0, atol=2e-3)
    assert torch.equal(found.indices, best.indices)


def test_tiny_variances_at_different_places_are_exact_in_float32() -> None:
    """The expanded square in float32 would cost about 0.1 nat a channel here."""
    mixtures = some(channels=64)
    mixtures = Mixtures(
        mixtures.classes,
        mixtures.present_K,
        mixtures.weight_KM,
        mixtures.mean_KMC + 3,
        mixtures.variance_KMC * 0 + 1e-6,
    )
    scorer = Scorer(mixtures)
    assert scorer.stiff == 64
    rows = rows_of(mixtures, 100).float()
    best = broadcast(mixtures, rows).max(1).values
    torch.testing.assert_close(scorer.rows(rows).max(1).values.double(), best, rtol=0, atol=1e-3)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 999),
    dead=st.sampled_from([0.0, 0.5, 1.0]),
    scale=st.sampled_from([0.0, 1.0, 1e10, 1e30, math.inf]),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
)
def test_never_nan(seed: int, dead: float, scale: float, dtype: torch.dtype) -> None:
    features = torch.randn(1, 12, 3, 2, generator=generator(seed), dtype=torch.float64)
    features = (features.sign() * scale if scale == math.inf else features * scale).to(dtype)
    found = Scorer(some(seed, dead=dead)).maps(features)
    assert found.isfinite().all()
    assert (found > ABSENT).all()


def test_an_absent_class_is_never_assigned() -> None:
    mixtures = some()
    mixtures.present_K[1] = False
    scorer = Scorer(mixtures)
    far = torch.full((1, 12, 2, 2), 1e14)
    for score_at in ("image", "feature"):
        likelihood = image_maps(scorer, far, (5, 7), score_at)
        assert (likelihood[:, 1] == torch.tensor(ABSENT)).all()
        assert (likelihood.argmax(1) != 1).all()


def test_a_class_with_fewer_components() -> None:
    mixtures = some()
    mixtures.weight_KM[2] = torch.tensor([1.0, 0.0, 0.0])
    mixtures.mean_KMC[2, 1:], mixtures.variance_KMC[2, 1:] = 0.0, 1.0
    rows = rows_of(mixtures, 50)
    torch.testing.assert_close(Scorer(mixtures).rows(rows), broadcast(mixtures, rows), rtol=1e-9, atol=1e-6)


@pytest.mark.parametrize("size", [(9, 13), (1, 1), (33, 5), (4, 6)])
@pytest.mark.parametrize("block", [1 << 21, 1])
def test_maps_at_the_image_are_those_of_resized_features(
    size: tuple[int, int], block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(likelihood, "_CPU", block)
    mixtures = some(dead=0.3)
    features = rows_of(mixtures, 2 * 4 * 6).float().view(2, 4, 6, 12).movedim(-1, 1)
    scorer = Scorer(mixtures)
    resized = F.interpolate(features, size, mode="bilinear", align_corners=True)
    whole = scorer.rows(resized.movedim(1, -1).flatten(0, 2)).view(2, *size, 4).movedim(-1, 1)
    torch.testing.assert_close(image_maps(scorer, features, size), whole, rtol=1e-4, atol=1e-3)
    cheap = F.interpolate(scorer.maps(features), size, mode="bilinear", align_corners=True)
    torch.testing.assert_close(image_maps(scorer, features, size, "feature"), cheap)
    with pytest.raises(ValueError, match="score_at"):
        image_maps(scorer, features, size, "elsewhere")


def test_autocast_does_not_round() -> None:
    mixtures = some()
    features = rows_of(mixtures, 6).float().view(1, 2, 3, 12).movedim(-1, 1)
    scorer = Scorer(mixtures)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = scorer.maps(features)
    assert torch.equal(inside, scorer.maps(features))


def test_other_channels_are_refused() -> None:
    with pytest.raises(ValueError, match=r"12 channels.* got 5"):
        Scorer(some()).rows(torch.zeros(3, 5))
