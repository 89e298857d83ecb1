"""Output of a run: a progress bar on a terminal, plain lines elsewhere, nothing on ranks above 0."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tutelage.engine import collectives

_EVERY_S = 10.0


class Display:
    """Writes messages and progress; ``quiet`` suppresses everything but errors."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet or collectives.rank() > 0
        self._bars = not self.quiet and sys.stderr.isatty()

    def say(self, text: str) -> None:
        """One message."""
        if not self.quiet:
            print(text, flush=True)

    def left_out(self, what: str, names: Sequence[str]) -> None:
        """Report unreadable images, if any."""
        if names:
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            self.say(f"  {len(names)} {what} cannot be read and are skipped: {', '.join(names[:5])}{more}")

    def training(self, record: dict[str, Any]) -> None:
        """One record of a training log as a line."""
        if "evaluation" in record:
            scores = ", ".join(f"{name} {100 * value['miou']:.2f}" for name, value in record["evaluation"].items())
            self.say(f"  step {record['step']}: validation mIoU {scores}")
            return
        if "choice" in record:
            figures = ", ".join(f"{name} {value:.4f}" for name, value in record["choice"].items())
            self.say(f"  step {record['step']}: without masks: {figures}")
            return
        terms = " ".join(f"{name} {value:.4g}" for name, value in record["terms"].items())
        self.say(
            f"  step {record['step']}/{record['steps']}  {terms}  rate {next(iter(record['rate'].values())):.0%}  "
            f"{record['images_per_s']:.1f} images/s  wait {record['data_wait']:.0%}  "
            f"{record['memory_mib']:.0f} MiB  left {_clock(record['eta_s'])}"
        )

    @contextmanager
    def bar(self, title: str, total: int) -> Iterator[Callable[[int, int], None]]:
        """Progress of a loop: the yielded function takes (done, total)."""
        if self._bars:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
                task = progress.add_task(title, total=total)
                yield lambda done, total: progress.update(task, completed=done, total=total)
            return
        last = time.monotonic()

        def line(done: int, total: int) -> None:
            nonlocal last
            if time.monotonic() - last >= _EVERY_S:
                last = time.monotonic()
                self.say(f"  {title}: {done}/{total}")

        yield line


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
