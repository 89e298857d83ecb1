"""Checkpoint files of a training stage: written whole, verified when read, and more than one kept.

A checkpoint is a tensor file and a JSON file that names it, its SHA-256 and the state that is no tensor. The JSON
file is written last: a checkpoint without it does not exist. When the latest is damaged, the one before is used.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tutelage.runs.atomic import remove_partials, sha256, write_json, writing


@dataclass(frozen=True)
class Found:
    """A checkpoint that was verified."""

    step: int
    tensors: Path
    state: dict[str, Any]


class Checkpoints:
    """The checkpoints of one stage in ``folder``; the ``keep`` newest stay."""

    def __init__(self, folder: Path, keep: int = 2, say: Callable[[str], None] = lambda text: None) -> None:
        self.folder = folder
        self.keep = keep
        self.say = say

    def save(self, step: int, write_tensors: Callable[[Path], None], state: dict[str, Any]) -> None:
        """Write the checkpoint of ``step``, then remove those beyond ``keep``.

        An ``OSError`` (a full disk) leaves the earlier checkpoints as they were.
        """
        tensors = self._tensors(step)
        with writing(tensors) as partial:
            write_tensors(partial)
        write_json(self._state(step), {"step": step, "sha256": sha256(tensors), "state": state})
        for old in self.steps()[: -self.keep]:
            self._state(old).unlink(missing_ok=True)  # first: without it the tensors are nothing
            self._tensors(old).unlink(missing_ok=True)

    def latest(self) -> Found | None:
        """The newest checkpoint whose checksum holds, or ``None``; damaged ones are named and taken away."""
        if not self.folder.is_dir():
            return None
        remove_partials(self.folder)
        for step in reversed(self.steps()):
            try:
                content = json.loads(self._state(step).read_text(encoding="utf-8"))
                if sha256(self._tensors(step)) == content["sha256"]:
                    return Found(step, self._tensors(step), content["state"])
                fault = "its checksum does not hold"
            except (OSError, ValueError, KeyError) as error:
                fault = str(error)
            self.say(f"checkpoint of step {step} is damaged ({fault}); using the one before")
            self._state(step).unlink(missing_ok=True)
            self._tensors(step).unlink(missing_ok=True)
        return None

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, ascending."""
        return sorted(int(path.stem.rpartition("-")[2]) for path in self.folder.glob("checkpoint-*.json"))

    def _tensors(self, step: int) -> Path:
        return self.folder / f"checkpoint-{step:09d}.safetensors"

    def _state(self, step: int) -> Path:
        return self.folder / f"checkpoint-{step:09d}.json"
