"""The pseudo-label format: what a net said of images, as files that a stream reads like masks.

A folder with ``labels/NAME.png`` (8-bit grey, train ids, 255 = not labelled), ``confidence/NAME.png`` (8-bit, 255 =
certain) and ``pseudo_labels.json``: format version, class names, the key of the net that made them, the policy with
its thresholds, and the samples in order.
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
    """Where the maps of one ``annotate`` stage lie."""

    root: Path

    def label(self, name: str) -> Path:
        """Label map of the sample ``name``."""
        return self.root / "labels" / f"{inner_path(name)}.png"

    def confidence(self, name: str) -> Path:
        """Confidence map of the sample ``name``."""
        return self.root / "confidence" / f"{inner_path(name)}.png"

    def write(self, name: str, label_HW: np.ndarray, confidence_HW: np.ndarray) -> tuple[str, str]:
        """Write both maps of a sample, the label last: where it is, the confidence is too. Their checksums, in order.

        Label and confidence: (H, W) uint8. The checksums are SHA-256, of label and confidence.
        """
        confidence = write_grey(self.confidence(name), confidence_HW)
        return write_grey(self.label(name), label_HW), confidence

    def has(self, name: str) -> bool:
        """Whether a sample is done."""
        return self.label(name).is_file() and self.confidence(name).is_file()

    def finish(self, classes: Sequence[str], facts: dict[str, Any], names: Sequence[str]) -> list[Path]:
        """Write the manifest; returns every file of the folder."""
        write_json(self.root / MANIFEST, {"format": FORMAT, "classes": list(classes), "samples": list(names), **facts})
        maps = [path for name in names for path in (self.label(name), self.confidence(name))]
        return [self.root / MANIFEST, *maps]


def write_grey(path: Path, values_HW: np.ndarray) -> str:
    """Write (H, W) uint8 as an 8-bit grey PNG, atomically; the SHA-256 of the file, so that nobody need read it."""
    content = grey_png(values_HW)
    write_bytes(path, content)
    return hashlib.sha256(content).hexdigest()


def grey_png(values_HW: np.ndarray) -> bytes:
    """(H, W) uint8 as an 8-bit grey PNG: every row as its difference from the one above, and little compression.

    Pillow tries five filters a row, which takes three times as long for maps a few per cent smaller, and in its thread
    alone; zlib lets others run.
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
    """The samples of ``dataset`` that have maps in ``root``, labelled by them; their own masks are forgotten.

    Raises :class:`DataError` for a folder of another format, or made for other classes.
    """
    folder = PseudoLabelFolder(root)
    manifest = read_manifest(root / MANIFEST, FORMAT, "pseudo labels", "annotate", ("classes",))
    classes, known = tuple(manifest["classes"]), set(manifest["samples"])
    if not renamed(classes, dataset.classes.names):
        raise DataError(
            f"pseudo labels in {root} were made for other classes: {', '.join(classes)}",
            f"run the annotate stage again for: {', '.join(dataset.classes.names)}",
        )
    samples = tuple(
        replace(sample, label=folder.label(sample.name), confidence=folder.confidence(sample.name))
        for sample in dataset.samples
        if sample.name in known
    )
    return replace(dataset, samples=samples, label_map=identity(len(dataset.classes)))
