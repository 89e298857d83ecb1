"""Facts about public data sets, read from ``catalogue.json``: class lists, label maps, counts, tiles."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import Any

from tutelage.data.dataset import Classes
from tutelage.data.labels import LabelMap, pack


@cache
def _content() -> dict[str, dict[str, Any]]:
    text = files("tutelage.data.catalogue").joinpath("catalogue.json").read_text(encoding="utf-8")
    content: dict[str, dict[str, Any]] = json.loads(text)
    return content


def fact(kind: str, name: str) -> Any:
    """One raw entry of a data set: ``title``, ``licence``, ``counts``, ``tiles``, ``ranges``."""
    return _content()["data_sets"][kind][name]


def class_list(name: str) -> Classes:
    """A class list by name (several data sets share one)."""
    entry = _content()["class_lists"][name]
    return Classes(tuple(entry["names"]), tuple((r, g, b) for r, g, b in entry["palette"]))


def label_map(name: str) -> LabelMap:
    """A map from raw mask values or colours to train ids, by name."""
    entry = _content()["label_maps"][name]
    if entry["encoding"] == "rgb":
        table = {pack([int(part) for part in colour.split(",")]): i for colour, i in entry["table"].items()}
    else:
        table = {int(value): i for value, i in entry["table"].items()}
    return LabelMap(table, entry["encoding"], entry["others"])


def expected_counts(kind: str, variant: str | None = None) -> dict[str, int]:
    """Number of images of each official split; ``variant=None`` is the default variant."""
    counts: dict[str, dict[str, int]] = fact(kind, "counts")
    return dict(counts[variant or next(iter(counts))])


def class_subsets(kind: str) -> dict[str, tuple[int, ...]]:
    """Named subsets of train ids for reporting (SYNTHIA: 16 and 13 classes); empty for most data sets."""
    return {name: tuple(ids) for name, ids in _content()["data_sets"][kind].get("subsets", {}).items()}
