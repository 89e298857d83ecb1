"""Reading weight files of unknown origin: tensors only, never code."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from tutelage.errors import TutelageError

# The first bytes of torch's zip files and of its older, plain pickles.
_TORCH_MAGIC = (b"PK\x03\x04", b"\x80")

# Of several state dicts in one file, these names take precedence.
_PREFERRED = ("state_dict", "model_state_dict", "model", "net", "encoder", "backbone")


def require_file(path: Path) -> None:
    """Raise TutelageError if a weights file does not exist."""
    if not path.is_file():
        raise TutelageError(
            "file-missing",
            f"weights file not found: {path}",
            "give the path of a .safetensors, .pth or .pt file, or packaged or hub",
        )


def read_tensors(path: Path) -> tuple[dict[str, Tensor], str]:
    """Read the tensors of a safetensors or torch file, by name, on the CPU, and the path of their nesting in the file.

    Raises TutelageError for a file that is missing, truncated, of another format, without tensors, or that would run
    code when loaded.
    """
    require_file(path)
    with open(path, "rb") as file:
        head = file.read(8)
    content = _torch_file(path) if head.startswith(_TORCH_MAGIC) else _safetensors_file(path)
    tensors, nesting = _deepest_tensors(content)
    if not tensors:
        raise TutelageError(
            "weights-unreadable",
            f"weights file holds no state dict of tensors: {path}",
            "save one with torch.save(net.state_dict(), path)",
        )
    return tensors, nesting


def _torch_file(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "truncated" in str(error).lower():
            raise _damaged(path, error) from error
        raise TutelageError(
            "weights-unsafe",
            f"weights file holds Python objects besides tensors; loading them could run code: {path}",
            "save only the tensors where the file was made: torch.save(net.state_dict(), path)",
        ) from error
    except Exception as error:  # torch's readers raise many types
        raise _damaged(path, error) from error


def _safetensors_file(path: Path) -> Any:
    try:
        return load_file(path, device="cpu")
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> TutelageError:
    detail = (str(error).splitlines() or [type(error).__name__])[0]
    return TutelageError(
        "weights-unreadable",
        f"weights file is truncated, damaged or of another format: {path} ({path.stat().st_size} bytes; {detail})",
        "copy or download it again and compare its size; supported formats: safetensors and torch",
    )


def _deepest_tensors(content: Any) -> tuple[dict[str, Tensor], str]:
    """The mapping with the most tensors among ``content`` and the mappings inside it, and its path."""
    found: list[tuple[int, int, str, dict[str, Tensor]]] = []

    def visit(value: Any, path: str, depth: int) -> None:
        if not isinstance(value, Mapping) or depth > 3:
            return
        tensors = {key: item for key, item in value.items() if isinstance(key, str) and isinstance(item, Tensor)}
        name = path.rpartition("/")[2]
        preference = -_PREFERRED.index(name) if name in _PREFERRED else -len(_PREFERRED)
        found.append((len(tensors), preference, path, tensors))
        for key, item in value.items():
            if isinstance(key, str):
                visit(item, f"{path}/{key}" if path else key, depth + 1)

    visit(content, "", 0)
    if not found:
        return {}, ""
    _, _, path, tensors = max(found, key=lambda entry: entry[:2])
    return tensors, path
