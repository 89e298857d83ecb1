"""Experiment trackers, imported only if a recipe names them; otherwise no data is sent anywhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from tutelage.errors import RunError


class Tracker(Protocol):
    """Interface of a tracker for the log."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Send the numbers of one step."""
        ...

    def close(self) -> None:
        """Finish."""
        ...


class TensorBoard:
    """Event files in the stage's folder."""

    def __init__(self, name: str, folder: Path, config: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer: Any = SummaryWriter(str(folder / "tensorboard"))

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Write scalars."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and close."""
        self.writer.close()


class MLflow:
    """A run in the active MLflow tracking store."""

    def __init__(self, name: str, folder: Path, config: Mapping[str, Any]) -> None:
        import mlflow

        self.mlflow: Any = mlflow
        mlflow.start_run(run_name=name)
        mlflow.log_params({key: str(value)[:250] for key, value in config.items()})

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Log metrics."""
        self.mlflow.log_metrics(dict(values), step=step)

    def close(self) -> None:
        """End the run."""
        self.mlflow.end_run()


class WandbLike:
    """Weights & Biases, and trackio, which has the same three calls."""

    module = "wandb"

    def __init__(self, name: str, folder: Path, config: Mapping[str, Any]) -> None:
        import importlib

        self.library: Any = importlib.import_module(self.module)
        self.library.init(project="tutelage", name=name, config=dict(config))

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Log a row."""
        self.library.log(dict(values), step=step)

    def close(self) -> None:
        """Finish the run."""
        self.library.finish()


class Trackio(WandbLike):
    """trackio."""

    module = "trackio"


TRACKERS: dict[str, type] = {"tensorboard": TensorBoard, "mlflow": MLflow, "wandb": WandbLike, "trackio": Trackio}


def open_trackers(names: Sequence[str], name: str, folder: Path, config: Mapping[str, Any]) -> list[Tracker]:
    """The named trackers. Raises :class:`RunError` for one that is not installed."""
    result: list[Tracker] = []
    for kind in names:
        try:
            result.append(TRACKERS[kind](name, folder, config))
        except ImportError as error:
            raise RunError(
                "package-missing",
                f"tracker {kind!r} is not installed ({error})",
                "pip install 'tutelage[track]', or remove the tracker",
            ) from None
    return result
