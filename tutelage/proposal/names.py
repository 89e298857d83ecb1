"""Class names from class files near the data: JSON, plain lists, colour tables, CVAT label maps."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tutelage.data.dataset import plain
from tutelage.errors import DataError

Colour = tuple[int, int, int]

_FILES = (
    *(
        "classes.json",
        "labels.json",
        "class_names.json",
        "labelmap.txt",
        "classes.txt",
        "labels.txt",
        "class_names.txt",
    ),
    *("label_colors.txt", "label_colours.txt", "class_dict.csv", "classes.csv", "labels.csv", "meta.json"),
)
_VOID = {plain(name) for name in ("void", "unlabeled", "unlabelled", "ignore", "ignored", "unknown", "don't care")}
_INTEGER = re.compile(r"^\d{1,5}$")


@dataclass(frozen=True)
class Names:
    """Class names of a class file or of the command line, in its order."""

    source: str
    """File or option that they come from, for messages."""
    names: tuple[str, ...]
    colours: dict[str, Colour] = field(default_factory=dict)
    """Name → RGB."""
    ids: dict[str, int] = field(default_factory=dict)
    """Name → mask value; empty if the file has none."""
    ignore: int | None = None
    """Ignored mask value; ``None`` if the file has none."""

    def void(self) -> tuple[str, ...]:
        """Names that mean ignored, such as `void` or `unlabelled`."""
        return tuple(name for name in self.names if plain(name.replace("'", "")) in _VOID or plain(name) in _VOID)


def find_names(folders: Iterable[Path]) -> Names | None:
    """Names of the first readable class file in the folders, or ``None``."""
    for folder in dict.fromkeys(folders):
        for name in _FILES:
            if (folder / name).is_file():
                try:
                    return read_names(folder / name)
                except DataError:
                    continue
    return None


def given_names(text: str) -> Names:
    """Names from the command line: a file, or `a,b,c`. Raises :class:`DataError` (``class-file``)."""
    path = Path(text)
    if path.is_file():
        return read_names(path)
    if "," not in text and path.suffix.lower() in (".json", ".txt", ".csv"):
        raise DataError(
            "class-file", f"class file not found: {path}", "give a file, or the names: --classes road,car,sky"
        )
    return Names("--classes", tuple(name.strip() for name in text.split(",") if name.strip()))


def read_names(path: Path) -> Names:
    """Read a class file. Raises :class:`DataError` (``class-file``) if it has no names."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        names = _from_json(path, json.loads(text)) if path.suffix.lower() == ".json" else _from_lines(path, text)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(
            "class-file", f"cannot read class file: {path} ({error})", "write one name per line, or JSON with names"
        ) from None
    if not names.names:
        raise DataError(
            "class-file", f"class file holds no names: {path}", "write one name per line, or JSON with names"
        )
    return names


def _from_json(path: Path, content: Any) -> Names:
    ignore = None
    if isinstance(content, dict):
        ignore = content.get("ignore_index")
        named = next((content[key] for key in ("names", "classes", "labels") if key in content), None)
        if isinstance(named, list) and all(isinstance(name, str) for name in named):
            palette = content.get("palette") or []
            colours = {name: _colour(colour) for name, colour in zip(named, palette, strict=False)}
            return Names(path.name, tuple(named), _known(colours), {}, None if ignore is None else int(ignore))
        content = named if named is not None else content
    names: list[str] = []
    colours = {}
    ids = {}
    entries = content.items() if isinstance(content, dict) else enumerate(content)
    for key, value in entries:
        if isinstance(value, dict):
            name = str(next(value[k] for k in ("name", "title", "label", "readable") if k in value))
            colours[name] = _colour(next((value[k] for k in ("color", "colour", "rgb") if k in value), None))
            number = next((value[k] for k in ("id", "value", "index") if isinstance(value.get(k), int)), None)
            if number is not None and number < 1 << 16:
                ids[name] = number
        elif isinstance(key, str) and _INTEGER.match(key) and isinstance(value, str):
            name, ids[value] = value, int(key)
        elif isinstance(key, str):
            name, colours[key] = key, _colour(value)
            if isinstance(value, int):
                ids[key] = value
        else:
            name = str(value)
        names.append(name)
    return Names(path.name, tuple(names), _known(colours), ids if len(ids) == len(names) else {}, ignore)


def _colour(value: Any) -> Colour | None:
    """Parse an RGB colour: `[r, g, b]`, `"#rrggbb"` or `"r,g,b"`."""
    if isinstance(value, str) and re.match(r"^#[0-9a-fA-F]{6}$", value):
        return int(value[1:3], 16), int(value[3:5], 16), int(value[5:7], 16)
    if isinstance(value, str):
        value = [int(part) for part in value.split(",") if part.strip().isdigit()]
    if isinstance(value, list) and len(value) >= 3 and all(isinstance(part, int) for part in value):
        red, green, blue = value[:3]
        return red, green, blue
    return None


def _known(colours: dict[str, Colour | None]) -> dict[str, Colour]:
    return {name: colour for name, colour in colours.items() if colour is not None}


def _from_lines(path: Path, text: str) -> Names:
    """Parse lines such as `road`, `3 road`, `road 128 64 128`, `128,64,128 road` or CVAT's `road:128,64,128::`."""
    names: list[str] = []
    colours: dict[str, Colour] = {}
    ids: dict[str, int] = {}
    for line in text.splitlines():
        line = line.strip()
        if not line or line.startswith("#") or re.match(r"^(name|label|class)\W+(r|red|id|index)\b", line.lower()):
            continue
        separator = r"[:,\t;]+|\s+" if re.search(r"\d", line) else r"[:,\t;]+"
        parts = [part for part in re.split(separator, line) if part]
        words = [part for part in parts if not _INTEGER.match(part)]
        numbers = [int(part) for part in parts if _INTEGER.match(part)]
        name = " ".join(words) or str(numbers[0])
        names.append(name)
        if len(numbers) >= 3 and max(numbers[-3:]) < 256:
            red, green, blue = numbers[-3:]
            colours[name] = (red, green, blue)
        if len(numbers) in (1, 4) and words:
            ids[name] = numbers[0]
    return Names(path.name, tuple(dict.fromkeys(names)), colours, ids if len(ids) == len(set(names)) else {})
