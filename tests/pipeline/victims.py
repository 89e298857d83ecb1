"""What is run in processes that are killed: a whole recipe through the command line."""

from __future__ import annotations

import contextlib
import importlib
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.processes import Countdown, count_disk_calls, write_half
from tutelage.cli import main
from tutelage.engine import checkpoint
from tutelage.methods.supervised import Supervised


def run(root: Path, where: str = "", number: int = 0, *arguments: str) -> None:
    """Run the recipe in ``root`` and end with the command's status; what it says is added to ``said.txt`` there.

    ``where`` and ``number`` say at which call (from 1) of what this process dies: ``disk``, ``half a checkpoint``, a
    function as ``module:name``; or, for ``SIGTERM`` and ``SIGINT``, in which training step the signal comes. The number
    of those calls is left in ``calls``.
    """
    os.environ["TUTELAGE_CACHE"] = str(root / "cache")
    os.chdir(root)
    countdown = Countdown(number)
    if where == "disk":
        count_disk_calls(countdown)
    elif where == "half a checkpoint":
        checkpoint.save_file = write_half(countdown)  # type: ignore[attr-defined]
    elif where.startswith("SIG"):
        Supervised.forward = _signalled(Supervised.forward, getattr(signal, where), number)  # type: ignore[method-assign]
    elif where:
        put_before(where, countdown.before)
    with _telling(root / "said.txt"):
        status = main(["run", "recipe.yaml", *arguments])
    (root / "calls").write_text(str(countdown.calls), encoding="utf-8")
    raise SystemExit(status)


def run_and_halt(root: Path, place: str) -> None:
    """Run the recipe in ``root`` up to the first call of ``place`` (``module:name``); there, make ``here`` and wait."""

    def halting(function: Callable[..., Any]) -> Callable[..., Any]:
        def wait(*arguments: Any, **named: Any) -> None:
            (root / "here").touch()
            time.sleep(600)

        return wait

    put_before(place, halting)
    run(root)


def put_before(place: str, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Wrap the function at ``module:name`` or ``module:Class.name``."""
    module, _, name = place.partition(":")
    owner: Any = importlib.import_module(module)
    *outer, name = name.split(".")
    for part in outer:
        owner = getattr(owner, part)
    setattr(owner, name, wrap(getattr(owner, name)))


def run_with_snapshots(root: Path, copies: Path) -> None:
    """Run the recipe in ``root``; before every disk call, keep in ``copies`` what a kill at that moment would leave."""

    class Camera(Countdown):
        busy = False

        def before(self, function: Callable[..., Any]) -> Callable[..., Any]:
            def counted(*arguments: Any, **named: Any) -> Any:
                if not self.busy:
                    self.calls += 1
                    self.busy = True
                    if (root / "runs").is_dir():
                        shutil.copytree(root / "runs", copies / f"{self.calls:04d}")
                    self.busy = False
                return function(*arguments, **named)

            return counted

    os.environ["TUTELAGE_CACHE"] = str(root / "cache")
    os.chdir(root)
    count_disk_calls(Camera())
    raise SystemExit(main(["run", "recipe.yaml", "--quiet"]))


def run_in_company(root: Path, rank: int, world: int, port: int, failing: int, *arguments: str) -> None:
    """Run the recipe in ``root`` as one of ``world`` processes, as ``torchrun`` would start it.

    The rank ``failing`` (-1: none) runs out of memory in its second training step.
    """
    if rank == failing:
        put_before("tutelage.methods.supervised:Supervised.forward", _failing_at_the_second_call)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), TUTELAGE_CACHE=str(root / "cache"))
    os.chdir(root)
    with _telling(root / f"said-{rank}.txt"):
        status = main(["run", "recipe.yaml", *arguments])
    raise SystemExit(status)


@contextlib.contextmanager
def _telling(path: Path) -> Iterator[None]:
    with open(path, "a", encoding="utf-8") as said, contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        yield


def _failing_at_the_second_call(function: Callable[..., Any]) -> Callable[..., Any]:
    calls = 0

    def counted(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise MemoryError("as if")
        return function(*arguments, **named)

    return counted


def _signalled(forward: Callable[..., Any], number: signal.Signals, step: int) -> Callable[..., Any]:
    calls = 0

    def forward_and_ask(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == step:
            os.kill(os.getpid(), number)
        return forward(*arguments, **named)

    return forward_and_ask
