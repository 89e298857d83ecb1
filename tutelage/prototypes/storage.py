"""Statistics of features as files: safetensors with one entry of JSON, like a net's file, readable on its own.

Equal content gives equal bytes. Tensors carry a checksum: a flipped bit would show up as labels that make no sense.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tutelage.errors import TutelageError
from tutelage.runs.atomic import writing
from tutelage.version import __version__

FORMAT = 1
_KEY = "tutelage"


def save_tensors(path: Path, kind: str, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write tensors and JSON-able facts atomically to ``path`` (.safetensors) as a file of ``kind``."""
    held = {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(tensors.items())}
    text = json.dumps(
        {
            "format": FORMAT,
            "kind": kind,
            "library": __version__,
            "checksum": _checksum(held),
            "about": dict(about),
        },
        sort_keys=True,
        ensure_ascii=False,
    )
    with writing(Path(path)) as partial:
        save_file(held, partial, metadata={_KEY: text})


def load_tensors(path: Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors, on the CPU, and facts of a file that :func:`save_tensors` wrote.

    TutelageError for a file that is missing, damaged, of another kind or from a newer tutelage.
    """
    path = Path(path)
    if not path.is_file():
        raise TutelageError(
            "missing-file", f"{path}: no file with {kind} found", "give the path of a file that tutelage wrote"
        )
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_KEY)
            tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
        content = json.loads(text) if text else {}
        found = content.get("kind")
    except (SafetensorError, OSError, ValueError, AttributeError) as error:
        raise TutelageError(
            "damaged-file",
            f"{path} is truncated, damaged, or not a safetensors file ({error})",
            "copy the file again, or run its stage again",
        ) from error
    if found != kind:
        raise TutelageError(
            "file-kind", f"{path} holds {found or 'unknown content'}, expected {kind}", f"give a file with {kind}"
        )
    if content["format"] > FORMAT:
        raise TutelageError(
            "file-format",
            f"{path} has format {content['format']}, written by tutelage {content.get('library')}; this version reads "
            f"up to format {FORMAT}",
            "pip install --upgrade tutelage",
        )
    if _checksum(tensors) != content["checksum"]:
        raise TutelageError(
            "damaged-file",
            f"{path} is damaged: the checksum of its tensors differs",
            "copy the file again, or run its stage again",
        )
    return tensors, dict(content["about"])


def _checksum(tensors: Mapping[str, Tensor]) -> int:
    value = 0
    for name, tensor in tensors.items():
        value = zlib.crc32(name.encode(), value)
        value = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, value)
    return value
