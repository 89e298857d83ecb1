"""Proposal of class settings (classes, ids, colours, ignore) from the values in masks and class names near the data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tutelage.data.dataset import plain
from tutelage.data.labels import IGNORE, pack
from tutelage.errors import DataError
from tutelage.proposal.encodings import Encoding, colour_text
from tutelage.proposal.names import Names

_BACKGROUND = {"background", "bg", "other", "others", "backgroundclutter", "rest", "none"}
_WORTH_A_NAME = 0.001  # smallest share of the pixels at which a colour without a name is reported
_CERTAIN_IGNORE = (IGNORE, 65535)


@dataclass
class Reading:
    """Proposed class settings of a folder data set, and doubts for the user to check."""

    classes: list[str]
    ids: dict[int, str] = field(default_factory=dict)
    """Mask value → class; empty if value i is class i."""
    colours: dict[str, str | None] = field(default_factory=dict)
    ignore: list[int] | None = None
    others: bool = False
    """Whether values without a name are ignored."""
    palette: list[tuple[int, int, int]] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)

    def settings(self) -> dict[str, Any]:
        """The keys of :class:`tutelage.data.folder.FolderSettings` that differ from their defaults."""
        result: dict[str, Any] = {"classes": self.classes}
        if self.ids:
            result["ids"] = self.ids
        if self.colours:
            result["colours"] = self.colours
        if self.ignore is not None:
            result["ignore"] = self.ignore
        if self.others:
            result["others"] = "ignore"
        if self.palette:
            result["palette"] = self.palette
        return result


def decide(encoding: Encoding, names: Names | None) -> Reading:
    """Propose class settings for masks. Raises :class:`DataError`: ``unreadable-image``, ``class-count``."""
    values = encoding.main()
    if not values:
        raise DataError(
            "image-unreadable", f"cannot read any mask: {'; '.join(encoding.faults[:3])}", "replace the mask files"
        )
    if encoding.kind == "rgb":
        reading = _colours(encoding, names)
    elif encoding.binary:
        reading = _binary(encoding, names)
    else:
        reading = _indices(encoding, names)
    if len(reading.classes) > 254:
        raise DataError(
            "class-count",
            f"masks hold {len(reading.classes)} values, expected at most 254 classes",
            "write the masks with class indices up to 253, or name the classes to use with --classes",
        )
    if encoding.lossy:
        reading.others = True
        reading.doubts.append(
            "masks are lossy (JPEG, or resized with interpolation): values between the classes are ignored; export "
            "them as PNG"
        )
    if names is None and not encoding.binary:
        reading.doubts.append("no class names found: rename class_0, class_1, ... below")
    return reading


def _binary(encoding: Encoding, names: Names | None) -> Reading:
    given = [name for name in (names.names if names else ()) if names and name not in names.void()]
    if len(given) == 1:
        given = ["background", given[0]]
    classes = given if len(given) == 2 else ["background", "foreground"]
    doubts = [
        f"masks hold only 0 and 255, and 255 ({encoding.share(255):.1%} of the pixels) is read as {classes[1]}; "
        "if 255 means ignored, change ids and ignore"
    ]
    if len(given) > 2:
        doubts.append(
            f"{names.source if names else ''} names {len(given)} classes, but the masks have two values: names not used"
        )
    return Reading(classes, {0: classes[0], 255: classes[1]}, ignore=[], doubts=doubts)


def _indices(encoding: Encoding, names: Names | None) -> Reading:
    seen = list(encoding.main())
    ignore = [value for value in _CERTAIN_IGNORE if value in seen]
    if names is not None:
        ignore = [value for value in ignore if value not in names.ids.values()]
        ignore += [names.ignore] if names.ignore is not None and names.ignore not in ignore else []
    values = [value for value in seen if value not in ignore]
    if names is None:
        reading = Reading([f"class_{value}" for value in values])
        by_value = dict(zip(values, reading.classes, strict=True))
    else:
        reading, by_value = _named(values, names, ignore)
    identity = list(by_value) == list(range(len(by_value))) and list(by_value.values()) == reading.classes
    if not identity:
        reading.ids = by_value
        reading.ignore = ignore
    elif ignore not in ([], [IGNORE]):
        reading.ignore = ignore
    reading.palette = _palette(reading.classes, by_value, encoding, names)
    return reading


def _named(values: list[int], names: Names, ignore: list[int]) -> tuple[Reading, dict[int, str]]:
    """Classes of a list of names, and class by mask value; values of void classes are added to ``ignore``."""
    void = names.void()
    doubts = []
    ids = dict(names.ids) or {name: place for place, name in enumerate(names.names)}
    beyond = [value for value in values if value not in ids.values()]
    if not names.ids and beyond == [len(names.names)]:
        # One value more than names: either 0 means unlabelled and the names begin at 1, or the last value does.
        if values[0] == 0 and plain(names.names[0]) in _BACKGROUND:
            ignore.append(beyond[0])
            doubts.append(f"value {beyond[0]} has no name and is ignored")
        else:
            ids = {name: place + 1 for place, name in enumerate(names.names)}
            if values[0] == 0:
                ignore.append(0)
            doubts.append(
                f"values run to {beyond[0]} for {len(names.names)} names: value 1 is read as {names.names[0]!r}"
                + (", and 0 is ignored" if values[0] == 0 else "")
            )
        beyond = []
    ignore += [ids[name] for name in void if ids[name] not in ignore]
    by_value = {ids[name]: name for name in names.names if name not in void and ids[name] not in ignore}
    beyond = [value for value in beyond if value not in ignore]
    if beyond:
        by_value.update({value: f"class_{value}" for value in beyond})
        doubts.append(f"values without a name in {names.source}: {', '.join(map(str, beyond[:12]))}")
    absent = [name for value, name in by_value.items() if value not in values]
    if absent:
        doubts.append(f"no pixels of {', '.join(absent[:12])}")
    by_value = dict(sorted(by_value.items())) if list(by_value) == sorted(by_value) else by_value
    return Reading(list(by_value.values()), doubts=doubts), by_value


def _palette(
    classes: list[str], by_value: dict[int, str], encoding: Encoding, names: Names | None
) -> list[tuple[int, int, int]]:
    """A colour for every class, from the class file or the palette of the masks; empty if one is unknown."""
    if names is not None and all(name in names.colours for name in classes):
        return [names.colours[name] for name in classes]
    if encoding.palette and all(value in encoding.palette for value in by_value):
        return [encoding.palette[value] for value in by_value]
    return []


def _colours(encoding: Encoding, names: Names | None) -> Reading:
    seen = encoding.main()
    if names is not None and names.colours:
        named = {pack(colour): name for name, colour in names.colours.items()}
        if sum(encoding.share(value) for value in named) >= 0.5:
            return _by_table(encoding, names, named)
        doubts = [f"colours in {names.source} differ from those of the masks and are not used"]
    else:
        doubts = []
    values = list(seen)
    if names is None:
        classes = [f"class_{place}" for place in range(len(values))]
    else:
        classes = [name for name in names.names if name not in names.void()]
        doubts.append("the class of each colour is a guess: check colours below")
    rest = values[len(classes) :]
    colours: dict[str, str | None] = {
        colour_text(value): name for value, name in zip(values, classes, strict=False)
    } | {colour_text(value): None for value in rest}
    if rest:
        doubts.append(f"{len(rest)} colours have no class and are ignored (null)")
    if names is None and 0 in seen:
        doubts.append('black is read as a class; if it means "not labelled", set "0,0,0": null and remove its class')
    complete = len(values) >= len(classes)
    palette = [_rgb(value) for value in values[: len(classes)]] if complete else []
    return Reading(classes, colours=colours, palette=palette, doubts=doubts)


def _by_table(encoding: Encoding, names: Names, named: dict[int, str]) -> Reading:
    """Settings for the colours of a class file; other colours are ignored, and reported if they are frequent."""
    void = names.void()
    classes = [name for name in names.names if name not in void and name in names.colours]
    colours: dict[str, str | None] = {
        ",".join(map(str, names.colours[name])): None if name in void else name
        for name in names.names
        if name in names.colours
    }
    doubts = []
    absent = [name for value, name in named.items() if name not in void and value not in encoding.values]
    if absent:
        doubts.append(f"no pixels of {', '.join(absent[:12])}")
    strange = [value for value in encoding.values if value not in named]
    frequent = [value for value in strange if encoding.share(value) >= _WORTH_A_NAME]
    doubts += [
        f"colour {colour_text(value)} ({encoding.share(value):.1%} of the pixels) has no name and is ignored"
        for value in frequent[:12]
    ]
    palette = [names.colours[name] for name in classes]
    return Reading(classes, colours=colours, others=bool(strange), palette=palette, doubts=doubts)


def _rgb(value: int) -> tuple[int, int, int]:
    return (value >> 16) & 255, (value >> 8) & 255, value & 255
