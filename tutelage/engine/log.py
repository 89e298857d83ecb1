"""The log of a training stage: always JSON lines in a file; also the terminal and trackers.

The file holds one record per line, at most one per step: a resumed run first removes the records after its
checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from tutelage.engine.trackers import Tracker, open_trackers
from tutelage.runs.atomic import write_text


class TrainingLog:
    """Records of one stage; ``show`` prints them on the terminal."""

    def __init__(
        self,
        path: Path | None,
        show: Callable[[dict[str, Any]], None] = lambda record: None,
        trackers: Sequence[str] = (),
        name: str = "",
        config: dict[str, Any] | None = None,
    ) -> None:
        self.path = path
        self.show = show
        self._wanted = (tuple(trackers), name, config or {})
        self._trackers: list[Tracker] = []

    def begin(self, step: int) -> None:
        """Remove records after ``step``, where the run resumes."""
        if self.path is not None and self.path.is_file():
            kept = [record for record in read_log(self.path) if record["step"] <= step]
            write_text(self.path, "".join(json.dumps(record) + "\n" for record in kept))

    def record(self, record: dict[str, Any]) -> None:
        """Log one record, a mapping with a ``step``."""
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        self.show(record)
        for tracker in self._trackers:
            tracker.log(flat(record), int(record["step"]))

    def __enter__(self) -> TrainingLog:
        names, name, config = self._wanted
        folder = Path(".") if self.path is None else self.path.parent
        self._trackers = open_trackers(names, name, folder, config)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for tracker in self._trackers:
            tracker.close()


def read_log(path: Path) -> list[dict[str, Any]]:
    """The records of a log; a truncated last line is skipped."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and "step" in record:
            records.append(record)
    return records


def flat(record: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers of a record under flat names (``terms/cross_entropy``), for trackers."""
    result: dict[str, float] = {}
    for name, value in record.items():
        if isinstance(value, dict):
            result.update(flat(value, f"{prefix}{name}/"))
        elif isinstance(value, (int, float)) and name not in ("step", "steps"):
            result[f"{prefix}{name}"] = float(value)
    return result
