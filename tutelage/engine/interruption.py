"""SIGINT and SIGTERM stop a run between two steps, with a checkpoint; a second signal stops it at once."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from tutelage.errors import TutelageError


class StoppedError(TutelageError):
    """A signal stopped the run after a step; a checkpoint is written."""

    def __init__(self, signal_number: int, step: int) -> None:
        name = signal.Signals(signal_number).name
        super().__init__("stopped", f"stopped by {name} after step {step}", "run the same command again to resume")
        self.exit_status = 128 + signal_number


class Interruption:
    """While active, record a signal instead of stopping at once."""

    def __init__(self) -> None:
        self.asked: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._remember)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._release()

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.asked = number
        self._release()  # a second signal has its usual effect

    def _release(self) -> None:
        while self._before:
            number, handler = self._before.popitem()
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def raise_if_asked(self, step: int) -> None:
        """Raise :class:`StoppedError` if a signal was received."""
        if self.asked is not None:
            raise StoppedError(self.asked, step)
