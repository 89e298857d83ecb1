"""Weights of pixels, one 8-bit map an image: how much each pixel of a labelled image counts in a loss.

A folder with ``weights/NAME.png`` (8-bit grey, 255 = a weight of 1) and ``weights.json``: format version and the
samples that have a map.
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
    """Where the maps of one stage lie."""

    root: Path

    def map(self, name: str) -> Path:
        """The map of the sample ``name``."""
        return self.root / "weights" / f"{inner_path(name)}.png"

    def write(self, name: str, weight_HW: np.ndarray) -> None:
        """Write one map, (H, W) uint8, atomically."""
        write_grey(self.map(name), weight_HW)

    def finish(self, names: Sequence[str]) -> list[Path]:
        """Write the manifest; returns every file of the folder."""
        write_json(self.root / MANIFEST, {"format": FORMAT, "samples": list(names)})
        return [self.root / MANIFEST, *(self.map(name) for name in names)]


def with_weights(dataset: Dataset, root: Path) -> Dataset:
    """The samples of ``dataset`` with their maps in ``root``; those without one are left out.

    Raises :class:`DataError` for a folder of another format, and where no sample has a map.
    """
    folder = WeightFolder(root)
    known = set(read_manifest(root / MANIFEST, FORMAT, "weights", "fit")["samples"])
    samples = tuple(
        replace(sample, weight=folder.map(sample.name)) for sample in dataset.samples if sample.name in known
    )
    if dataset.samples and not samples:
        raise DataError(
            f"weights in {root} are of other images than those of {dataset.name} (its first: "
            f"{dataset.samples[0].name})",
            "name the fit stage that was made of these images",
        )
    return replace(dataset, samples=samples)
