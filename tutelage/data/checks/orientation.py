"""Checks of orientation tags: a camera's note "turn me" that one program heeds and the next one does not.

Images and masks are read upright here. A mask that was drawn on the pixels as they are stored then lies wrong: seen by
its size when the turn is a quarter, and by where its borders lie when it is a half.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image

from tutelage.data.checks.findings import Finding, plural, some
from tutelage.data.checks.subject import Subject
from tutelage.data.images import opened, read_image, read_raw_mask
from tutelage.errors import DataError

_LOOKED_AT = 60  # pairs whose edges are compared
_CLEARLY = 1.1  # how much stronger the edges under a mask's borders must be


def orientation(subject: Subject) -> Iterator[Finding]:
    """Orientation tags: that there are some, and masks that were drawn on the pixels as they are stored."""
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
        "read upright, as viewers show them",
        "see with `tutelage show` that the masks lie right; writing all images upright, without a tag, ends the doubt",
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
            f"{plural(len(files), 'mask')} of the size of the image as stored, not as its orientation tag turns it: "
            f"{some(files)}",
            "the masks were drawn on the stored pixels: take the tags away (exiftool -Orientation= FILES), or turn the "
            "masks",
            files,
        )
    yield from _suspect(subject, level)


def _suspect(subject: Subject, level: Sequence[int]) -> Iterator[Finding]:
    places = np.linspace(0, len(level) - 1, min(_LOOKED_AT, len(level))).astype(int)
    looked_at = [level[place] for place in places]
    better = [index for index in looked_at if _fits_stored(subject, index)]
    if len(better) * 2 > len(looked_at):
        files = tuple(subject.dataset.samples[index].image for index in better)
        yield Finding(
            "warning",
            "exif-suspect",
            subject.name,
            f"the borders of {len(better)} of {plural(len(looked_at), 'mask')} follow the edges of the image better as "
            f"it is stored than as its orientation tag turns it: {some(files)}",
            "look at them with `tutelage show`; if the masks are turned, take the tags away (exiftool -Orientation= "
            "FILES)",
            files,
        )


def _fits_stored(subject: Subject, index: int) -> bool:
    """Whether a mask's borders lie on stronger edges when the orientation tag is not applied to the image."""
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
