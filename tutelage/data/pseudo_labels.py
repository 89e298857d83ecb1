"""The pseudo-label format: predictions of a net as files that a stream reads like masks.

A folder with ``labels/NAME.png`` (8-bit grey, train ids, 255 = not labelled), ``confidence/NAME.png`` (8-bit, 255 =
confidence 1) and ``pseudo_labels.json``: format version, class names, the key of the net that predicted them, the
policy with its thresholds, and the samples in order.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tutelage.class_lists import renamed
from tutelage.data.dataset import Dataset, inner_path
from tutelage.data.labels import identity
from tutelage.data.manifests import read_manifest
from tutelage.errors import DataError
from tutelage.runs.atomic import write_bytes, write_json

FORMAT = 1
MANIFEST = "pseudo_labels.json"


@dataclass(frozen=True)
class PseudoLabelFolder:
    """The maps of one ``annotate`` stage."""

    root: Path

    def label(self, name: str) -> Path:
        """Path of the label map of sample ``name``."""
        return self.root / "labels" / f"{inner_path(name)}.png"

    def confidence(self, name: str) -> Path:
        """Path of the confidence map of sample ``name``."""
        return self.root / "confidence" / f"{inner_path(name)}.png"

    def write(self, name: str, label_HW: np.ndarray, confidence_HW: np.ndarray) -> tuple[str, str]:
        """Write both maps of a sample, (H, W) uint8; return the SHA-256 of the label file and of the confidence file.

        The label is written last, so that a label file implies its confidence file.
        """
        confidence = write_grey(self.confidence(name), confidence_HW)
        return write_grey(self.label(name), label_HW), confidence

    def has(self, name: str) -> bool:
        """Whether both maps of a sample exist."""
        return self.label(name).is_file() and self.confidence(name).is_file()

    def finish(self, classes: Sequence[str], facts: dict[str, Any], names: Sequence[str]) -> list[Path]:
        """Write the manifest; return every file of the folder."""
        write_json(self.root / MANIFEST, {"format": FORMAT, "classes": list(classes), "samples": list(names), **facts})
        maps = [path for name in names for path in (self.label(name), self.confidence(name))]
        return [self.root / MANIFEST, *maps]


def write_grey(path: Path, values_HW: np.ndarray) -> str:
    """Write (H, W) uint8 as an 8-bit grey PNG, atomically; return the SHA-256 of the file."""
    content = grey_png(values_HW)
    write_bytes(path, content)
    return hashlib.sha256(content).hexdigest()


def grey_png(values_HW: np.ndarray) -> bytes:
    """Encode (H, W) uint8 as an 8-bit grey PNG: filter "up" on every row, compression level 1.

    Pillow tries five filters per row, which takes three times as long for files a few per cent smaller, and holds the
    interpreter lock; zlib releases it.
    """
    height, width = values_HW.shape
    rows = np.empty((height, width + 1), dtype=np.uint8)
    rows[:, 0] = 2  # the filter "up"
    rows[0, 1:] = values_HW[0]
    np.subtract(values_HW[1:], values_HW[:-1], out=rows[1:, 1:])
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.data, 1)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(body, zlib.crc32(kind)))
        for kind, body in chunks
    )


def with_pseudo_labels(dataset: Dataset, root: Path) -> Dataset:
    """The samples of ``dataset`` that have maps in ``root``, with these as masks in place of their own.

    Raises :class:`DataError`: ``damaged-artefact``, ``artefact-format``, ``artefact-mismatch`` (other classes).
    """
    folder = PseudoLabelFolder(root)
    manifest = read_manifest(root / MANIFEST, FORMAT, "pseudo labels", "annotate", ("classes",))
    classes, known = tuple(manifest["classes"]), set(manifest["samples"])
    if not renamed(classes, dataset.classes.names):
        raise DataError(
            "artefact-mismatch",
            f"pseudo labels in {root} have other classes than {dataset.name}: {', '.join(classes)}",
            f"run the annotate stage again for: {', '.join(dataset.classes.names)}",
        )
    samples = tuple(
        replace(sample, label=folder.label(sample.name), confidence=folder.confidence(sample.name))
        for sample in dataset.samples
        if sample.name in known
    )
    return replace(dataset, samples=samples, label_map=identity(len(dataset.classes)))
