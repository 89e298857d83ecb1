"""Checks of single masks: unreadable files, values without a class, lossy storage, sizes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path

from tutelage.data.checks.findings import Finding, plural, several, some
from tutelage.data.dataset import Dataset
from tutelage.data.images import read_raw_mask
from tutelage.data.labels import IGNORE, LabelMap, unpack
from tutelage.data.statistics import DatasetStatistics, FaultKind, MaskFault, MaskStatistics, row_runs
from tutelage.errors import DataError

_LOSSY = ("JPEG", "MPO", "JPEG2000")
_MAIN = 0.01  # smallest share of a mask's pixels at which a value is not an artefact
_FEWEST_SMEARS = 6
_NEAR = {"rgb": 24, "index": 12, "first16": 12}


def mask_findings(name: str, dataset: Dataset, masks: DatasetStatistics) -> Iterator[Finding]:
    """Masks that are unreadable, have values without a class, another size, or a foreground that is read as ignored."""
    lossy = smeared(dataset, masks)
    yield from unreadable(name, dataset, masks)
    yield from _colours(name, dataset, masks)
    yield from _lossy(name, dataset, masks, lossy)
    yield from _unexpected(name, dataset, masks, lossy)
    yield from _sizes(name, dataset, masks)
    yield from binary_trap(name, dataset, masks)


def files_of(dataset: Dataset, masks: DatasetStatistics, kind: FaultKind) -> list[Path]:
    """Mask files with one kind of fault."""
    return labels_at(dataset, [fault.index for fault in masks.of(kind)])


def labels_at(dataset: Dataset, indices: Sequence[int]) -> list[Path]:
    """Mask files of the samples at ``indices``."""
    paths = (dataset.samples[index].label for index in indices)
    return [path for path in paths if path is not None]


def unreadable(name: str, dataset: Dataset, masks: DatasetStatistics) -> Iterator[Finding]:
    """Masks that are missing, empty, truncated or not images."""
    faults = masks.of("unreadable")
    if faults:
        yield Finding(
            "error",
            "mask-unreadable",
            name,
            f"{len(faults)} of {plural(len(dataset), 'mask')} cannot be read: "
            + several([fault.message for fault in faults], 3),
            "replace the files, or remove their lines from the list",
            tuple(files_of(dataset, masks, "unreadable")),
        )


def _colours(name: str, dataset: Dataset, masks: DatasetStatistics) -> Iterator[Finding]:
    """Masks that store colours but are read by index, or have no class indices for another reason."""
    painted: list[MaskFault] = []
    others: list[MaskFault] = []
    for fault in masks.of("form"):
        (painted if _palette(dataset.samples[fault.index].label) else others).append(fault)
    if painted:
        files = labels_at(dataset, [fault.index for fault in painted])
        colours = [",".join(map(str, unpack(value))) for value in _palette(files[0])]
        example = ", ".join(
            f'"{colour}": {class_}' for colour, class_ in zip(colours, dataset.classes.names, strict=False)
        )
        yield Finding(
            "error",
            "mask-colours",
            name,
            f"{len(files)} of {plural(len(dataset), 'mask')} stored as colours but read by index: {some(files)}; "
            f"colours of the first: {several(colours)}",
            f"map colours to classes: data.<name>.colours: {{{example}, ...}} (the pairing here is a guess)",
            tuple(files),
        )
    if others:
        files = labels_at(dataset, [fault.index for fault in others])
        yield Finding(
            "error",
            "mask-form",
            name,
            f"{len(files)} of {plural(len(dataset), 'mask')} without class indices: {others[0].message}",
            "write them as greyscale PNG files (8 or 16 bits) with class indices",
            tuple(files),
        )


def _palette(path: Path | None) -> list[int]:
    """Packed colours of a mask, most frequent first; empty if it does not store colours."""
    if path is None:
        return []
    try:
        read_raw_mask(path)
    except DataError as error:
        if error.code != "mask-colours":
            return []
    try:
        values, lengths = row_runs(read_raw_mask(path, "rgb"))
    except DataError:
        return []
    counts: Counter[int] = Counter()
    for value, length in zip(values.tolist(), lengths.tolist(), strict=True):
        counts[value] += length
    return [value for value, _ in counts.most_common()]


def smeared(dataset: Dataset, masks: DatasetStatistics) -> list[int]:
    """Masks in which many rare values are close to frequent ones: JPEG, or a resize with interpolation."""
    return [index for index in range(len(masks)) if _smears(masks[index], dataset.label_map) >= _FEWEST_SMEARS]


def _smears(mask: MaskStatistics, label_map: LabelMap) -> int:
    """Number of rare values without a class that are close to frequent values, counted up to ``_FEWEST_SMEARS``."""
    if len(mask.values) <= _FEWEST_SMEARS:
        return 0
    least = _MAIN * mask.height * mask.width
    main = [value for value, count in mask.values.items() if count >= least]
    rare = [value for value, count in mask.values.items() if count < least and value not in label_map.table]
    near = _NEAR[label_map.encoding]

    def close(value: int) -> bool:
        if label_map.encoding != "rgb":
            return any(abs(value - other) <= near for other in main)
        colour = unpack(value)
        return any(max(abs(a - b) for a, b in zip(colour, unpack(other), strict=True)) <= near for other in main)

    return len(list(islice(filter(close, rare), _FEWEST_SMEARS)))


def _lossy(name: str, dataset: Dataset, masks: DatasetStatistics, smears: Sequence[int]) -> Iterator[Finding]:
    by_format = [index for index, format_ in enumerate(masks.formats) if format_ in _LOSSY]
    concerned = sorted({*by_format, *smears})
    if not concerned:
        return
    files = labels_at(dataset, concerned)
    what = "stored as JPEG" if by_format else "with many rare values close to frequent ones"
    example = "" if not smears else f"; {labels_at(dataset, smears)[0].name} holds {_listed(masks[smears[0]], dataset)}"
    yield Finding(
        # If other values are ignored on purpose, only border pixels are lost.
        "error" if smears and dataset.label_map.others is None else "warning",
        "mask-lossy",
        name,
        f"{len(files)} of {plural(len(dataset), 'mask')} {what}: {some(files)}{example}. Compression and "
        "interpolation create wrong class values along every border",
        "export the masks again as PNG, resized by nearest neighbour; or set data.<name>.others: ignore, which loses "
        "the border pixels",
        tuple(files),
    )


def _listed(mask: MaskStatistics, dataset: Dataset, limit: int = 8) -> str:
    return several(
        [f"{dataset.label_map.name_of(value)} ({count} pixels)" for value, count in mask.values.items()], limit
    )


def _unexpected(name: str, dataset: Dataset, masks: DatasetStatistics, lossy: Sequence[int]) -> Iterator[Finding]:
    faults = [fault for fault in masks.of("unexpected") if fault.index not in set(lossy)]
    if not faults:
        return
    pixels: Counter[int] = Counter()
    files: Counter[int] = Counter()
    for fault in faults:
        for value, count in masks[fault.index].values.items():
            if value not in dataset.label_map.table:
                pixels[value] += count
                files[value] += 1
    listed = [
        f"{dataset.label_map.name_of(value)} ({count} pixels in {plural(files[value], 'mask')})"
        for value, count in pixels.most_common()
    ]
    known = [dataset.label_map.name_of(value) for value in dataset.label_map.table]
    yield Finding(
        "error",
        "mask-values",
        name,
        f"{len(faults)} of {plural(len(dataset), 'mask')} with values without a class: {several(listed)}; expected "
        f"{several(known, 12)}. First: {faults[0].message}",
        "add the values to data.<name>.ids (or .colours) or data.<name>.ignore, or set data.<name>.others: ignore",
        tuple(labels_at(dataset, [fault.index for fault in faults])),
    )


def _sizes(name: str, dataset: Dataset, masks: DatasetStatistics) -> Iterator[Finding]:
    faults = masks.of("size")
    if not faults:
        return
    hints = Counter(_hint(masks[fault.index]) for fault in faults)
    listed = "; ".join(f"{plural(count, 'time')}: {hint}" for hint, count in hints.most_common() if hint)
    yield Finding(
        "error",
        "size-mismatch",
        name,
        f"{len(faults)} of {plural(len(dataset), 'mask')} of another size than the image. First: {faults[0].message}"
        + (f". {listed}" if listed else ""),
        "export images and masks at one size; for rotated photographs, save the image upright or remove its "
        "orientation tag, whichever fits the mask",
        tuple(files_of(dataset, masks, "size")),
    )


def _hint(mask: MaskStatistics) -> str:
    """Likely reason for a mask of another size than its image; empty if unknown."""
    height, width = mask.image_size
    if (mask.width, mask.height) == (height, width):
        return "the mask is rotated by 90°: EXIF"
    if abs(mask.height * width - mask.width * height) < max(width, height):
        return f"the mask has {mask.width / width:.3g} times the size of the image"
    if abs(mask.height * height - mask.width * width) < max(width, height):
        return "the mask is rotated by 90° and resized: EXIF"
    return ""


def binary_trap(
    name: str, dataset: Dataset, masks: DatasetStatistics, siblings: Sequence[DatasetStatistics] = ()
) -> Iterator[Finding]:
    """Masks of 0 and 255 for one or two classes with 255 read as ignored, although it is the foreground.

    ``siblings`` are other splits of the same data: if they use 1, 255 may mean ignored here.
    """
    table = dataset.label_map.table
    if dataset.label_map.encoding == "rgb" or len(dataset.classes) > 2 or table.get(0) != 0:
        return
    if table.get(IGNORE) != IGNORE:
        return
    pixels: Counter[int] = Counter()
    ones = twofold = 0
    for mask in chain.from_iterable([masks, *siblings]):
        pixels.update(mask.values)
        ones += 1 in mask.values
        twofold += 1 in mask.values and 255 in mask.values
    files = labels_at(dataset, [index for index, mask in enumerate(masks) if {0, 255} <= mask.values.keys()])
    if not files or not set(pixels) <= {0, 1, 255}:
        return
    names = dataset.classes.names if len(dataset.classes) == 2 else ("background", dataset.classes.names[0])
    remedy = (
        f"set data.<name>.classes: [{names[0]}, {names[1]}], .ids: {{0: {names[0]}, 255: {names[1]}}} and .ignore: []"
    )
    share = pixels[255] / sum(pixels.values())
    if pixels[1] < 0.01 * pixels[255]:
        yield Finding(
            "error",
            "binary-255",
            name,
            f"masks hold only 0 and 255, and 255 ({share:.1%} of the pixels) is read as ignored, although it is the "
            f"foreground in masks of two values. First: {some(files)}",
            remedy,
            tuple(files),
        )
    elif not twofold and len(files) >= 3:
        yield Finding(
            "warning",
            "binary-mixed",
            name,
            f"foreground is 1 in {plural(ones, 'mask')}, and {len(files)} others hold only 0 and 255; 255 is read as "
            f"ignored there, but may be the foreground. First: {some(files)}",
            f"if 255 is the foreground, {remedy.replace('255:', f'1: {names[1]}, 255:')}",
            tuple(files),
        )
