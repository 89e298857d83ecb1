"""Checks of single images: damage, unusual pixel formats, sizes; and masks without an image."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from tutelage.data.checks.findings import Finding, plural, several, some
from tutelage.data.checks.subject import Subject
from tutelage.data.images import IMAGE_SUFFIXES
from tutelage.settings import Settings

_MODES = {
    "L": "grey",
    "1": "black and white",
    "LA": "grey with alpha",
    "RGBA": "RGB with alpha",
    "PA": "palette with alpha",
    "P": "palette",
    "CMYK": "CMYK",
    "F": "floating point",
}


class SizeLimits(Settings):
    """Thresholds for small and large images."""

    side: int = 64
    """Shorter side in pixels below which an image is small."""
    megapixels: float = 25.0
    """Area in megapixels above which an image is large."""


def image_faults(subject: Subject) -> Iterator[Finding]:
    """Images that cannot be read."""
    faults = subject.pictures.faults
    if faults:
        files = [subject.dataset.samples[index].image for index in faults]
        yield Finding(
            "error",
            "image-unreadable",
            subject.name,
            f"{len(files)} of {plural(len(subject.dataset), 'image')} cannot be read: "
            + several(list(faults.values()), 3),
            "replace the files, or remove their lines from the list (run.on_unreadable: skip skips them)",
            tuple(files),
        )


def image_forms(subject: Subject, limits: SizeLimits) -> Iterator[Finding]:
    """Images that are not 8-bit RGB, and very small or very large ones."""
    dataset, pictures = subject.dataset, subject.pictures
    by_form: dict[str, list[Path]] = defaultdict(list)
    for sample, mode in zip(dataset.samples, pictures.modes, strict=True):
        if mode not in ("RGB", ""):
            by_form["16-bit grey" if mode.startswith("I") else _MODES.get(mode, mode)].append(sample.image)
    for form, files in sorted(by_form.items()):
        mixed = "" if len(files) == int(pictures.read.sum()) else "; the other images differ"
        yield Finding(
            "note",
            "image-form",
            subject.name,
            f"{len(files)} of {plural(len(dataset), 'image')} {form}: {some(files)}; read as 8-bit RGB{mixed}",
            "no change needed if images have this format at prediction, too; else convert all images to one format",
            tuple(files),
        )
    sizes = pictures.sizes
    small = np.flatnonzero(pictures.read & (sizes.min(1) < limits.side))
    large = np.flatnonzero(sizes.prod(1) > limits.megapixels * 1e6)
    for code, indices, what, remedy in (
        ("image-small", small, f"less than {limits.side} pixels high or wide", "enlarge or remove them"),
        (
            "image-large",
            large,
            f"larger than {limits.megapixels:g} megapixels",
            "cut them into tiles, or set run.cache: disk; every crop decodes the whole image",
        ),
    ):
        if len(indices):
            files = [dataset.samples[index].image for index in indices]
            height, width = sizes[indices[0]]
            yield Finding(
                "note",
                code,
                subject.name,
                f"{len(files)} of {plural(len(dataset), 'image')} {what}: {some(files)} (first: {width}x{height})",
                remedy,
                tuple(files),
            )


def below_crop(subject: Subject, crop: tuple[int, int]) -> Iterator[Finding]:
    """Images that are smaller than the training crop."""
    pictures = subject.pictures
    small = np.flatnonzero(pictures.read & (pictures.sizes < np.array(crop)).any(1))
    if len(small):
        files = [subject.dataset.samples[index].image for index in small]
        height, width = pictures.sizes[small[0]]
        yield Finding(
            "note",
            "image-below-crop",
            subject.name,
            f"{len(files)} of {plural(len(subject.dataset), 'image')} smaller than the crop of {crop[1]}x{crop[0]}, "
            f"before any random scale: {some(files)} (first: {width}x{height}); the rest of the crop is padding, which "
            "losses ignore",
            "reduce augment.crop to avoid computing on padding",
            tuple(files),
        )


def stray_masks(subjects: Sequence[Subject]) -> Iterator[Finding]:
    """Files in mask folders without an image, if masks are named after their images."""
    used = {sample.label for subject in subjects for sample in subject.dataset.samples}
    visited: set[Path] = set()
    for subject in subjects:
        pairs = [(s.image, s.label) for s in subject.dataset.samples if s.label is not None]
        stems: dict[Path, set[str]] = {}
        endings: dict[Path, set[str]] = defaultdict(set)
        homes: dict[Path, set[Path]] = defaultdict(set)
        for image, label in pairs:
            named_after = label.stem.startswith(image.stem)
            endings[label.parent].add(label.stem[len(image.stem) :] if named_after else "\x1f")
            homes[label.parent].add(image.parent)
        strays: list[Path] = []
        for folder in sorted(endings.keys() - visited):
            visited.add(folder)
            # Undecidable if masks and images share a folder, or if masks are named in several ways.
            if len(endings[folder]) > 1 or "\x1f" in endings[folder] or folder in homes[folder]:
                continue
            ending = next(iter(endings[folder]))
            for home in homes[folder] - stems.keys():
                stems[home] = {path.stem for path in _pictures_in(home)}
            for path in _pictures_in(folder):
                stem = path.stem.removesuffix(ending)
                if path not in used and path.stem.endswith(ending) and not any(stem in stems[h] for h in homes[folder]):
                    strays.append(path)
        if strays:
            yield Finding(
                "warning",
                "mask-stray",
                subject.name,
                f"{plural(len(strays), 'mask')} without image: {some(strays)}",
                "add the images, or remove the masks, which are not used",
                tuple(strays),
            )


def _pictures_in(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith("."))
