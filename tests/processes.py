"""Processes for tests that kill: started from a server that has torch already, so that each costs little.

status = in_child(train, folder, steps)         # the exit status; -9 for one that was killed
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["torch", "tutelage.engine.loop", "tutelage.nets.build", "tutelage.pipeline.run"])


def start(function: Callable[..., Any], *arguments: Any) -> Any:
    """A process that runs ``function``, which must be importable by name."""
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))
    process = _SERVER.Process(target=_run, args=(function, arguments))
    process.start()
    return process


def in_child(function: Callable[..., Any], *arguments: Any) -> int:
    """Run ``function`` in a process of its own; its exit status."""
    process = start(function, *arguments)
    process.join()
    assert process.exitcode is not None
    return int(process.exitcode)


def die() -> None:
    """End this process as a power cut would."""
    os.kill(os.getpid(), signal.SIGKILL)


class Countdown:
    """Kills this process before the ``number``-th call (from 1) of what it was put in front of; counts them."""

    def __init__(self, number: int = 0) -> None:
        self.number = number
        self.calls = 0

    def before(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **named: Any) -> Any:
            self.calls += 1
            if self.calls == self.number:
                die()
            return function(*arguments, **named)

        return counted


def write_half(countdown: Countdown) -> Callable[[dict[str, torch.Tensor], Path], None]:
    """A ``save_file`` that dies when half of the ``number``-th file is written."""

    def write(tensors: dict[str, torch.Tensor], path: Path) -> None:
        save_file(tensors, path)
        countdown.calls += 1
        if countdown.calls == countdown.number:
            os.truncate(path, path.stat().st_size // 2)
            die()

    return write


def kill_until_done(function: Callable[..., Any], folder: Path, seconds: Callable[[], float]) -> int:
    """Start ``function(folder)`` again and again, killed after ``seconds()`` each time, until it ends; the kills.

    The time grows with each, so that a busy machine gets there, too.
    """
    for kills in itertools.count():
        process = start(function, folder)
        process.join(seconds() * 1.05**kills)
        process.kill()
        process.join()
        if process.exitcode == 0:
            return kills
    raise AssertionError("unreachable")


def count_disk_calls(countdown: Countdown) -> None:
    """Put ``countdown`` before everything that makes a file last, gives it its name or removes it."""
    for name in ("fsync", "replace", "unlink"):
        setattr(os, name, countdown.before(getattr(os, name)))


def _run(function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    function(*arguments)


_ROOT = Path(__file__).parents[1]
