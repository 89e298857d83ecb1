"""The list that lies in a folder of maps or copies: a JSON object with its format and the samples that it holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tutelage.errors import DataError


def read_manifest(path: Path, format_: int, what: str, stage: str, lists: tuple[str, ...] = ()) -> dict[str, Any]:
    """The content of a manifest; ``samples`` is a list in it, and so is what ``lists`` names.

    ``what``: what the folder holds; ``stage``: the kind of stage that makes it anew. Raises :class:`DataError` for a
    file that cannot be read, or is of another format.
    """
    root, remedy = path.parent, f"run the {stage} stage again"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        written, _ = content["format"], set(content["samples"])
        for name in lists:
            tuple(content[name])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{what} cannot be read: {root} ({error})", remedy) from None
    if written != format_:
        raise DataError(f"{what} in {root} have format {written}, not {format_}", remedy)
    return dict(content)
