"""Pseudo labels from one net: class maps and confidences of all images, by a policy.

Reading, inference, and compression, checksums and counts overlap. A finished image is a pair of whole
files and a line in a list, so that a run that was killed goes on with the next one. Policies that need thresholds of
all images first look at each twice; what the first look has counted is kept after every image.

    pseudo_labels.json         the manifest: policy, thresholds, what was kept of each class, samples in order
    labels/ confidence/        the maps
    images.jsonl               per image: predicted and kept pixels (not for argmax, which keeps all)
    thresholds.json            what a first look found; histogram.json: of class_balanced
    images-RANK.jsonl survey/  while the work lasts
"""

# Legend: H W pixels, K classes, L levels, N images, C counts of an image.

from __future__ import annotations

import hashlib
import io
import json
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from tutelage.annotate.class_quantiles import ClassThresholds
from tutelage.annotate.image_scores import ImageScores
from tutelage.annotate.net_outputs import OnUnreadable, pictures
from tutelage.annotate.policies import BINS, Policy, PolicyLabels, thinned
from tutelage.audit.metrics import count_maps
from tutelage.data.dataset import Dataset
from tutelage.data.labels import IGNORE
from tutelage.data.pseudo_labels import PseudoLabelFolder, write_grey
from tutelage.engine import collectives
from tutelage.errors import DataError, TutelageError
from tutelage.evaluation.inference import SegmentationModel
from tutelage.evaluation.protocol import Protocol
from tutelage.runs.atomic import sha256, write_json, write_text, writing

Progress = Callable[[int, int], None]
_WRITERS, _QUEUE = 2, 4


@dataclass(frozen=True)
class Record:
    """What is known of a finished image beside its maps."""

    label: str
    """SHA-256 of the label map."""
    confidence: str
    """SHA-256 of the confidence map."""
    said: list[int]
    """Pixels of each class (K), before the policy."""
    counts: list[int]
    """:func:`~tutelage.audit.metrics.count_maps` of the written maps."""
    thinned: bool = True
    """Whether the policy has been applied."""


@dataclass(frozen=True)
class Written:
    """What a folder of pseudo labels holds."""

    files: dict[Path, str]
    """All files; with the SHA-256 where it is known, else an empty text."""
    names: list[str]
    """The samples that have maps, in order."""
    unreadable: list[str]
    """The samples that could not be read and have none."""
    threshold_K: NDArray[np.float64]
    """The threshold of each class, in the unit of the policy."""
    said_K: NDArray[np.int64]
    """Pixels of each class before the policy."""
    kept_K: NDArray[np.int64]
    """Pixels of each class that have a label."""
    counts_NC: NDArray[np.int64]
    """:func:`~tutelage.audit.metrics.count_maps` of each image."""


@dataclass(frozen=True)
class _Labelling:
    """One call of :func:`annotate`."""

    net: SegmentationModel
    dataset: Dataset
    root: Path
    policy: Policy
    protocol: Protocol
    device: torch.device
    on_unreadable: OnUnreadable
    sure_K: Sequence[int]
    progress: Progress

    @property
    def folder(self) -> PseudoLabelFolder:
        return PseudoLabelFolder(self.root)

    @property
    def mine(self) -> list[int]:
        """The images of this process."""
        return list(range(len(self.dataset)))[collectives.rank() :: collectives.world()]

    def scores(self, image_HW3: NDArray[np.uint8]) -> ImageScores:
        return ImageScores(self.net, image_HW3, self.protocol, self.device)

    def name(self, index: int) -> str:
        return self.dataset.samples[index].name


def annotate(
    net: SegmentationModel,
    dataset: Dataset,
    root: Path,
    *,
    policy: Policy,
    device: torch.device,
    protocol: Protocol,
    producer: str,
    on_unreadable: OnUnreadable = "error",
    sure_levels: Sequence[int] | None = None,
    progress: Progress = lambda done, total: None,
    say: Callable[[str], None] = lambda text: None,
) -> Written | None:
    """Label every image of ``dataset`` (whose masks are not opened) into ``root``; ``None`` but in the first process.

    ``producer`` is the key of the net; ``sure_levels`` (K) are those of ``counts``, 0 by default. With several
    processes each labels its share; the files are the same. Raises :class:`DataError` for an image that cannot be read,
    unless such images are to be skipped, and ``OSError`` for a full disk; what is finished then is not done again.
    """
    sure_K = [0] * policy.classes if sure_levels is None else sure_levels
    work = _Labelling(net, dataset, root, policy, protocol, device, on_unreadable, sure_K, progress)
    found = _thresholds(work) if policy.surveys else policy.thresholds(np.zeros((0, BINS), dtype=np.int64))
    records, _ = _load_records(root)
    collectives.barrier()  # no process writes while another reads
    with _Journal(root) as journal:
        _label(work, journal, records, found.threshold_K)
        levels = policy.levels()
        if policy.portion_kept is not None:
            collectives.barrier()
            levels = _balance(work, journal, policy.portion_kept)
    collectives.barrier()
    if collectives.rank():
        collectives.barrier()  # until the first process has done the rest
        return None
    records, unreadable = _load_records(root)
    facts: dict[str, Any] = {"producer": producer, "policy": policy.name, "protocol": protocol.key()}
    if levels is None:
        facts["thresholds"] = [float(value) if np.isfinite(value) else None for value in found.threshold_K]
    else:
        facts["levels"] = levels
        found = ClassThresholds(np.array(levels) / 255, found.pixels_K)
    written = _finish(work, records, unreadable, facts, found.threshold_K)
    _tell(work, written, say)
    collectives.barrier()
    return written


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


# The first look


def _thresholds(work: _Labelling) -> ClassThresholds:
    """The thresholds of a policy that needs a look at all images, stored once they are known."""
    stored = work.root / "thresholds.json"
    if not stored.is_file():
        _survey(work)
        collectives.barrier()
        if collectives.rank() == 0:
            histogram_KL = np.zeros((work.policy.classes, BINS), dtype=np.int64)
            for path in _partials(work.root):
                histogram_KL.reshape(-1)[:] += _Partial.load(path, work.policy.classes).cells
            threshold_K, pixels_K = work.policy.thresholds(histogram_KL)
            finite = [float(value) if np.isfinite(value) else None for value in threshold_K]
            write_json(stored, {"thresholds": finite, "pixels": pixels_K.tolist()})
        collectives.barrier()
    content = json.loads(stored.read_text(encoding="utf-8"))
    threshold_K = np.array([-np.inf if value is None else value for value in content["thresholds"]])
    return ClassThresholds(threshold_K, np.array(content["pixels"], dtype=np.int64))


class _Partial:
    """The histogram of the images that one process has looked at."""

    def __init__(self, names: list[str], cells: NDArray[np.int64]) -> None:
        self.names, self.cells = names, cells

    @staticmethod
    def load(path: Path, classes: int) -> _Partial:
        cells = np.zeros(classes * BINS, dtype=np.int64)
        if not path.is_file():
            return _Partial([], cells)
        with np.load(path) as stored:
            cells[stored["place"]] = stored["count"]
            return _Partial(json.loads(stored["names"].tobytes()), cells)

    def add(self, name: str, cells_HW: NDArray[np.int32], path: Path) -> None:
        """Count an image, and keep that it is counted."""
        self.cells += np.bincount(cells_HW.ravel(), minlength=len(self.cells))
        self.names.append(name)
        filled = np.flatnonzero(self.cells)
        with writing(path) as partial:
            np.savez(
                partial,
                names=np.frombuffer(json.dumps(self.names).encode(), dtype=np.uint8),
                place=filled,
                count=self.cells[filled],
            )


def _partials(root: Path) -> list[Path]:
    return sorted(path for path in (root / "survey").glob("*.npz") if not path.name.startswith("."))


def _survey(work: _Labelling) -> None:
    """Count this process's images into its partial histogram; those in any partial are done."""
    classes = work.policy.classes
    done = {name for path in _partials(work.root) for name in _Partial.load(path, classes).names}
    own = work.root / "survey" / f"{collectives.rank()}.npz"
    partial = _Partial.load(own, classes)
    collectives.barrier()  # no process writes while another reads
    mine = work.mine
    places = {index: place for place, index in enumerate(mine, 1)}
    todo = [index for index in mine if work.name(index) not in done]
    with _writers(1, 1) as submit:
        for picture in pictures(work.dataset, todo, on_unreadable=work.on_unreadable):
            cells_HW = work.policy.survey(work.scores(picture.image))
            submit(partial.add, work.name(picture.index), cells_HW, own)
            work.progress(places[picture.index], 2 * len(mine))


# Labels


def _label(work: _Labelling, journal: _Journal, records: dict[str, Record], threshold_K: NDArray[np.float64]) -> None:
    """Write the maps of this process's images that are not there yet."""
    folder, mine = work.folder, work.mine
    done = {index for index in mine if folder.has(work.name(index)) and _is_whole(work, records, work.name(index))}
    todo = [index for index in mine if index not in done]
    first = len(mine) if work.policy.surveys else 0
    with _writers(_WRITERS, _QUEUE) as submit:
        for index in sorted(done):
            if work.name(index) not in records:
                submit(_recall, work, journal, work.name(index))
        seen = set()
        for picture in pictures(work.dataset, todo, on_unreadable=work.on_unreadable):
            labels = work.policy.label(work.scores(picture.image), threshold_K)
            submit(_write, work, journal, work.name(picture.index), labels)
            seen.add(picture.index)
            work.progress(first + len(done) + len(seen), first + len(mine))
    for index in todo:
        if index not in seen:
            journal.note(work.name(index), None)


def _is_whole(work: _Labelling, records: dict[str, Record], name: str) -> bool:
    """Whether maps are as they were written; without a record, taken as they are where all pixels are kept."""
    record = records.get(name)
    if record is None:
        return work.policy.complete
    return (sha256(work.folder.label(name)), sha256(work.folder.confidence(name))) == (record.label, record.confidence)


def _write(work: _Labelling, journal: _Journal, name: str, labels: PolicyLabels) -> None:
    label_HW = thinned(labels)
    label, confidence = work.folder.write(name, label_HW, labels.confidence_HW)
    journal.note(
        name,
        Record(
            label,
            confidence,
            _class_pixels(labels.label_HW, work.policy.classes),
            count_maps(label_HW, labels.confidence_HW, work.sure_K).tolist(),
            work.policy.portion_kept is None,
        ),
    )


def _recall(work: _Labelling, journal: _Journal, name: str) -> None:
    """The record of maps whose record is gone; of a policy that keeps all pixels."""
    (label_HW, label), (confidence_HW, confidence) = _read(work.folder.label(name)), _read(work.folder.confidence(name))
    said = _class_pixels(label_HW, work.policy.classes)
    journal.note(name, Record(label, confidence, said, count_maps(label_HW, confidence_HW, work.sure_K).tolist()))


def _class_pixels(label_HW: NDArray[np.uint8], classes: int) -> list[int]:
    pixels: list[int] = np.bincount(label_HW.ravel(), minlength=256)[:classes].tolist()
    return pixels


def _read(path: Path) -> tuple[NDArray[np.uint8], str]:
    """A map (H, W) and its SHA-256."""
    content = path.read_bytes()
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image), hashlib.sha256(content).hexdigest()


# Thinning of class_balanced


def _balance(work: _Labelling, journal: _Journal, portion: float) -> list[int]:
    """Leave of each class the surest portion; the levels."""
    records, _ = _load_records(work.root)
    collectives.barrier()
    levels = _balanced_levels(work, records, portion)
    with _writers(_WRITERS, _QUEUE) as submit:
        for index in work.mine:
            record = records.get(work.name(index))
            if record is not None and not record.thinned:
                submit(_apply_levels, work, journal, work.name(index), record, levels)
    return levels


def _balanced_levels(work: _Labelling, records: dict[str, Record], portion: float) -> list[int]:
    """Thresholds of all classes. Stored before any map is changed: a second run must not count thinned maps."""
    stored, classes = work.root / "histogram.json", work.policy.classes
    if collectives.rank() == 0 and not stored.is_file():
        histogram = np.zeros((classes, 256), dtype=np.int64)
        for name in records:
            (label, _), (confidence, _) = _read(work.folder.label(name)), _read(work.folder.confidence(name))
            valid = label != IGNORE
            index = label[valid].astype(np.int64) * 256 + confidence[valid]
            histogram += np.bincount(index, minlength=classes * 256).reshape(classes, 256)
        write_json(stored, histogram.tolist())
    collectives.barrier()
    return class_thresholds(np.array(json.loads(stored.read_text(encoding="utf-8"))), portion)


def _apply_levels(work: _Labelling, journal: _Journal, name: str, record: Record, levels: list[int]) -> None:
    path = work.folder.label(name)
    (label_HW, label), (confidence_HW, _) = _read(path), _read(work.folder.confidence(name))
    bound = np.append(np.array(levels, dtype=np.int64), np.zeros(256 - len(levels), dtype=np.int64))[label_HW]
    kept_HW = np.where(confidence_HW >= bound, label_HW, np.uint8(IGNORE))
    if not np.array_equal(kept_HW, label_HW):
        label = write_grey(path, kept_HW)
    counts = count_maps(kept_HW, confidence_HW, work.sure_K).tolist()
    journal.note(name, Record(label, record.confidence, record.said, counts))


# Records


class _Journal:
    """Appends a record of each finished image, one per line, to a file of this process."""

    def __init__(self, root: Path) -> None:
        self._path = root / f"images-{collectives.rank()}.jsonl"
        self._lock = threading.Lock()
        self._file: TextIO | None = None

    def __enter__(self) -> _Journal:
        return self

    def __exit__(self, *error: object) -> None:
        if self._file is not None:
            self._file.close()

    def note(self, name: str, record: Record | None) -> None:
        """Append the record of an image; ``None``: it cannot be read. A kill leaves it in the system's hands."""
        line = json.dumps({"name": name, **({"unreadable": True} if record is None else asdict(record))})
        with self._lock:
            if self._file is None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._file = open(self._path, "a", encoding="utf-8")  # noqa: SIM115 - as long as the work
            # A line begins with a line end: what a full disk cut short stays alone.
            self._file.write(f"\n{line}")
            self._file.flush()


def _load_records(root: Path) -> tuple[dict[str, Record], set[str]]:
    """Records by name, the newest of each, and the names of images that could not be read."""
    records, unreadable = _read_records(root / "images.jsonl")  # older than any journal
    new: dict[str, Record] = {}
    for path in _journals(root):
        found, lost = _read_records(path)
        # Of an image in two of them (the number of processes was another) the record after thinning is the later one.
        new.update({name: it for name, it in found.items() if name not in new or it.thinned})
        unreadable |= lost
    return {**records, **new}, unreadable


def _read_records(path: Path) -> tuple[dict[str, Record], set[str]]:
    records: dict[str, Record] = {}
    unreadable = set()
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            content = json.loads(line)
            name = content.pop("name")
            if content.pop("unreadable", False):
                unreadable.add(name)
            else:
                records[name] = Record(**content)
        except (ValueError, KeyError, TypeError, AttributeError):
            continue  # cut short
    return records, unreadable


def _journals(root: Path) -> list[Path]:
    return sorted(root.glob("images-*.jsonl"))


def _finish(
    work: _Labelling,
    records: dict[str, Record],
    unreadable: set[str],
    facts: dict[str, Any],
    threshold_K: NDArray[np.float64],
) -> Written:
    """Write the manifest and remove what the work needed. Of the first process alone."""
    root, folder, classes = work.root, work.folder, work.policy.classes
    given = [sample.name for sample in work.dataset.samples]
    names = [name for name in given if name in records]
    lost = [name for name in given if name not in records]
    if lost and (work.on_unreadable == "error" or not set(lost) <= unreadable):
        raise TutelageError(
            "file-missing", f"pseudo labels of {lost[0]} are missing in {root}", "run the annotate stage again"
        )
    if not names:
        raise DataError(
            "image-unreadable", f"{work.dataset.name}: none of {len(given)} images can be read", "check the data set"
        )
    said_K = np.array([records[name].said for name in names], dtype=np.int64).sum(0)
    counts_NC = np.array([records[name].counts for name in names], dtype=np.int64)
    kept_K = counts_NC[:, :classes].sum(0)
    extra = []
    if not work.policy.complete:
        facts["retained"] = {
            class_: {"said": int(said), "kept": int(kept), "share": round(kept / said, 6) if said else None}
            for class_, said, kept in zip(work.dataset.classes.names, said_K, kept_K, strict=True)
        }
        lines = [json.dumps({"name": name, **asdict(records[name])}, sort_keys=True) for name in names]
        write_text(root / "images.jsonl", "\n".join(lines) + "\n")
        extra.append(root / "images.jsonl")
    if work.policy.surveys:
        extra.append(root / "thresholds.json")
    if lost:
        facts["unreadable"] = lost
    files = dict.fromkeys([*folder.finish(work.dataset.classes.names, facts, names), *extra], "")
    for name in names:
        files[folder.label(name)], files[folder.confidence(name)] = records[name].label, records[name].confidence
    for path in _journals(root):
        path.unlink()
    shutil.rmtree(root / "survey", ignore_errors=True)
    return Written(files, names, lost, threshold_K, said_K, kept_K, counts_NC)


def _tell(work: _Labelling, written: Written, say: Callable[[str], None]) -> None:
    """Shares kept per class, classes without labels and why, and images left out."""
    names = work.dataset.classes.names
    pairs = list(zip(names, written.said_K.tolist(), written.kept_K.tolist(), strict=True))
    if not work.policy.complete:
        shares = [f"{name} {100 * kept / said:.1f} %" if said else f"{name} -" for name, said, kept in pairs]
        say(f"  kept of each class: {', '.join(shares)}")
    for (name, said, kept), threshold in zip(pairs, written.threshold_K, strict=True):
        if not kept:
            why = f"none of its {said} pixels reaches the threshold {threshold:.4g}" if said else "no pixel shows it"
            say(f"  warning: class {name} got no pseudo label: {why}")
    for doubt in work.policy.doubts(written.threshold_K):
        say(f"  warning: {doubt}")
    if written.unreadable:
        left = written.unreadable
        shown = ", ".join(left[:5]) + (f" and {len(left) - 5} more" if len(left) > 5 else "")
        say(f"  warning: {len(left)} images cannot be read and have no labels: {shown}")


# Threads


@contextmanager
def _writers(threads: int, queue: int) -> Iterator[Callable[..., None]]:
    """Hands work to threads; no more than ``queue`` tasks wait, and what goes wrong in one is raised here."""
    with ThreadPoolExecutor(threads) as pool:
        waiting: list[Future[None]] = []

        def submit(function: Callable[..., None], *arguments: Any) -> None:
            while len(waiting) >= queue:
                waiting.pop(0).result()
            waiting.append(pool.submit(function, *arguments))

        yield submit
        for task in waiting:
            task.result()
