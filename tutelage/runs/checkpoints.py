"""Checkpoint files of a training stage: written atomically, verified when read; more than one is kept.

A checkpoint is a tensor file and a JSON file with the other state and the SHA-256 of both. The JSON file is written
last: a checkpoint without it does not exist. If the latest is damaged, the one before it is used.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tutelage.runs.atomic import remove_partials, sha256, write_json, writing

_STATE_NAME = re.compile(r"checkpoint-(\d+)\.json")


@dataclass(frozen=True)
class VerifiedCheckpoint:
    """A checkpoint whose checksums match."""

    step: int
    tensors: Path
    state: dict[str, Any]


class Checkpoints:
    """The checkpoints of one stage in ``folder``; the ``keep`` newest are kept."""

    def __init__(self, folder: Path, keep: int = 2, say: Callable[[str], None] = lambda text: None) -> None:
        self.folder = folder
        self.keep = keep
        self.say = say

    def save(self, step: int, write_tensors: Callable[[Path], None], state: dict[str, Any]) -> None:
        """Write the checkpoint of ``step``, then remove those beyond ``keep``.

        An ``OSError`` (e.g. a full disk) leaves earlier checkpoints unchanged.
        """
        tensors = self._tensors(step)
        with writing(tensors) as partial:
            write_tensors(partial)
        checksums = {"sha256": sha256(tensors), "state_sha256": _digest(state)}
        write_json(self._state(step), {"step": step, "state": state, **checksums})
        self._remove_old()

    def _remove_old(self) -> None:
        """Remove all but the ``keep`` newest, and incomplete files of killed runs."""
        steps = self.steps()
        for old in steps[: -self.keep]:
            self._state(old).unlink(missing_ok=True)  # first: without it the tensors are nothing
        kept = {self._tensors(step) for step in steps[-self.keep :]}
        for path in self.folder.glob("checkpoint-*.safetensors"):
            if path not in kept:  # also those whose state a kill kept from being written
                path.unlink(missing_ok=True)

    def latest(self) -> VerifiedCheckpoint | None:
        """The newest checkpoint whose checksum holds, or ``None``; damaged ones are named and taken away."""
        if not self.folder.is_dir():
            return None
        remove_partials(self.folder)
        self._remove_old()
        steps = self.steps()
        for number, step in enumerate(reversed(steps), 1):
            try:
                return self._verified(step)
            except PermissionError:
                raise
            except (OSError, ValueError) as error:
                instead = (
                    "using the one before it" if number < len(steps) else "no earlier one: training from the start"
                )
                self.say(f"checkpoint of step {step} is damaged ({error}); {instead}")
            self._state(step).unlink(missing_ok=True)
            self._tensors(step).unlink(missing_ok=True)
        return None

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, ascending."""
        names = (_STATE_NAME.fullmatch(path.name) for path in self.folder.glob("checkpoint-*.json"))
        return sorted(int(name[1]) for name in names if name is not None)

    def _verified(self, step: int) -> VerifiedCheckpoint:
        content = json.loads(self._state(step).read_text(encoding="utf-8"))
        if not isinstance(content, dict) or content.keys() != {"step", "sha256", "state", "state_sha256"}:
            raise ValueError("invalid state file")
        if content["step"] != step or _digest(content["state"]) != content["state_sha256"]:
            raise ValueError("checksum of the state does not match")
        if sha256(self._tensors(step)) != content["sha256"]:
            raise ValueError("checksum does not match")
        return VerifiedCheckpoint(step, self._tensors(step), content["state"])

    def _tensors(self, step: int) -> Path:
        return self.folder / f"checkpoint-{step:09d}.safetensors"

    def _state(self, step: int) -> Path:
        return self.folder / f"checkpoint-{step:09d}.json"


def _digest(state: dict[str, Any]) -> str:
    read_back = json.loads(json.dumps(state))  # keys as text, tuples as lists
    return hashlib.sha256(json.dumps(read_back, sort_keys=True).encode()).hexdigest()
