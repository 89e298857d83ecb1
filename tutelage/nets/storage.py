"""One file per net: its tensors and everything needed to build it again, readable without the training code.

A safetensors file whose only metadata entry is JSON (safetensors keeps several entries in random order; one keeps
equal nets byte-equal). Tensors carry a checksum, because a flipped bit would otherwise only show as wrong
predictions.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tutelage.errors import TutelageError
from tutelage.nets.build import build
from tutelage.nets.segmentor import Segmentor
from tutelage.nets.settings import NetSettings
from tutelage.runs.atomic import writing
from tutelage.settings import Settings
from tutelage.version import __version__

FORMAT = 1

_KEY = "tutelage"


class NetMetadata(Settings):
    """The description in a net's file."""

    format: int
    """The version of this file format."""

    library: str
    """The version of tutelage that wrote the file."""

    net: NetSettings
    """The settings that build the net; ``weights`` is omitted, the file has them."""

    classes: tuple[str, ...]
    """Class names in the order of the logits."""

    palette: tuple[tuple[int, int, int], ...]
    """One RGB colour, 0 to 255, per class."""

    mean: tuple[float, ...]
    """Subtracted from RGB in 0..1, inside the net."""

    std: tuple[float, ...]
    """Divisor after the subtraction."""

    checksum: int
    """CRC-32 of all names and tensors."""

    extra: dict[str, Any]
    """Additional data of the caller."""


def save_segmentor(
    net: Segmentor,
    path: Path,
    *,
    classes: Sequence[str],
    palette: Sequence[Sequence[int]],
    extra: Mapping[str, Any] | None = None,
) -> NetMetadata:
    """Write ``net`` atomically to ``path`` (.safetensors) with class names, colours and JSON-able ``extra``.

    Equal content gives equal bytes. Raises TutelageError if names or colours do not match the net's classes.
    """
    if not len(classes) == len(palette) == net.classes:
        raise TutelageError(
            "class-palette",
            f"net has {net.classes} classes, got {len(classes)} names and {len(palette)} colours",
            "give one name and one colour per class",
        )
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(net.state_dict().items())}
    metadata = NetMetadata(
        format=FORMAT,
        library=__version__,
        net=net.settings.model_copy(update={"weights": None}),
        classes=tuple(classes),
        palette=tuple((int(red), int(green), int(blue)) for red, green, blue in palette),
        mean=tuple(net.mean.flatten().tolist()),
        std=tuple(net.std.flatten().tolist()),
        checksum=_checksum(tensors),
        extra=dict(extra or {}),
    )
    text = json.dumps(metadata.model_dump(mode="json"), sort_keys=True, ensure_ascii=False)
    with writing(Path(path)) as partial:
        save_file(tensors, partial, metadata={_KEY: text})
    return metadata


def read_metadata(path: Path) -> NetMetadata:
    """Read the description in a net's file, without its tensors.

    Raises TutelageError for a file that is missing, damaged, of another format or from a newer version.
    """
    path = Path(path)
    if not path.is_file():
        raise TutelageError(
            "file-missing", f"net file not found: {path}", "give the path of a .safetensors file that tutelage wrote"
        )
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_KEY)
    except (SafetensorError, OSError, ValueError) as error:
        raise TutelageError(
            "file-damaged",
            f"net file is truncated, damaged or not a safetensors file: {path} ({path.stat().st_size} bytes; {error})",
            "copy it again, or train the net again; give files of other formats under weights:",
        ) from error
    if text is None:
        raise TutelageError(
            "net-undescribed",
            f"file holds tensors but no description of their net: {path}",
            "give it as weights: next to the settings of its net",
        )
    try:
        content = json.loads(text)
        written = content["format"]
        if written > FORMAT:
            raise TutelageError(
                "newer-format",
                f"net file has format {written}, expected {FORMAT}: {path} (tutelage {content.get('library')})",
                "pip install --upgrade tutelage",
            )
        return NetMetadata.model_validate(content)
    except (ValidationError, ValueError, KeyError, TypeError) as error:
        raise TutelageError(
            "file-damaged",
            f"cannot read the net's description: {path} ({error})",
            "copy the file again, or train the net again",
        ) from error


def load_segmentor(path: Path, map_location: str | torch.device = "cpu") -> tuple[Segmentor, NetMetadata]:
    """Load the net of a file, in evaluation mode on ``map_location``, and its description.

    Raises TutelageError as :func:`read_metadata` does, and for tensors that are damaged or do not match the net.
    """
    path = Path(path)
    metadata = read_metadata(path)
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
    if _checksum(tensors) != metadata.checksum:
        raise TutelageError("file-damaged", f"checksum of the tensors does not match: {path}", "copy the file again")
    net = build(metadata.net, len(metadata.classes), seed=0)
    try:
        net.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        raise TutelageError(
            "weights-mismatch",
            f"tensors do not match the net that this timm builds from the file's settings: {path} ({error})",
            f"file was written by tutelage {metadata.library}; install the versions of its requirements.lock",
        ) from error
    return net.eval().to(map_location), metadata


def check_classes(metadata: NetMetadata, classes: Sequence[str], where: str) -> None:
    """Raise TutelageError unless the net's classes are ``classes``, in order; ``where`` names their owner."""
    ours = tuple(classes)
    if metadata.classes == ours:
        return
    if sorted(metadata.classes) == sorted(ours):
        first = next(i for i, (one, other) in enumerate(zip(metadata.classes, ours, strict=True)) if one != other)
        detail = f"same names in another order, from number {first} on: {metadata.classes[first]} and {ours[first]}"
    else:
        lacking = [name for name in ours if name not in metadata.classes]
        surplus = [name for name in metadata.classes if name not in ours]
        detail = f"the net lacks {', '.join(lacking) or 'none'} and also has {', '.join(surplus) or 'none'}"
    raise TutelageError(
        "other-classes",
        f"net has {len(metadata.classes)} classes, {where} has {len(ours)}: {detail}",
        "use the data set that the net was trained on, or map its classes to the net's",
    )


def _checksum(tensors: Mapping[str, Tensor]) -> int:
    value = 0
    for name, tensor in tensors.items():
        value = zlib.crc32(name.encode(), value)
        value = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, value)
    return value
