"""Decoding ahead of a net: several threads, images in order, and a limit on the pixels in memory.

An image counts against the limit from before it is decoded until its results are written. Images are admitted in
order, so that the next image never waits for a later one; an image above the limit is admitted when no other is in
memory.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass

from tutelage.deploy.decoded_image import DecodedImage
from tutelage.deploy.outputs import Job
from tutelage.errors import DataError

ROOM_PIXELS = 1 << 25
_LEAST_PIXELS = 1 << 18  # minimal count of an image, for its other memory
TOGETHER_PIXELS = 1 << 20


def threads() -> int:
    """Number of threads that decode, and of those that write."""
    return max(1, min(4, (os.cpu_count() or 1) // 2))


@dataclass(frozen=True)
class Decoded:
    """A decoded image, or the reason of failure."""

    job: Job
    picture: DecodedImage | None
    reason: str
    room: int
    """Pixels counted against the limit until it is written."""


class Room:
    """Admits images in order as long as their pixels fit into the limit."""

    def __init__(self, pixels: int = ROOM_PIXELS) -> None:
        self._limit = pixels
        self._used = 0
        self._next = 0
        self._closed = False
        self._changed = threading.Condition()

    def enter(self, number: int, pixels: int) -> None:
        """Wait until all images before ``number`` are in and there is room. Raises ``CancelledError`` if closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._fits(number, pixels))
            if self._closed:
                raise CancelledError
            self._next += 1
            self._used += pixels
            self._changed.notify_all()

    def _fits(self, number: int, pixels: int) -> bool:
        return number == self._next and (self._used == 0 or self._used + pixels <= self._limit)

    def leave(self, pixels: int) -> None:
        """Release pixels."""
        with self._changed:
            self._used -= pixels
            self._changed.notify_all()

    def close(self) -> None:
        """Admit no more images, and end all waiting."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


@dataclass(frozen=True)
class _Pending:
    header: Future[int]
    """Its pixels, known before admission; 0 for unreadable files."""
    result: Future[Decoded]


def decoded(jobs: Sequence[Job], room: Room, batch: int = 1) -> Generator[list[Decoded], None, None]:
    """All images in order, in lists of up to ``batch`` small ones of one size; an unreadable one is alone in its list.

    The caller releases the image's pixels.
    """
    ahead = 2 * threads() + batch
    pool = ThreadPoolExecutor(threads(), thread_name_prefix="decode")
    pending: deque[_Pending] = deque()
    upcoming = iter(enumerate(jobs))

    def top_up() -> None:
        while len(pending) < ahead and (entry := next(upcoming, None)) is not None:
            header: Future[int] = Future()
            pending.append(_Pending(header, pool.submit(_decode, *entry, room, header)))

    try:
        top_up()
        group: list[Decoded] = []
        while pending:
            # While a group is open, wait for headers only: a later image may need the group's room.
            if group and not _joins(pending[0].header.result(), group, batch):
                yield group
                group = []
            found = pending.popleft().result.result()
            top_up()
            if group and (found.picture is None or found.picture.shape != _shape(group)):
                yield group
                group = []
            group.append(found)
        if group:
            yield group
    finally:
        room.close()
        pool.shutdown(cancel_futures=True)


def _decode(number: int, job: Job, room: Room, header: Future[int]) -> Decoded:
    taken: list[int] = []

    def admit(pixels: int) -> None:
        header.set_result(pixels)
        room.enter(number, max(pixels, _LEAST_PIXELS))
        taken.append(max(pixels, _LEAST_PIXELS))

    try:
        return Decoded(job, DecodedImage.read(job.image, admit), "", sum(taken))
    except CancelledError:
        raise
    except Exception as error:  # a decoder may raise any error for a damaged file; other images continue
        reason = _reason(job, error)
        if taken:
            room.leave(sum(taken))
        else:
            header.set_result(0)
            room.enter(number, 0)
        return Decoded(job, None, reason, 0)


def _reason(job: Job, error: Exception) -> str:
    if isinstance(error, DataError):
        return error.message
    if isinstance(error, MemoryError):
        return f"image is too large for this machine's memory: {job.image}"
    return f"cannot read image: {job.image} ({type(error).__name__}: {error})"


def _joins(pixels: int, group: list[Decoded], batch: int) -> bool:
    first = group[0].picture
    same = first is not None and pixels == first.shape[0] * first.shape[1]
    return same and len(group) < batch and (len(group) + 1) * pixels <= TOGETHER_PIXELS


def _shape(group: list[Decoded]) -> tuple[int, int, int] | None:
    picture = group[0].picture
    return None if picture is None else picture.shape
