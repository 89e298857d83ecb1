"""Per-pixel loss weights of labelled images, one 8-bit map per image.

A folder with ``weights/NAME.png`` (8-bit grey, 255 = weight 1) and ``weights.json``: format version and the samples
that have a map.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tutelage.data.dataset import Dataset, inner_path
from tutelage.data.manifests import read_manifest
from tutelage.data.pseudo_labels import write_grey
from tutelage.errors import DataError
from tutelage.runs.atomic import write_json

FORMAT = 1
MANIFEST = "weights.json"


@dataclass(frozen=True)
class WeightFolder:
    """The weight maps of one ``fit`` stage."""

    root: Path

    def map(self, name: str) -> Path:
        """Path of the map of sample ``name``."""
        return self.root / "weights" / f"{inner_path(name)}.png"

    def write(self, name: str, weight_HW: np.ndarray) -> None:
        """Write one map, (H, W) uint8, atomically."""
        write_grey(self.map(name), weight_HW)

    def finish(self, names: Sequence[str]) -> list[Path]:
        """Write the manifest; return every file of the folder."""
        write_json(self.root / MANIFEST, {"format": FORMAT, "samples": list(names)})
        return [self.root / MANIFEST, *(self.map(name) for name in names)]


def with_weights(dataset: Dataset, root: Path) -> Dataset:
    """The samples of ``dataset`` that have a weight map in ``root``, with their maps.

    Raises :class:`DataError`: ``damaged-artefact``, ``artefact-format``, ``artefact-mismatch`` (no sample has a map).
    """
    folder = WeightFolder(root)
    known = set(read_manifest(root / MANIFEST, FORMAT, "weights", "fit")["samples"])
    samples = tuple(
        replace(sample, weight=folder.map(sample.name)) for sample in dataset.samples if sample.name in known
    )
    if dataset.samples and not samples:
        raise DataError(
            "artefact-mismatch",
            f"weights in {root} contain no image of {dataset.name} (first: {dataset.samples[0].name})",
            "name the fit stage that ran on these images",
        )
    return replace(dataset, samples=samples)
