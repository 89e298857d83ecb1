"""Mixtures of Gaussians with a variance a channel, fitted to the features of a class (BiSMAP's anisotropic prototypes).

Expectation and maximisation read the rows once an iteration, in blocks: with y = x - shift, a block [y, y^2] times the
parameters gives log-densities, responsibilities times the same block give both moments. No tensor of rows x components
x channels exists. All of it is float64 by default: a variance of 1e-6 beside a mean of 3 is lost in float32, which
takes little more than half the time. It is safe where each channel is shifted to the mean of its sharpest component and
no component lies too many of its own deviations from there; `precision: float32` checks before each iteration whether
that is so.

Legend: K classes, M components, N rows, n rows of a block, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tutelage.errors import TutelageError
from tutelage.prototypes.blocks import Summary, blocks, summary
from tutelage.prototypes.kmeans import draw_costs, draw_rows, kmeans, lloyd
from tutelage.prototypes.settings import MIXTURES_KIND, Compat, MixtureSettings, Precision
from tutelage.prototypes.storage import load_tensors, save_tensors

_LOG_2PI = math.log(2 * math.pi)
_FLOAT32_NATS = 1e4
"""Terms of a log-density may be as large in float32: their rounding is then about 1e-3 nats."""


@dataclass(frozen=True)
class Mixture:
    """Weights (M) that sum to about 1, means and variances (M, C); float64."""

    weight_M: Tensor
    mean_MC: Tensor
    variance_MC: Tensor


@dataclass(frozen=True)
class Fit:
    """A mixture and how it was come by."""

    mixture: Mixture
    log_likelihood: float
    """Mean over the rows, in nats, of the mixture as it is."""

    iterations: int
    """Over all rows; those of a pilot are not counted."""

    restarts: int = 0


def em(
    rows_NC: Tensor,
    start: Mixture,
    *,
    tolerance: float = 1e-3,
    iterations: int = 101,
    variance_floor: float = 1e-6,
    compat: Compat = "corrected",
    precision: Precision = "float64",
    known: Summary | None = None,
) -> Fit:
    """Expectation-maximisation on rows (N, C) of any float type, from ``start``.

    Stops when an iteration adds less than ``tolerance`` nats to the mean log-likelihood (never before the first), or
    after ``iterations``; the last parameters are kept. A likelihood that is not finite ends it: see ``log_likelihood``.
    ``precision``: that of the products; ``float32`` holds only where it is safe, and for rows of no more.
    Source: BiSMAP's code, with its formulas rearranged so that nothing is cancelled.
    """
    mean_C = (known or summary(rows_NC, "a mixture")).mean_C
    if rows_NC.dtype == torch.float64:
        precision = "float64"
    mixture, before = start, -math.inf
    for done in range(iterations + 1):
        # The E step of the next iteration gives the likelihood after this one: the stop rule needs no pass of its own.
        shift_C, dtype = _shift(mixture, mean_C, precision)
        likelihood, count_M, first_MC, second_MC = _expect(rows_NC, mixture, shift_C, dtype, moments=done < iterations)
        if done and (done == iterations or not math.isfinite(likelihood) or likelihood - before < tolerance):
            break
        before = likelihood if done else -math.inf
        mixture = _maximise(count_M, first_MC, second_MC, shift_C, rows_NC.shape[0], variance_floor, compat)
    return Fit(mixture, likelihood, done)


def fit_mixture(
    rows_NC: Tensor, settings: MixtureSettings | None = None, *, seed: int, owner: str = "the class"
) -> Fit:
    """The mixture of one class's rows (N, C): first parameters by k-means, then :func:`em`.

    Draws are keyed by ``seed`` and ``owner``. TutelageError, naming ``owner``, for no rows, rows that are not finite,
    or a likelihood that is not finite in any of the restarts. Source: BiSMAP, 3.2 of our specification.
    """
    settings = settings or MixtureSettings()
    known = summary(rows_NC, owner)
    pilot = max(settings.pilot_rows or rows_NC.shape[0], settings.components)
    for attempt in range(1 + settings.restarts):
        if pilot >= rows_NC.shape[0]:
            first = _first(rows_NC, settings, seed=seed, owner=owner, attempt=attempt, known=known)
        else:
            (drawn,) = draw_rows(rows_NC.shape[0], pilot, 1, seed=seed, owner=f"{owner}, pilot")
            pilot_nC = rows_NC[drawn.to(rows_NC.device)]
            first = _first(pilot_nC, settings, seed=seed, owner=owner, attempt=attempt, known=known)
            first = _fitted(pilot_nC, first, settings, known).mixture
        fit = _fitted(rows_NC, first, settings, known)
        if math.isfinite(fit.log_likelihood):
            return Fit(fit.mixture, fit.log_likelihood, fit.iterations, attempt)
    raise TutelageError(
        "mixture-diverged",
        f"the mixture of {owner} has no finite likelihood after {1 + settings.restarts} attempts "
        f"({rows_NC.shape[0]} rows from {known.lowest:.3g} to {known.highest:.3g})",
        "check that the net did not diverge (large features overflow), or fit fewer components",
    )


def _first(
    rows_NC: Tensor, settings: MixtureSettings, *, seed: int, owner: str, attempt: int, known: Summary
) -> Mixture:
    """The parameters that EM starts from, by the setting ``start``."""
    components = min(settings.components, rows_NC.shape[0])
    movement = settings.movement * (known.highest - known.lowest)
    if settings.start == "published":
        drawn = draw_rows(rows_NC.shape[0], components, settings.tries, seed=seed, owner=owner, attempt=attempt)
        best = drawn[int(draw_costs(rows_NC, drawn, known).argmin())].to(rows_NC.device)
        means = lloyd(rows_NC, rows_NC[best], movement=movement, known=known).centres_MC
        return Mixture(means.new_full((components,), 1.0 / components), means, torch.ones_like(means))
    means = kmeans(rows_NC, components, seed=seed, owner=f"{owner}, {attempt}", movement=movement).centres_MC
    return of_clusters(rows_NC, means, known.mean_C, settings.variance_floor)


def _fitted(rows_NC: Tensor, first: Mixture, settings: MixtureSettings, known: Summary) -> Fit:
    return em(
        rows_NC,
        first,
        tolerance=settings.tolerance,
        iterations=settings.iterations,
        variance_floor=settings.variance_floor,
        compat=settings.compat,
        precision=settings.precision,
        known=known,
    )


def of_clusters(rows_NC: Tensor, centres_MC: Tensor, shift_C: Tensor, variance_floor: float) -> Mixture:
    """Weights, means and variances of the rows nearest to each centre. Rows and centres are shifted by ``shift_C``."""
    centred_MC = centres_MC.to(shift_C) - shift_C
    half_M1 = 0.5 * centred_MC.square().sum(1)[:, None]
    number_M1 = torch.arange(centred_MC.shape[0], device=shift_C.device)[:, None]
    count_M = shift_C.new_zeros(centred_MC.shape[0])
    moment_M2C = shift_C.new_zeros(centred_MC.shape[0], 2 * shift_C.shape[0])
    for _, both_n2C in blocks(rows_NC, shift_C, torch.float64, squares=True):
        nearest_n = torch.addmm(-half_M1, centred_MC, both_n2C[:, : shift_C.shape[0]].T).argmax(0)
        member_Mn = (nearest_n == number_M1).double()
        count_M += member_Mn.sum(1)
        moment_M2C.addmm_(member_Mn, both_n2C)
    first_MC, second_MC = moment_M2C.tensor_split(2, 1)
    return _maximise(count_M, first_MC, second_MC, shift_C, rows_NC.shape[0], variance_floor, "corrected")


def _linear(mixture: Mixture, shift_C: Tensor) -> tuple[Tensor, Tensor]:
    """ln N_m(x) = constant + weight [y, y^2] with y = x - shift."""
    mean_MC = mixture.mean_MC - shift_C
    precision_MC = mixture.variance_MC.reciprocal()
    constant_M = -0.5 * ((mean_MC.square() * precision_MC) + mixture.variance_MC.log() + _LOG_2PI).sum(1)
    return torch.cat([mean_MC * precision_MC, -0.5 * precision_MC], 1), constant_M


def _shift(mixture: Mixture, mean_C: Tensor, precision: Precision) -> tuple[Tensor, torch.dtype]:
    """The shift of the rows before products (C), float64, and the dtype of these."""
    if precision == "float32":
        sharpest_1C = mixture.variance_MC.argmin(0, keepdim=True)
        shift_C = mixture.mean_MC.gather(0, sharpest_1C)[0].float().double()
        apart_MC = (mixture.mean_MC - shift_C).square() / mixture.variance_MC
        if float(apart_MC.sum(1).max()) <= _FLOAT32_NATS:  # false for NaN
            return shift_C, torch.float32
    return mean_C, torch.float64


def _expect(
    rows_NC: Tensor, mixture: Mixture, shift_C: Tensor, dtype: torch.dtype, moments: bool
) -> tuple[float, Tensor, Tensor, Tensor]:
    """The mean log-likelihood, and the sums over rows of r (M), r y and r y^2 (M, C), r being responsibilities."""
    weight_M2C, constant_M = _linear(mixture, shift_C)
    likelihood = constant_M.new_zeros(())
    count_M = torch.zeros_like(constant_M)
    moment_M2C = torch.zeros_like(weight_M2C)
    constant_M1 = (constant_M + mixture.weight_M.log())[:, None].to(dtype)
    weight_M2C = weight_M2C.to(dtype)
    for _, both_n2C in blocks(rows_NC, shift_C, dtype, squares=True):
        joint_Mn = torch.addmm(constant_M1, weight_M2C, both_n2C.T)
        evidence_n = joint_Mn.logsumexp(0)
        likelihood += evidence_n.sum(dtype=torch.float64)
        if moments:
            responsibility_Mn = joint_Mn.sub_(evidence_n).exp_()
            count_M += responsibility_Mn.sum(1, dtype=torch.float64)
            moment_M2C += responsibility_Mn @ both_n2C
    first_MC, second_MC = moment_M2C.tensor_split(2, 1)
    return float(likelihood) / rows_NC.shape[0], count_M, first_MC, second_MC


def _maximise(
    count_M: Tensor, first_MC: Tensor, second_MC: Tensor, shift_C: Tensor, rows: int, floor: float, compat: Compat
) -> Mixture:
    """The M step from the sums of r, r y and r y^2.

    Published: n = sum r + eps, mu = sum r x / n, var = sum r x^2 / n - 2 mu sum r x / n + mu^2 + eps, pi = n / rows.
    With a = sum r / n and the weighted mean m and variance V of the rows this is mu = a m and
    var = a V + a (1 - a) m^2 + eps, where nothing is cancelled but V, on shifted rows in float64. Corrected: a = 1.
    """
    safe_M1 = count_M.clamp(min=torch.finfo(count_M.dtype).tiny)[:, None]
    centred_MC = first_MC / safe_M1
    mean_MC = centred_MC + shift_C
    variance_MC = (second_MC / safe_M1 - centred_MC.square()).clamp(min=0)
    if compat == "published":
        share_M1 = (count_M / (count_M + floor))[:, None]
        rest_M1 = (floor / (count_M + floor))[:, None]
        variance_MC = share_M1 * (variance_MC + rest_M1 * mean_MC.square())
        mean_MC = share_M1 * mean_MC
        count_M = count_M + floor
    return Mixture(count_M / rows, mean_MC, variance_MC + floor)


@dataclass(frozen=True)
class Mixtures:
    """The mixtures of all classes. A class without one (``present`` false) can never be assigned.

    Components that a class does not have carry the weight 0, the mean 0 and the variance 1.
    """

    classes: tuple[str, ...]
    present_K: Tensor
    weight_KM: Tensor
    mean_KMC: Tensor
    variance_KMC: Tensor

    @staticmethod
    def of(mixtures: Sequence[Mixture | None], classes: Sequence[str]) -> Mixtures:
        """Put the mixtures of all classes together, in order; None for a class that has none.

        TutelageError where no class has one; ValueError where the numbers of channels or names differ.
        """
        if len(mixtures) != len(classes):
            raise ValueError(f"{len(mixtures)} mixtures for {len(classes)} classes")
        known = [mixture for mixture in mixtures if mixture is not None]
        if not known:
            raise TutelageError(
                "no-mixtures",
                "no class has a mixture",
                "check that the net predicts some source pixels as they are labelled",
            )
        if len({mixture.mean_MC.shape[1] for mixture in known}) > 1:
            raise ValueError("the mixtures of the classes differ in their number of channels")
        components = max(mixture.weight_M.shape[0] for mixture in known)
        like = known[0].mean_MC
        shape = (len(mixtures), components)
        weight, mean = like.new_zeros(shape), like.new_zeros(*shape, like.shape[1])
        variance = torch.ones_like(mean)
        for number, mixture in enumerate(mixtures):
            if mixture is not None:
                own = mixture.weight_M.shape[0]
                weight[number, :own] = mixture.weight_M
                mean[number, :own] = mixture.mean_MC
                variance[number, :own] = mixture.variance_MC
        present = torch.tensor([mixture is not None for mixture in mixtures], device=like.device)
        return Mixtures(tuple(classes), present, weight, mean, variance)

    def mixture(self, number: int) -> Mixture | None:
        """The mixture of class ``number``, without the components that it does not have; None if it has none."""
        if not bool(self.present_K[number]):
            return None
        own = self.weight_KM[number] > 0
        return Mixture(self.weight_KM[number][own], self.mean_KMC[number][own], self.variance_KMC[number][own])

    def save(self, path: Path, facts: dict[str, Any] | None = None) -> None:
        """Write a safetensors file, atomically, with names, a checksum and JSON-able ``facts``.

        Equal mixtures give equal bytes.
        """
        tensors = {
            "present": self.present_K,
            "weight": self.weight_KM,
            "mean": self.mean_KMC,
            "variance": self.variance_KMC,
        }
        save_tensors(path, MIXTURES_KIND, tensors, {"classes": list(self.classes), "facts": facts or {}})

    @staticmethod
    def load(path: Path) -> tuple[Mixtures, dict[str, Any]]:
        """The mixtures in a file, on the CPU, and the facts beside them; needs nothing but the file.

        TutelageError for a file that is missing, damaged, of another kind or from a newer tutelage.
        """
        tensors, about = load_tensors(path, MIXTURES_KIND)
        names = ("present", "weight", "mean", "variance")
        return Mixtures(tuple(about["classes"]), *(tensors[name] for name in names)), dict(about["facts"])


def fit_mixtures(
    rows: Iterable[Tensor], classes: Sequence[str], settings: MixtureSettings | None = None, *, seed: int
) -> tuple[Mixtures, list[Fit | None]]:
    """One mixture a class from the rows (N, C) of each, in order, and how it was fitted; None for a class without rows.

    ``rows`` may be a generator: one class is held at a time. TutelageError as for :func:`fit_mixture`.
    """
    fits = [
        fit_mixture(own, settings, seed=seed, owner=f"class {number} ({name})") if own.shape[0] else None
        for number, (own, name) in enumerate(zip(rows, classes, strict=True))
    ]
    return Mixtures.of([fit.mixture if fit else None for fit in fits], classes), fits
