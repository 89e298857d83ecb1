"""BiSMAP's mixtures: fitting and scoring, against the published broadcast form and against another library's fit.

The published E and M steps are transcribed here with their tensors of rows x components x channels. scikit-learn, which
nothing else needs, is measured where it is installed. Everything runs in a process of its own, for its peak of memory,
on one thread, and times are seconds of the processor: other work on the machine disturbs them least.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import in_process, one_thread, peak_since, ratio_line
from tutelage.engine.allocator import keep_freed_memory
from tutelage.engine.meter import peak_memory
from tutelage.prototypes.gaussians import Mixture, Mixtures, em, fit_mixture
from tutelage.prototypes.likelihood import Scorer
from tutelage.prototypes.settings import MixtureSettings

CHANNELS, COMPONENTS, CLASSES = 256, 8, 19
ROWS, POSITIONS = 300_000, (1024 // 4) * (2048 // 4)
PILOT = 30_000  # a tenth of the rows
ITERATIONS = {"published": 1, "ours": 5, "sklearn": 5}
FLOOR = 1e-6
CPU = torch.device("cpu")


def features(rows: int, channels: int, seed: int = 0) -> Tensor:
    """Rows like those after a ReLU: twelve overlapping kinds, in each of which a third of all units is always 0."""
    given = torch.Generator().manual_seed(seed)
    kinds = 12
    mean = torch.randn(kinds, channels, generator=given)
    alive = (torch.rand(kinds, channels, generator=given) > 1 / 3).float()
    kind = torch.randint(kinds, (rows,), generator=given)
    result = torch.randn(rows, channels, generator=given)
    return result.add_(mean[kind]).mul_(alive[kind]).relu_()


def answers(rows: int, channels: int, seed: int = 0) -> Tensor:
    """Rows like a layer's answers to twelve hidden factors, in four groups; a tenth of all units is always 0.

    Components overlap, so that a fit takes tens of iterations; on `features` it takes three.
    """
    given = torch.Generator().manual_seed(seed)
    hidden = 12
    factor = torch.randn(rows, hidden, generator=given)
    factor += torch.randn(4, hidden, generator=given)[torch.randint(4, (rows,), generator=given)]
    weight = torch.randn(hidden, channels, generator=given) / math.sqrt(hidden)
    bias = torch.randn(channels, generator=given) - 0.5
    alive = (torch.rand(channels, generator=given) > 0.1).float()
    result = 0.2 * torch.randn(rows, channels, generator=given)
    return result.addmm_(factor, weight).add_(bias).mul_(alive).relu_()


def start(rows: Tensor, dtype: torch.dtype) -> Mixture:
    """The same first parameters for everyone."""
    means = rows[:COMPONENTS].to(dtype)
    return Mixture(torch.full((COMPONENTS,), 1 / COMPONENTS, dtype=dtype), means, torch.ones_like(means))


def published_density(rows: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """ln N_k(x) as published: the square is expanded on rows x components x channels."""
    x, mu, precision = rows[:, None], mean[None], 1 / variance[None]
    mahalanobis = ((mu * mu + x * x - 2 * x * mu) * precision).sum(2)
    return -0.5 * (rows.shape[1] * math.log(2 * math.pi) + mahalanobis + variance.log().sum(1))


def published_iteration(rows: Tensor, old: Mixture) -> tuple[Mixture, float]:
    """E, M and the likelihood afterwards, as published."""
    joint = published_density(rows, old.mean_MC, old.variance_MC) + old.weight_M.log()
    responsibility = (joint - joint.logsumexp(1, keepdim=True)).exp()[:, :, None]
    x = rows[:, None]
    count = responsibility.sum(0) + FLOOR
    mean = (responsibility * x).sum(0) / count
    squared = (responsibility * (x * x)).sum(0) / count
    crossed = (responsibility * mean[None] * x).sum(0) / count
    variance = squared - 2 * crossed + mean * mean + FLOOR
    new = Mixture(count[:, 0] / rows.shape[0], mean, variance)
    return new, float((published_density(rows, mean, variance) + new.weight_M.log()).logsumexp(1).mean())


def fit(way: str, small: bool) -> dict[str, Any]:
    """Seconds of one iteration of EM on float32 rows; the likelihood it reaches; peak memory."""
    rows = features(2000 if small else ROWS, 16 if small else CHANNELS)
    count = 2 if small else ITERATIONS[way]
    reached: Mixture

    def run() -> Mixture:
        if way == "published":
            mixture = start(rows, torch.float32)
            for _ in range(count):
                mixture, _ = published_iteration(rows, mixture)
            return mixture
        if way == "ours":
            first = start(rows, torch.float64)
            return em(
                rows, first, tolerance=-math.inf, iterations=count, variance_floor=FLOOR, precision="float32"
            ).mixture
        first = start(rows, torch.float32)
        theirs = _sklearn().GaussianMixture(
            COMPONENTS,
            covariance_type="diag",
            tol=0.0,
            reg_covar=FLOOR,
            max_iter=count,
            init_params="random",
            weights_init=first.weight_M.numpy(),
            means_init=first.mean_MC.numpy(),
            precisions_init=first.variance_MC.numpy(),
        )
        theirs.fit(rows.numpy())
        parts = (theirs.weights_, theirs.means_, theirs.covariances_)
        return Mixture(*(torch.from_numpy(part).double() for part in parts))

    if way == "sklearn":
        _sklearn()  # its import is not measured
    before = peak_since()
    times = []
    for _ in range(1 if way == "published" else 2):
        began = time.process_time()
        reached = run()
        times.append((time.process_time() - began) / count)
    peak = peak_memory(CPU) - before
    result = {"times": times, "mib": peak, "likelihood": _likelihood(rows, reached)}
    if way == "ours":  # as far as the published form goes
        once = em(
            rows, start(rows, torch.float64), iterations=2 if small else ITERATIONS["published"], variance_floor=FLOOR
        )
        result["first"] = _likelihood(rows, once.mixture)
    return result


def _likelihood(rows: Tensor, found: Mixture) -> float:
    """The mean log-likelihood of some of the rows, in float64 for everyone."""
    exact = Mixture(found.weight_M.double(), found.mean_MC.double(), found.variance_MC.double())
    return float(Scorer(Mixtures.of([exact], ["all"])).rows(rows[:20_000].double()).mean())


def whole_fit(way: str, small: bool) -> dict[str, Any]:
    """Seconds of a whole fit, first means included, until an iteration adds less than 1e-3 nats."""
    rows = answers(2000 if small else ROWS, 16 if small else CHANNELS)
    if way == "sklearn":
        _sklearn()
    before = peak_since()
    began = time.process_time()
    if way == "ours":
        settings = MixtureSettings(
            components=COMPONENTS, start="clusters", pilot_rows=200 if small else PILOT, precision="float32"
        )
        found = fit_mixture(rows, settings, seed=0)
        mixture, iterations = found.mixture, found.iterations
    else:
        theirs = _sklearn().GaussianMixture(
            COMPONENTS, covariance_type="diag", tol=1e-3, reg_covar=FLOOR, max_iter=101, random_state=0
        )
        theirs.fit(rows.numpy())
        iterations = int(theirs.n_iter_)
        mixture = Mixture(
            *(torch.from_numpy(part).double() for part in (theirs.weights_, theirs.means_, theirs.covariances_))
        )
    spent = time.process_time() - began
    peak = peak_memory(CPU) - before
    return {"times": [spent], "mib": peak, "likelihood": _likelihood(rows, mixture), "iterations": iterations}


def score(way: str, small: bool) -> dict[str, Any]:
    """Seconds to score one image's features under the mixtures of all classes, after one warm-up."""
    positions, channels = (500, 16) if small else (POSITIONS, CHANNELS)
    parts = [_parameters(features(64, channels, seed)) for seed in range(CLASSES)]
    mixtures = Mixtures.of(parts, [str(number) for number in range(CLASSES)])
    image = features(positions, channels).T.contiguous()[None, :, None]  # (1, C, 1, P): as a net gives it
    scorer = Scorer(mixtures)
    weight, mean, variance = (t.float() for t in (mixtures.weight_KM, mixtures.mean_KMC, mixtures.variance_KMC))

    def ours() -> Tensor:
        return scorer.maps(image)[0, :, 0]

    def published() -> Tensor:
        rows = image[0, :, 0].T.contiguous()
        per_class = [
            (published_density(rows, mean[number], variance[number]) + weight[number].log()).logsumexp(1)
            for number in range(CLASSES)
        ]
        return torch.stack(per_class)

    run: Callable[[], Tensor] = ours if way == "ours" else published
    if way == "ours":
        run()
    before = peak_since()
    times = []
    for _ in range(3 if way == "ours" else 1):
        began = time.process_time()
        likelihood = run()
        times.append(time.process_time() - began)
    peak = peak_memory(CPU) - before
    best = likelihood.max(0)
    return {"times": times, "mib": peak, "likelihood": float(best.values.double().mean())}


def _parameters(rows: Tensor) -> Mixture:
    """Some mixture of the rows' kind: moments of groups of eight."""
    groups = rows.double().view(COMPONENTS, -1, rows.shape[1])
    weight = torch.full((COMPONENTS,), 1 / COMPONENTS, dtype=torch.float64)
    return Mixture(weight, groups.mean(1), groups.var(1, correction=0) + 1e-2)


def _sklearn() -> Any:
    """The module of its mixtures; ImportError where it is not installed."""
    return importlib.import_module("sklearn.mixture")


def _others() -> list[str]:
    try:
        _sklearn()
    except ImportError:
        return ["published"]
    return ["published", "sklearn"]


@one_thread()
def main(small: bool = False) -> None:
    """Print the table."""
    size = ("--small",) if small else ()
    print(f"\n## Mixtures of Gaussians ({ROWS:,} rows x {CHANNELS} channels, {COMPONENTS} components)\n")
    print("| what | other | tutelage | ratio | range | memory, other | memory, tutelage | log-likelihoods |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    others = _others()
    for what, name in (
        ("fit", "one iteration of EM"),
        ("whole_fit", "a whole fit from k-means++ clusters, until an iteration adds 1e-3 nats"),
        ("score", f"scoring {POSITIONS:,} positions, {CLASSES} x {COMPONENTS} components"),
    ):
        ours = in_process("benchmarks.mixtures", what, "ours", *size)
        for other in others:
            if (what, other) in (("whole_fit", "published"), ("score", "sklearn")):
                continue
            theirs = in_process("benchmarks.mixtures", what, other, *size)
            number = min(len(theirs["times"]), len(ours["times"]))
            line = ratio_line(f"{name}, {other}", theirs["times"][:number], ours["times"][:number])
            mine = ours["first"] if (what, other) == ("fit", "published") else ours["likelihood"]
            values = f"{theirs['likelihood']:.3f}, {mine:.3f}"
            if what == "whole_fit":
                values += f" ({theirs['iterations']} and {ours['iterations']} iterations)"
            print(f"{line} {theirs['mib']:.0f} MiB | {ours['mib']:.0f} MiB | {values} |", flush=True)
    print(
        f"\nLog-likelihoods of an iteration: after {ITERATIONS['published']} beside the published form, "
        f"after {ITERATIONS['sklearn']} beside scikit-learn."
    )
    if "sklearn" not in others:
        print("\nscikit-learn is not installed: its rows are left out (pip install scikit-learn).")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("fit", "whole_fit", "score"))
    parser.add_argument("way", choices=("published", "ours", "sklearn"))
    parser.add_argument("--small", action="store_true")
    given = parser.parse_args()
    keep_freed_memory()  # for all sides alike
    print(json.dumps({"fit": fit, "whole_fit": whole_fit, "score": score}[given.what](given.way, given.small)))
