"""Pseudo labels from one net: its class map, its confidence, and a policy that says which pixels count.

Reading, the net and writing overlap. Every finished image is a pair of whole files, so that a run that was killed
goes on with the next one. The class-balanced policy needs a second look: thresholds come from a histogram of
confidences over all images (256 bins a class, whatever the number of images).
"""

# Legend: H W pixels, K classes.

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from tutelage.data.dataset import Dataset
from tutelage.data.labels import IGNORE
from tutelage.data.pseudo_labels import PseudoLabelFolder, write_grey
from tutelage.engine import collectives
from tutelage.evaluation.inference import Net, predict_labels
from tutelage.evaluation.protocol import Protocol
from tutelage.runs.atomic import write_json

Policy = Literal["argmax", "threshold", "class_balanced"]
_AHEAD = 4


def annotate(
    net: Net,
    dataset: Dataset,
    root: Path,
    *,
    device: torch.device,
    protocol: Protocol,
    policy: Policy,
    threshold: float,
    portion: float,
    producer: str,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Path]:
    """Label every image of ``dataset`` (whose masks are not opened) into ``root``; returns all files.

    ``producer`` is the key of the net. With several processes each labels its share; the files are the same.
    """
    folder = PseudoLabelFolder(root)
    names = [sample.name for sample in dataset.samples]
    mine = list(range(len(dataset)))[collectives.rank() :: collectives.world()]
    todo = [index for index in mine if not folder.has(names[index])]
    # Under `threshold` a pixel's fate is known at once; the balanced thresholds need all images first.
    lowest = _level(threshold) if policy == "threshold" else 0
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
        pending = [reader.submit(dataset.image, index) for index in todo[:_AHEAD]]
        written = []
        for number, index in enumerate(todo):
            image = pending.pop(0).result()
            if number + _AHEAD < len(todo):
                pending.append(reader.submit(dataset.image, todo[number + _AHEAD]))
            label, confidence = predict_labels(net, image, protocol, device, confidence=True)
            assert confidence is not None
            label[confidence < lowest] = IGNORE
            written.append(writer.submit(folder.write, names[index], label, confidence))
            if len(written) > _AHEAD:
                written.pop(0).result()
            progress(len(mine) - len(todo) + number + 1, len(mine))
        for waiting in written:
            waiting.result()
    collectives.barrier()
    classes = len(dataset.classes)
    levels = [lowest] * classes
    if policy == "class_balanced":
        levels = _balanced_levels(folder, root / "histogram.json", names, classes, portion)
        for index in mine:
            _apply_levels(folder, names[index], levels)
        collectives.barrier()
    if collectives.rank():
        return []
    facts = {"producer": producer, "policy": policy, "protocol": protocol.key(), "levels": levels}
    return folder.finish(dataset.classes.names, facts, names)


def class_thresholds(histogram_KL: NDArray[np.int64], portion: float) -> list[int]:
    """Per class the level (0..255) at or above which the surest ``portion`` of its pixels lie; 255 without pixels.

    Source: class-balanced self-training (ECCV 2018), thresholds read off a histogram instead of a sorted list.
    """
    levels = []
    for counts in histogram_KL:
        wanted = int(round(portion * int(counts.sum()), 6))  # 0.29 x 100 is 29
        above = counts[::-1].cumsum()
        levels.append(IGNORE if wanted == 0 else 255 - int(np.searchsorted(above, wanted)))
    return levels


def _level(threshold: float) -> int:
    return int(np.ceil(threshold * 255 - 1e-9))


def _balanced_levels(
    folder: PseudoLabelFolder, stored: Path, names: list[str], classes: int, portion: float
) -> list[int]:
    """Thresholds of all classes. Stored before any map is changed: a second run must not count thinned maps."""
    if collectives.rank() == 0 and not stored.is_file():
        histogram = np.zeros((classes, 256), dtype=np.int64)
        for name in names:
            label, confidence = _read(folder.label(name)), _read(folder.confidence(name))
            valid = label != IGNORE
            index = label[valid].astype(np.int64) * 256 + confidence[valid]
            histogram += np.bincount(index, minlength=classes * 256).reshape(classes, 256)
        write_json(stored, histogram.tolist())
    collectives.barrier()
    return class_thresholds(np.array(json.loads(stored.read_text(encoding="utf-8"))), portion)


def _apply_levels(folder: PseudoLabelFolder, name: str, levels: list[int]) -> None:
    label, confidence = _read(folder.label(name)), _read(folder.confidence(name))
    bound = np.append(np.array(levels, dtype=np.int64), np.zeros(256 - len(levels), dtype=np.int64))[label]
    thinned = np.where(confidence >= bound, label, np.uint8(IGNORE))
    if not np.array_equal(thinned, label):
        write_grey(folder.label(name), thinned)


def _read(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        return np.asarray(image)
