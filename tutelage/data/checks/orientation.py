"""Checks of EXIF orientation tags, which some programs apply and others ignore.

Images and masks are read upright here. A mask that was drawn on the stored pixels is then misaligned: detected by its
size for rotations by 90°, and by the position of its borders for rotations by 180°.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image

from tutelage.data.checks.findings import Finding, plural, some
from tutelage.data.checks.subject import Subject
from tutelage.data.images import opened, read_image, read_raw_mask
from tutelage.errors import DataError

_MOST_PAIRS = 60  # pairs whose edges are compared
_CLEARLY = 1.1  # ratio of edge strengths under a mask's borders above which a mask counts as misaligned


def orientation(subject: Subject) -> Iterator[Finding]:
    """Images with orientation tags, and masks that were drawn on the stored pixels."""
    dataset, pictures = subject.dataset, subject.pictures
    tagged = [int(index) for index in np.flatnonzero(pictures.orientations > 1)]
    if not tagged:
        return
    files = tuple(dataset.samples[index].image for index in tagged)
    yield Finding(
        "note",
        "exif-orientation",
        subject.name,
        f"{len(files)} of {plural(len(dataset), 'image')} with an orientation tag: {some(files)}; image and mask are "
        "read upright, as in a viewer",
        "check with `tutelage show` that the masks are aligned; to be safe, save all images upright without a tag",
        files,
    )
    if subject.masks is None:
        return
    sideways, level = [], []
    for index in tagged:
        upright, mask = tuple(pictures.sizes[index]), tuple(subject.masks.sizes[index, :2])
        if mask == upright:
            level.append(index)
        elif mask == upright[::-1]:
            sideways.append(index)
    if sideways:
        files = tuple(dataset.samples[index].image for index in sideways)
        yield Finding(
            "error",
            "exif-mismatch",
            subject.name,
            f"{plural(len(files), 'mask')} with the size of the stored image, not of the upright one: {some(files)}",
            "remove the orientation tags (exiftool -Orientation= FILES), or rotate the masks; they were drawn on the "
            "stored pixels",
            files,
        )
    yield from _suspect(subject, level)


def _suspect(subject: Subject, level: Sequence[int]) -> Iterator[Finding]:
    places = np.linspace(0, len(level) - 1, min(_MOST_PAIRS, len(level))).astype(int)
    compared = [level[place] for place in places]
    better = [index for index in compared if _fits_stored(subject, index)]
    if len(better) * 2 > len(compared):
        files = tuple(subject.dataset.samples[index].image for index in better)
        yield Finding(
            "warning",
            "exif-suspect",
            subject.name,
            f"the borders of {len(better)} of {plural(len(compared), 'mask')} follow the edges of the stored image "
            f"better than those of the upright one: {some(files)}",
            "view them with `tutelage show`; if the masks are rotated, remove the orientation tags (exiftool "
            "-Orientation= FILES)",
            files,
        )


def _fits_stored(subject: Subject, index: int) -> bool:
    """Whether a mask's borders are on stronger edges of the stored image than of the upright one."""
    sample = subject.dataset.samples[index]
    assert sample.label is not None
    try:
        mask_HW = read_raw_mask(sample.label, subject.dataset.label_map.encoding)
        upright = _edges(Image.fromarray(read_image(sample.image)))
        with opened(sample.image) as image:
            stored = _edges(image)
    except DataError:
        return False
    border_HW = np.zeros(mask_HW.shape, bool)
    border_HW[:, 1:] |= mask_HW[:, 1:] != mask_HW[:, :-1]
    border_HW[1:] |= mask_HW[1:] != mask_HW[:-1]
    if not border_HW.any() or stored.shape != border_HW.shape:
        return False
    return bool(stored[border_HW].mean() > _CLEARLY * upright[border_HW].mean())


def _edges(picture: Image.Image) -> np.ndarray:
    rows, columns = np.gradient(np.asarray(picture.convert("L"), np.float32))
    return np.asarray(np.hypot(rows, columns))
