"""Check of the loss: a term that is not finite stops the run and names the term, the step and the images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from tutelage.data.batch import Batch
from tutelage.errors import TutelageError
from tutelage.runs.atomic import writing


class NotFiniteError(TutelageError):
    """A loss term became NaN or infinite."""


@dataclass
class _PendingCheck:
    flags: Tensor
    names: tuple[str, ...]
    step: int
    pass_name: str
    batches: Mapping[str, Batch]
    copied: torch.cuda.Event | None = None


class Watch:
    """Checks the terms of every pass; on a GPU one step late, to avoid synchronising with the device."""

    def __init__(self, folder: Path | None, say: Callable[[str], None] = lambda text: None) -> None:
        self.folder = folder
        self.say = say
        self._waiting: list[_PendingCheck] = []

    def check(self, terms: Mapping[str, Tensor], step: int, pass_name: str, batches: Mapping[str, Batch]) -> None:
        """Check the terms of one pass. Raises :class:`NotFiniteError`."""
        if not terms:
            return
        flags = torch.isfinite(torch.stack([term.detach().float() for term in terms.values()]))
        seen = _PendingCheck(flags, tuple(terms), step, pass_name, batches)
        if flags.device.type == "cpu":
            self._judge(seen)
            return
        seen.flags = torch.empty(flags.shape, dtype=flags.dtype, pin_memory=True).copy_(flags, non_blocking=True)
        seen.copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        seen.copied.record()
        due = [item for item in self._waiting if item.step < step]
        self._waiting = [*(item for item in self._waiting if item.step >= step), seen]
        for item in due:
            self._judge(item)

    def finish(self) -> None:
        """Check the pending terms (before a checkpoint and at the end)."""
        waiting, self._waiting = self._waiting, []
        for item in waiting:
            self._judge(item)

    def _judge(self, seen: _PendingCheck) -> None:
        if seen.copied is not None:
            seen.copied.synchronize()  # waits for this copy only, started a step ago
        if bool(seen.flags.all()):
            return
        bad = [name for name, finite in zip(seen.names, seen.flags.tolist(), strict=True) if not finite]
        samples = [sample for batch in seen.batches.values() for sample in batch.samples]
        saved = self._save(seen)
        raise NotFiniteError(
            "loss-not-finite",
            f"loss term {', '.join(bad)} is not finite at step {seen.step} (pass {seen.pass_name!r}); "
            f"images: {', '.join(samples) or 'unknown'}{saved}",
            "lower the learning rate, set clip: 1.0 or precision: fp32; check these images with `tutelage check`",
        )

    def _save(self, seen: _PendingCheck) -> str:
        if self.folder is None:
            return ""
        tensors = {
            # Cloned: views may share a map, which safetensors does not allow.
            f"{stream}.{view}.{name}": value.detach().cpu().contiguous().clone()
            for stream, batch in seen.batches.items()
            for view, content in batch.views.items()
            for name, value in {"image": content.image, **content.maps}.items()
        }
        if not tensors:
            return ""
        path = self.folder / f"not-finite-{seen.step:09d}.safetensors"
        try:
            with writing(path) as partial:
                save_file(tensors, partial)
        except OSError as error:  # must not hide the loss error
            return f"; the batch could not be saved ({error.strerror})"
        return f"; the batch is saved in {path}"
