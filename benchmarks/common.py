"""What the measurements share: real images where there are any, fair turns, one table."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from tutelage.data.dataset import Dataset
from tutelage.data.folder import FolderSettings, open_folder
from tutelage.data.sources import ToycitySettings, open_data
from tutelage.engine.meter import peak_memory

ROOT = Path(__file__).parents[1]
CAMVID = Path(os.environ.get("TUTELAGE_DATA", ROOT / ".." / "shared" / "data")).resolve() / "camvid"


def street_data() -> tuple[Mapping[str, Dataset], str]:
    """Street images with masks: CamVid where it is, else the toy city; and which it was."""
    if CAMVID.is_dir():
        lists = {name: f"{name}.txt" for name in ("train", "val", "test")}
        return open_folder(FolderSettings(root=str(CAMVID), classes="classes.json", splits=lists), ROOT), "CamVid"
    counts = {"train": 160, "val": 40, "test": 80}
    root = Path(tempfile.gettempdir()) / "tutelage-bench-toycity"
    city = ToycitySettings(kind="toycity", root=str(root), splits=counts, size=(360, 480))
    return open_data(city, ROOT), "toy city 360x480"


def machine() -> str:
    """The machine in a line."""
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="ignore").splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model)
    except OSError:
        pass
    accelerator = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return (
        f"{model}, {os.cpu_count()} cores{accelerator}, torch {torch.__version__}, python {platform.python_version()}"
    )


def in_turns(ways: Mapping[str, Callable[[], object]], rounds: int, warm_up: int = 1) -> dict[str, list[float]]:
    """Seconds of every way, taken in turns so that a drift of the machine hits all alike."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(warm_up + rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            if number >= warm_up:
                times[name].append(time.perf_counter() - start)
    return times


def in_process(module: str, *arguments: str) -> dict[str, Any]:
    """Run ``python -m module arguments`` by itself; the last line that it prints is its JSON result."""
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def peak_since() -> float:
    """Forget the peak of memory so far; what is resident now, in MiB (Linux)."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return peak_memory(torch.device("cpu"))


@contextmanager
def one_thread() -> Iterator[None]:
    """The processes started inside compute on one thread."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def ratio_line(what: str, slow: list[float], fast: list[float], unit: str = "s") -> str:
    """One row: medians of both, and the median of the ratios taken round by round, with its range."""
    ratios = [a / b for a, b in zip(slow, fast, strict=True)]
    return (
        f"| {what} | {statistics.median(slow):.4g} {unit} | {statistics.median(fast):.4g} {unit} | "
        f"**{statistics.median(ratios):.2f}** | {min(ratios):.2f}-{max(ratios):.2f} |"
    )


HEADER = "| what | plain | tutelage | ratio | range |\n| --- | --- | --- | --- | --- |"
