"""Optional cache of decoded images and masks: in the memory of each process, or in files that all processes map."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tutelage.data.dataset import Dataset
from tutelage.data.images import read_raw_mask
from tutelage.runs.atomic import writing


class ImageCache:
    """Cache of decoded arrays by file.

    ``kind`` is ``none``, ``memory`` or ``disk``. ``disk`` stores .npy files in ``folder`` and memory-maps them, so that
    a crop reads only its own rows.
    """

    def __init__(self, kind: str = "none", folder: str | None = None) -> None:
        self.kind = kind
        self.folder = Path(folder) if folder else Path(os.environ.get("TMPDIR", "/tmp")) / "tutelage-cache"
        self._memory: dict[str, np.ndarray] = {}

    def image(self, dataset: Dataset, index: int) -> np.ndarray:
        """Image ``index`` of ``dataset``, (H, W, 3) uint8."""
        return self._get(dataset.samples[index].image, "", lambda: dataset.image(index))

    def label(self, dataset: Dataset, index: int) -> np.ndarray:
        """Mask ``index`` of ``dataset`` as train ids, (H, W) uint8."""
        path = dataset.samples[index].label
        assert path is not None
        # A mask that is resized to its image depends on that image, too.
        salt = f"{dataset.label_map.identity} {dataset.samples[index].image if dataset.resize_labels else ''}"
        return self._get(path, salt, lambda: dataset.label(index))

    def confidence(self, dataset: Dataset, index: int) -> np.ndarray:
        """Confidence map ``index`` of a pseudo-labelled ``dataset``, (H, W) uint8."""
        path = dataset.samples[index].confidence
        assert path is not None
        return self._get(path, "", lambda: read_raw_mask(path))

    def weight(self, dataset: Dataset, index: int) -> np.ndarray:
        """Map of pixel weights ``index`` of ``dataset``, (H, W) uint8."""
        path = dataset.samples[index].weight
        assert path is not None
        return self._get(path, "", lambda: read_raw_mask(path))

    def _get(self, path: Path, salt: str, make: Callable[[], np.ndarray]) -> np.ndarray:
        if self.kind == "none":
            return make()
        if self.kind == "memory":
            name = f"{path}\x1f{salt}"
            if name not in self._memory:
                self._memory[name] = make()
            return self._memory[name]
        return self._mapped(path, salt, make)

    def _mapped(self, path: Path, salt: str, make: Callable[[], np.ndarray]) -> np.ndarray:
        if not path.is_file():
            return make()  # raises the error
        state = path.stat()
        name = hashlib.blake2b(
            f"{path.resolve()}\x1f{salt}\x1f{state.st_size}\x1f{state.st_mtime_ns}".encode(), digest_size=16
        ).hexdigest()
        stored = self.folder / name[:2] / f"{name}.npy"
        if not stored.is_file():
            array = make()
            with writing(stored) as partial:
                np.save(partial, array)
        return np.asarray(np.load(stored, mmap_mode="r"))
