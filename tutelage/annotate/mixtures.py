"""Mixtures of Gaussians of a net's features over labelled images: BiSMAP's multiple anisotropic prototypes.

Positions that are labelled and predicted as one class give its rows; a sample of bounded size is kept of each class,
and a mixture is fitted to it. The sample does not depend on the number of processes, nor on the order of images.
"""

# Legend: K classes, C channels, h w the grid of features and logits, N rows.

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tutelage.annotate.chunks import Progress
from tutelage.annotate.class_means import retained_share
from tutelage.annotate.fits import MixturesFit
from tutelage.annotate.net_outputs import OnUnreadable, looks, missing
from tutelage.annotate.published_classes import by_class
from tutelage.data import draws
from tutelage.data.dataset import Dataset
from tutelage.engine import collectives
from tutelage.errors import TutelageError
from tutelage.evaluation.protocol import Protocol
from tutelage.losses.regions import class_counts, shrink_labels
from tutelage.nets.segmentor import Segmentor
from tutelage.prototypes.gaussians import Fit, fit_mixtures
from tutelage.prototypes.means import class_rows, correct_labels
from tutelage.prototypes.reservoir import Reservoir
from tutelage.prototypes.settings import MixtureSettings

# Shares of the positions of a class that are kept, in the order of Cityscapes' 19 classes. Source: BiSMAP's code.
_GTA5 = (.002, .01, .003, .1, .1, .1, 1, 1, .01, .05, .01, .5, 1, .05, .1, .2, 1, 1, 1)  # fmt: skip
_SYNTHIA = (.008, .04, .012, .4, .4, .4, 1, .5, .04, .2, .02, .07, .5, .05, .4, .08, 1, 1, 1)  # fmt: skip
_IMAGES = 1 << 32  # a row's number is image x this + its position
_SAVE_EVERY = 600.0  # seconds between two savings of the sample so far; it may have gigabytes


def fit_class_mixtures(
    net: Segmentor,
    dataset: Dataset,
    settings: MixturesFit,
    path: Path,
    parts: Path,
    *,
    device: torch.device,
    protocol: Protocol,
    seed: int,
    on_unreadable: OnUnreadable = "error",
    progress: Progress = lambda done, total: None,
) -> dict[str, Any]:
    """Write the mixtures to ``path`` and give the facts; the sample so far is kept under ``parts`` now and then.

    Raises :class:`DataError` for images that cannot be read, and :class:`TutelageError` where no class has a row, or a
    class's mixture degenerates in all restarts. Source: BiSMAP, 3.2 of our specification.
    """
    classes = dataset.classes.names
    rates_K = by_class({"gta5": _GTA5, "synthia": _SYNTHIA}, settings.rates, classes, "rates")
    sample, state = _sample(
        net, dataset, settings.samples, rates_K, parts, device, protocol, seed, on_unreadable, progress
    )
    fits: list[Fit | None] = [None] * len(classes)
    if collectives.rank() == 0:
        own = settings.model_dump(exclude={"kind", "samples", "rates"})
        # Rows move to the device one class at a time; the sums are float64, which not every device has.
        where = device if device.type == "cuda" else torch.device("cpu")
        rows = (sample.rows(number).to(where) for number in range(len(classes)))
        mixtures, fits = fit_mixtures(rows, classes, MixtureSettings.model_validate(own), seed=seed)
    facts = {
        "images": len(state.images),
        "unreadable": missing(dataset, state.images),
        "without_samples": [name for number, name in enumerate(classes) if not sample.counts()[number]],
        "classes": {
            name: {
                **retained_share(int(state.seen_K[number]), int(state.kept_K[number])),
                "offered": sample.counts()[number],
                "rows": min(sample.counts()[number], settings.samples),
                **_told(fits[number]),
            }
            for number, name in enumerate(classes)
        },
    }
    if collectives.rank() == 0:
        mixtures.save(path, facts)
    return facts


def _told(fit: Fit | None) -> dict[str, Any]:
    if fit is None:
        return {}
    return {
        "components": int(fit.mixture.weight_M.shape[0]),
        "log_likelihood": round(fit.log_likelihood, 6),
        "iterations": fit.iterations,
        "restarts": fit.restarts,
    }


class _State:
    """Which images were looked at, and how many positions were labelled, and predicted right."""

    def __init__(self, classes: int) -> None:
        self.done = 0
        self.images: list[int] = []
        self.seen_K = torch.zeros(classes, dtype=torch.int64)
        self.kept_K = torch.zeros(classes, dtype=torch.int64)

    def facts(self) -> dict[str, Any]:
        return {
            "done": self.done,
            "images": self.images,
            "seen": self.seen_K.tolist(),
            "kept": self.kept_K.tolist(),
        }

    def take(self, facts: dict[str, Any]) -> None:
        self.done, self.images = int(facts["done"]), list(facts["images"])
        self.seen_K, self.kept_K = torch.tensor(facts["seen"]), torch.tensor(facts["kept"])


def _sample(
    net: Segmentor,
    dataset: Dataset,
    capacity: int,
    rates_K: Tensor | None,
    parts: Path,
    device: torch.device,
    protocol: Protocol,
    seed: int,
    on_unreadable: OnUnreadable,
    progress: Progress,
) -> tuple[Reservoir, _State]:
    """The sample of all processes' rows, and the counts beside it."""
    classes = len(dataset.classes)
    mine = list(range(len(dataset)))[collectives.rank() :: collectives.world()]
    stored = parts / f"sample-{collectives.rank()}-of-{collectives.world()}.safetensors"
    sample, state = Reservoir(classes, net.embedding_channels, capacity, seed=seed), _State(classes)
    if stored.is_file():
        try:
            sample, facts = Reservoir.load(stored)
            state.take(facts)
        except TutelageError:  # damaged: from the beginning
            sample, state = Reservoir(classes, net.embedding_channels, capacity, seed=seed), _State(classes)
    saved = time.monotonic()
    todo = mine[state.done :]
    places = {index: place for place, index in enumerate(mine, 1)}
    for look in looks(net, dataset, todo, protocol, device, labels=True, on_unreadable=on_unreadable):
        index = look.picture.index
        grid = (look.logits_1Khw.shape[2], look.logits_1Khw.shape[3])
        label_1hw = shrink_labels(look.label(), grid)
        correct_1hw = correct_labels(look.logits_1Khw, label_1hw)
        rows_NC, label_N, number_N = class_rows(look.features_1Chw, correct_1hw, classes)
        if rates_K is not None:
            chosen = _thinned(label_N.cpu().numpy(), rates_K, seed, index).to(label_N.device)
            rows_NC, label_N, number_N = rows_NC[chosen], label_N[chosen], number_N[chosen]
        sample.add(rows_NC, label_N, number_N + index * _IMAGES)
        state.seen_K += class_counts(label_1hw.flatten(1), classes)[0].cpu()
        state.kept_K += class_counts(correct_1hw.flatten(1), classes)[0].cpu()
        state.images.append(index)
        state.done = places[index]
        progress(state.done, len(mine))
        if time.monotonic() - saved > _SAVE_EVERY:
            sample.save(stored, state.facts())
            saved = time.monotonic()
    state.done = len(mine)
    if todo:
        sample.save(stored, state.facts())
    where = device if device.type == "cuda" else torch.device("cpu")
    sample.over_ranks(where)
    counts = collectives.sum_over_ranks(torch.stack([state.seen_K, state.kept_K]).to(where)).cpu()
    state.seen_K, state.kept_K = counts[0], counts[1]
    state.images = sorted(collectives.gather_rows(torch.tensor(state.images, dtype=torch.int64).to(where)).tolist())
    return sample, state


def _thinned(label_N: np.ndarray, rates_K: Tensor, seed: int, index: int) -> Tensor:
    """Numbers of the rows of one image that are offered: of n of a class n r, rounded at random to a whole number."""
    chosen = []
    for number, rate in enumerate(rates_K.tolist()):
        own = np.flatnonzero(label_N == number)
        if own.size:
            random = draws.generator(seed, "thinning", str(number), index)
            wanted = min(int(own.size * rate + random.random()), own.size)
            chosen.append(np.sort(random.choice(own, wanted, replace=False)))
    return torch.from_numpy(np.concatenate(chosen) if chosen else np.zeros(0, dtype=np.int64))
