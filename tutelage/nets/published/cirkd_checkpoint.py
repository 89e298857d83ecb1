"""Import of published checkpoints: every tensor must be found by its published name.

An incomplete file is refused, because the missing tensors would be random; only the auxiliary head, which only
training uses, may be missing as a whole. Give weights of an encoder alone under ``weights:`` in a recipe.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tutelage.errors import TutelageError
from tutelage.nets.build import build
from tutelage.nets.checkpoints import read_tensors
from tutelage.nets.published.nets import NETS, published_name
from tutelage.nets.segmentor import Segmentor
from tutelage.nets.settings import NetSettings

_AUXILIARY = "auxlayer."
_COUNTER = "num_batches_tracked"  # older files lack it; no result depends on it


@dataclass(frozen=True)
class Imported:
    """Report on an imported file."""

    source: str
    net: str
    """The published net's name."""
    parameters: int
    """Number of trainable values of the net."""
    tensors: int
    """Number of imported tensors."""
    unused: tuple[str, ...]
    """Tensors of the file that the net does not have."""
    auxiliary: bool
    """Whether the net has an auxiliary head."""

    def __str__(self) -> str:
        size = f"{self.tensors} tensors, {self.parameters / 1e6:.2f} million parameters"
        lines = [f"{self.source}: 100.0% of {self.net}, {size}"]
        if NETS[self.net].auxiliary and not self.auxiliary:
            lines.append("  without the auxiliary head, which the file does not hold")
        if self.unused:
            lines.append(f"  not needed {_listed(self.unused)}")
        return "\n".join(lines)


def settings_of(name: str) -> NetSettings:
    """The settings of a published net; TutelageError for an unknown name."""
    if name not in NETS:
        near = difflib.get_close_matches(name, NETS, n=3, cutoff=0.5)
        raise TutelageError(
            "unknown-net",
            f"unknown published net {name!r}",
            f"did you mean {', '.join(near)}? All: {', '.join(NETS)}" if near else f"use one of: {', '.join(NETS)}",
        )
    return NETS[name]


def import_checkpoint(file: Path, name: str, classes: int) -> tuple[Segmentor, Imported]:
    """Build the net ``name`` with the tensors of a published file (torch or safetensors), in evaluation mode.

    Raises TutelageError for an unknown name, an unreadable file, and a file with missing tensors or other shapes,
    naming them.
    """
    settings = settings_of(name)
    tensors, nesting = read_tensors(file)
    while all(key.startswith("module.") for key in tensors):
        tensors = {key.removeprefix("module."): tensor for key, tensor in tensors.items()}
    settings = _as_in_file(settings, tensors)
    net = build(settings, classes, seed=0)
    wanted = _wanted(net)
    faults = _faults(wanted, tensors)
    if faults:
        found = sum(one.numel() for key, one in wanted.items() if _fits(one, tensors.get(key)))
        share = found / sum(one.numel() for one in wanted.values())
        raise TutelageError(
            "weights-mismatch",
            f"weights do not match {name} with {classes} classes: {file}; {share:.1%} of its values found; "
            f"{'; '.join(faults)}",
            _remedy(tensors, classes),
        )
    with torch.no_grad():
        for key, own in wanted.items():
            if key in tensors:
                own.copy_(tensors[key])
    report = Imported(
        f"{file}{f' ({nesting})' if nesting else ''}",
        name,
        sum(parameter.numel() for parameter in net.parameters()),
        sum(key in tensors for key in wanted),
        tuple(key for key in tensors if key not in wanted),
        settings.auxiliary,
    )
    return net.eval(), report


def _as_in_file(settings: NetSettings, tensors: dict[str, Tensor]) -> NetSettings:
    """The settings, without an auxiliary head if the file has none."""
    held = any(key.startswith(_AUXILIARY) for key in tensors)
    return settings if held else settings.model_copy(update={"auxiliary": False})


def _wanted(net: Segmentor) -> dict[str, Tensor]:
    """The net's own tensors by their published names."""
    state = net.state_dict()
    return {published_name(ours, net.settings): own for ours, own in state.items() if ours not in ("mean", "std")}


def _fits(own: Tensor, given: Tensor | None) -> bool:
    return given is not None and given.shape == own.shape


def _faults(wanted: dict[str, Tensor], tensors: dict[str, Tensor]) -> list[str]:
    """Missing tensors and tensors of another shape, as text."""
    missing = [key for key in wanted if key not in tensors and not key.endswith(_COUNTER)]
    others = [
        f"{key} ({list(tensors[key].shape)} in the file, {list(own.shape)} expected)"
        for key, own in wanted.items()
        if key in tensors and not _fits(own, tensors[key])
    ]
    found = (("missing", missing), ("of another shape", others))
    return [f"{title} {_listed(names)}" for title, names in found if names]


def _remedy(tensors: dict[str, Tensor], classes: int) -> str:
    """Remedy for these tensors: another number of classes, another net, or another file."""
    fitting = []
    for name, settings in NETS.items():
        head = tensors.get(published_name("classifier.weight", settings))
        if head is None or head.ndim != 4 or head.shape[1] != settings.channels:
            continue
        if not _faults(_wanted(build(_as_in_file(settings, tensors), head.shape[0], seed=0)), tensors):
            fitting.append((name, head.shape[0]))
    if not fitting:
        return (
            "name the checkpoint of one of CIRKD's nets, as its repository saves them; weights of an encoder alone go "
            "under weights: in a recipe"
        )
    given = fitting[0][1]
    names = " or ".join(f"--net {name}" for name, _ in fitting)
    return f"it fits {names} with {given} classes" + ("" if given == classes else f", not {classes}")


def _listed(names: list[str] | tuple[str, ...]) -> str:
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    return f"{len(names)}: {', '.join(names[:6])}{more}"
