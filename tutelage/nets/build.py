"""Building a net from settings: seeded, with initial weights. The entry point for other packages."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext

import torch

from tutelage.nets.multi_resolution import MultiResolution
from tutelage.nets.segmentor import Segmentor
from tutelage.nets.settings import NetSettings
from tutelage.nets.weights import load_weights


def build(settings: NetSettings, classes: int, *, seed: int | None = None, taps: Iterable[str] = ()) -> Segmentor:
    """Build the net of ``settings`` on the CPU with initial weights; ``net.load_report`` lists the loaded ones.

    With a ``seed`` the random weights are deterministic and no global generator is changed; without one they come from
    torch's generator. Raises TutelageError as :class:`Segmentor` and
    :func:`~tutelage.nets.weights.load_weights` do.
    """
    with nullcontext() if seed is None else torch.random.fork_rng(devices=[]):
        if seed is not None:
            # Not torch.manual_seed: it would also seed the generators of all accelerators, which are not restored.
            torch.default_generator.manual_seed(seed)
        kind = Segmentor if settings.multi_resolution is None else MultiResolution
        net = kind(settings, classes, taps)
    if settings.weights is not None:
        net.load_report = load_weights(net, settings.weights)
    if settings.frozen_norm is not None:
        net.freeze_norm(statistics=settings.frozen_norm == "all")
    return net


def sibling(net: Segmentor) -> Segmentor:
    """Another net of the same settings: the encoder's weights are copied, decoder and heads are new.

    The new weights come from torch's generator; no file is loaded.
    """
    other = build(net.settings.model_copy(update={"weights": None}), net.classes, taps=net.taps)
    other.encoder.load_state_dict(net.encoder.state_dict())
    return other
