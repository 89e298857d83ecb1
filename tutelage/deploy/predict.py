"""Predicting files: thousands of them, of any size, in bounded memory.

Reading, the net and writing overlap. Results are written atomically, and existing results are not computed again, so
that an interrupted call can be resumed. An unreadable file is reported, and the others continue.
"""

from __future__ import annotations

import errno
import json
from collections import deque
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from tutelage.deploy.decoded_image import MAX_PIXELS, DecodedImage, allowing
from tutelage.deploy.flow import Decoded, Room, decoded, threads
from tutelage.deploy.large import WHOLE_PIXELS
from tutelage.deploy.model import Model, PredictionResult
from tutelage.deploy.outputs import KINDS, Job, Kind, find_jobs
from tutelage.deploy.palette import coloured, overlaid
from tutelage.errors import RunError, TutelageError
from tutelage.runs.atomic import write_json, write_text, writing

FORMAT = 1
MANIFEST = "predictions.json"
FAILED = "failed.txt"

_JPEG_SIDE = 65_500
_OF_THE_NAME = (errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ)


@dataclass(frozen=True)
class PredictReport:
    """Numbers of predicted, skipped and failed images."""

    done: int
    """Images whose results were written."""
    skipped: int
    """Images whose results existed already."""
    failed: tuple[tuple[Path, str], ...]
    """Images without results, and the reasons."""

    def text(self) -> str:
        """One line, and one for each failure."""
        parts = [f"{self.done} predicted", *([f"{self.skipped} there already"] if self.skipped else [])]
        parts += [f"{len(self.failed)} failed"] if self.failed else []
        return "\n".join([", ".join(parts), *(f"  {reason}" for _, reason in self.failed)])

    def __str__(self) -> str:
        return self.text()


def predict_files(
    model: Model,
    inputs: Sequence[Path],
    out: Path,
    *,
    write: Collection[str] = ("palette",),
    overwrite: bool = False,
    alpha: float = 0.5,
    batch: int | None = None,
    max_pixels: int = MAX_PIXELS,
    progress: Callable[[int, int], None] = lambda done, total: None,
    say: Callable[[str], None] = lambda text: None,
) -> PredictReport:
    """Predict files, folders (with their subfolders) and patterns, and write the results into ``out``.

    ``write``: ``palette`` (``NAME.png``: pixels are class indices, viewers show colours), ``index``
    (``NAME_index.png``, the same in grey, for readers that convert palettes to colours), ``overlay``
    (``NAME_overlay.jpg``, with weight ``alpha``) and ``confidence`` (``NAME_confidence.png``). Names follow
    :mod:`tutelage.deploy.outputs`; ``predictions.json`` lists the classes, ``failed.txt`` the images that failed.
    ``batch``: small images of one size, or windows of a large one, per call of the net; default 1 on a CPU, else 8.

    Raises :class:`TutelageError` for missing inputs, and :class:`RunError` if ``out`` holds results of another net or
    cannot be written.
    """
    kinds = _checked(write, alpha, batch)
    jobs = find_jobs(inputs, out)
    _claim(model, out, overwrite)
    todo = {job: missing for job in jobs if (missing := _missing(job, out, kinds, overwrite))}
    skipped = len(jobs) - len(todo)
    if skipped:
        say(f"{skipped} of {len(jobs)} images already have results")
    work = _PredictJob(model, out, todo, alpha, batch or (1 if model.device.type == "cpu" else 8), say)
    with allowing(max_pixels):
        work.run(lambda done: progress(skipped + done, len(jobs)))
    failed = tuple((job.image, work.failed[job]) for job in todo if job in work.failed)
    report = PredictReport(len(todo) - len(failed), skipped, failed)
    if failed:
        write_text(out / FAILED, "".join(f"{path}\t{_one_line(reason)}\n" for path, reason in failed))
    else:
        (out / FAILED).unlink(missing_ok=True)
    return report


def _checked(write: Collection[str], alpha: float, batch: int | None) -> tuple[Kind, ...]:
    unknown = sorted(set(write) - set(KINDS))
    if unknown or not write:
        what = f"unknown kind of result {unknown[0]!r}" if unknown else "no kind of result given"
        raise TutelageError("invalid-value", what, f"use one or more of: {', '.join(KINDS)}")
    if not 0 <= alpha <= 1:
        raise TutelageError("invalid-value", f"alpha must be in [0, 1], got {alpha}", "set a value in this range")
    if batch is not None and batch < 1:
        raise TutelageError("invalid-value", f"batch must be at least 1, got {batch}", "set batch to 1 or more")
    return tuple(kind for kind in KINDS if kind in write)


def _missing(job: Job, out: Path, kinds: tuple[Kind, ...], overwrite: bool) -> tuple[Kind, ...]:
    return kinds if overwrite else tuple(kind for kind in kinds if not job.path(out, kind).is_file())


def _claim(model: Model, out: Path, overwrite: bool) -> None:
    """Write to ``out`` which net its results are of; refuse to mix them with another net's."""
    content: dict[str, Any] = {
        "format": FORMAT,
        "classes": list(model.classes),
        "palette": [list(colour) for colour in model.palette],
        "net": model.checksum,
        "protocol": "automatic" if model.protocol is None else model.protocol.canonical(),
        "precision": model.precision,
    }
    path = out / MANIFEST
    if path.is_file() and not overwrite:
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            before = {}
        differing = [key for key in ("classes", "net", "protocol", "precision") if before.get(key) != content[key]]
        if differing:
            raise RunError(
                "output-exists",
                f"{out} holds results of another {' and '.join(differing)}",
                "choose another folder, or overwrite the results",
            )
    try:
        write_json(path, content)
    except OSError as error:
        raise RunError(
            "write-failed", f"cannot write results to {out} ({error.strerror})", "choose another folder"
        ) from None


class _PredictJob:
    """One call: reading, prediction and writing."""

    def __init__(
        self,
        model: Model,
        out: Path,
        todo: dict[Job, tuple[Kind, ...]],
        alpha: float,
        batch: int,
        say: Callable[[str], None],
    ) -> None:
        self.model, self.out, self.todo, self.alpha, self.batch, self.say = model, out, todo, alpha, batch, say
        self.failed: dict[Job, str] = {}
        self._room = Room()
        self._told = model.protocol is not None

    def run(self, progress: Callable[[int], None]) -> None:
        """Predict all images; afterwards :attr:`failed` has those that failed, with reasons."""
        written: deque[tuple[Job, Future[None]]] = deque()
        done = 0

        def collect(everything: bool) -> None:
            nonlocal done
            while written and (everything or written[0][1].done()):
                self._settle(*written.popleft())
                done += 1
                progress(done)

        groups = decoded(list(self.todo), self._room, self.batch)
        pool = ThreadPoolExecutor(threads(), thread_name_prefix="write")
        try:
            for group in groups:
                for one, result in zip(group, self._predict(group), strict=True):
                    if result is None:
                        self._room.leave(one.room)
                        done += 1
                        progress(done)
                    else:
                        written.append((one.job, pool.submit(self._write, one, result)))
                collect(everything=False)
            collect(everything=True)
        finally:
            groups.close()
            pool.shutdown(cancel_futures=True)

    def _predict(self, group: list[Decoded]) -> list[PredictionResult | None]:
        """A result for each image; None for those that failed."""
        pictures = [one.picture for one in group if one.picture is not None]
        if len(pictures) < len(group):  # a failed image is alone in its group
            self.failed[group[0].job] = group[0].reason
            return [None]
        height, width = pictures[0].shape[:2]
        kinds = {kind for one in group for kind in self.todo[one.job]}
        if "overlay" in kinds and max(height, width) > _JPEG_SIDE:
            reason = f"too large for an overlay: a JPEG has at most {_JPEG_SIDE} pixels per side; do not write overlays"
            self.failed.update((one.job, f"{reason}: {one.job.image}") for one in group)
            return [None] * len(group)
        if not self._told and height * width > WHOLE_PIXELS:
            self._told = True
            way = self.model.protocol_for(height, width).describe()
            self.say(
                f"{group[0].job.image}: {width}x{height} pixels; images beyond {WHOLE_PIXELS / 1e6:.1f} megapixels are "
                f"predicted in {way}, unless a protocol is given"
            )
        return self._run_net(group, pictures, "confidence" in kinds)

    def _run_net(
        self, group: list[Decoded], pictures: list[DecodedImage], confidence: bool
    ) -> list[PredictionResult | None]:
        try:
            return list(self.model.predict_decoded(pictures, confidence, self.batch))
        except (MemoryError, RuntimeError) as error:
            if not _is_memory(error):
                raise
        if len(group) > 1:
            singly = [self._run_net([one], [two], confidence) for one, two in zip(group, pictures, strict=True)]
            return [result for results in singly for result in results]
        height, width = pictures[0].shape[:2]
        reason = f"out of memory with {width}x{height} pixels; use a sliding protocol or smaller windows"
        self.failed[group[0].job] = f"{reason}: {group[0].job.image}"
        return [None]

    def _write(self, one: Decoded, result: PredictionResult) -> None:
        try:
            for kind in self.todo[one.job]:
                with writing(one.job.path(self.out, kind)) as partial:
                    if kind == "overlay":
                        assert one.picture is not None
                        # In place, on the decoded image: it is not used again.
                        overlay = overlaid(one.picture.image, result.labels, result.palette, self.alpha)
                        overlay.save(partial, "JPEG", quality=90, subsampling=0)  # sharp class borders
                    else:
                        _map(result, kind).save(partial, "PNG", compress_level=3)
        finally:
            self._room.leave(one.room)

    def _settle(self, job: Job, writing_: Future[None]) -> None:
        """Record the outcome of a write. A full or unwritable folder is an error of the run, not of one image."""
        try:
            writing_.result()
        except OSError as error:
            if error.errno not in _OF_THE_NAME:
                raise RunError(
                    "write-failed",
                    f"cannot write results of {job.image} to {self.out} ({error.strerror or error})",
                    "free disk space or choose another folder, and run the same command again: it resumes here",
                ) from error
            self.failed[job] = f"invalid file name for its result: {job.image} ({error.strerror})"


def _map(result: PredictionResult, kind: Kind) -> Image.Image:
    if kind == "palette":
        return coloured(result.labels, result.palette)
    values = result.labels if kind == "index" else result.confidence
    assert values is not None
    return Image.fromarray(values)


def _is_memory(error: Exception) -> bool:
    text = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text


def _one_line(text: str) -> str:
    return " ".join(text.split())
