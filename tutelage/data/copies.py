"""Stylised copies of a data set's images: same names, same sizes, same masks, other pixels.

A folder with ``images/NAME.png`` (8-bit RGB, of the original's size) and ``images.json``: format version, and for each
sample the name of its style image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tutelage.data.dataset import Dataset, inner_path
from tutelage.data.images import opened
from tutelage.data.manifests import read_manifest
from tutelage.runs.atomic import write_json, writing

FORMAT = 1
MANIFEST = "images.json"
_STYLE = "style"


@dataclass(frozen=True)
class CopyFolder:
    """The images of one ``transform`` stage."""

    root: Path

    def image(self, name: str) -> Path:
        """Path of the copy of sample ``name``."""
        return self.root / "images" / f"{inner_path(name)}.png"

    def write(self, name: str, image_HW3: np.ndarray, style: str) -> None:
        """Write one image, (H, W, 3) uint8 RGB, atomically, with the name of its style image in the metadata."""
        note = PngInfo()
        note.add_itxt(_STYLE, style)
        with writing(self.image(name)) as partial:
            Image.fromarray(image_HW3).save(partial, format="PNG", compress_level=3, pnginfo=note)

    def finish(self, names: Sequence[str]) -> list[Path]:
        """Write the manifest of the samples in ``names``; return every file of the folder."""
        styles = {}
        for name in names:
            with opened(self.image(name)) as image:
                styles[name] = str(image.info.get(_STYLE, ""))
        write_json(self.root / MANIFEST, {"format": FORMAT, "styles": styles, "samples": list(names)})
        return [self.root / MANIFEST, *(self.image(name) for name in names)]


def with_copies(dataset: Dataset, root: Path) -> Dataset:
    """The samples of ``dataset`` that have a copy in ``root``, with the copy's pixels and their own masks.

    Raises :class:`DataError` (``damaged-artefact``, ``artefact-format``).
    """
    folder = CopyFolder(root)
    known = set(read_manifest(root / MANIFEST, FORMAT, "images", "transform")["samples"])
    samples = tuple(
        replace(sample, image=folder.image(sample.name)) for sample in dataset.samples if sample.name in known
    )
    return replace(dataset, samples=samples)
