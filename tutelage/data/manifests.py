"""Manifests of artefact folders (maps, copies): a JSON object with the format version and the list of samples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tutelage.errors import DataError


def read_manifest(path: Path, format_: int, what: str, stage: str, lists: tuple[str, ...] = ()) -> dict[str, Any]:
    """Read a manifest; ``samples`` and the keys in ``lists`` are lists in it.

    ``what`` names the content of the folder and ``stage`` the kind of stage that writes it, for messages. Raises
    :class:`DataError`: ``damaged-artefact``, ``artefact-format``.
    """
    root, remedy = path.parent, f"run the {stage} stage again"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        written, _ = content["format"], set(content["samples"])
        for name in lists:
            tuple(content[name])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError("file-damaged", f"cannot read {what}: {root} ({error})", remedy) from None
    if written != format_:
        raise DataError("artefact-mismatch", f"{what} in {root} have format {written}, expected {format_}", remedy)
    return dict(content)
