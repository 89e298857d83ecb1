"""Each tracker's library is called with the numbers, their step and the name of the run; the libraries are fakes."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tutelage.engine.trackers import open_trackers

Calls = list[tuple[Any, ...]]


class Fake(ModuleType):
    """A module every function of which notes its calls."""

    def __init__(self, name: str, calls: Calls) -> None:
        super().__init__(name)
        self.calls = calls

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *values, **options: self.calls.append((name, *values, *options.items()))


def calls_of(kind: str, module: str, monkeypatch: pytest.MonkeyPatch, folder: Path) -> Calls:
    calls: Calls = []
    fake = Fake(module, calls)
    if kind == "tensorboard":

        class SummaryWriter(Fake):
            def __init__(self, folder: str) -> None:
                super().__init__("writer", calls)
                calls.append(("open", folder))

        fake.SummaryWriter = SummaryWriter  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module, fake)
    (tracker,) = open_trackers([kind], "student", folder, {"seed": 1, "text": "x" * 300})
    tracker.log({"loss": 0.25, "rate": 1.0}, 40)
    tracker.close()
    return calls


def test_tensorboard(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert calls_of("tensorboard", "torch.utils.tensorboard", monkeypatch, tmp_path) == [
        ("open", str(tmp_path / "tensorboard")),
        ("add_scalar", "loss", 0.25, 40),
        ("add_scalar", "rate", 1.0, 40),
        ("close",),
    ]


def test_mlflow(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert calls_of("mlflow", "mlflow", monkeypatch, tmp_path) == [
        ("start_run", ("run_name", "student")),
        ("log_params", {"seed": "1", "text": "x" * 250}),
        ("log_metrics", {"loss": 0.25, "rate": 1.0}, ("step", 40)),
        ("end_run",),
    ]


@pytest.mark.parametrize("kind", ["wandb", "trackio"])
def test_wandb_and_what_is_called_like_it(kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = {"seed": 1, "text": "x" * 300}
    assert calls_of(kind, kind, monkeypatch, tmp_path) == [
        ("init", ("project", "tutelage"), ("name", "student"), ("config", config)),
        ("log", {"loss": 0.25, "rate": 1.0}, ("step", 40)),
        ("finish",),
    ]
