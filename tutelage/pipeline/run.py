"""Runs a recipe: every stage in order, skipping finished ones."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from tutelage.engine import collectives
from tutelage.engine.interruption import StoppedError
from tutelage.errors import RunError, TutelageError
from tutelage.nets.devices import find_device
from tutelage.pipeline.builder import Builder
from tutelage.pipeline.display import Display
from tutelage.pipeline.preflight import preflight
from tutelage.pipeline.runner import Workplace
from tutelage.recipe.loading import LoadedRecipe, resolved
from tutelage.recipe.references import moved, stages_before
from tutelage.recipe.schema import RunSettings
from tutelage.runs.store import Artefact, Store


@dataclass(frozen=True)
class RunResult:
    """The finished artefacts of a recipe, by stage."""

    out: Path
    artefacts: dict[str, Artefact]


@dataclass(frozen=True)
class Planned:
    """The planned action for one stage."""

    stage: str
    kind: str
    artefact: Artefact
    runs: bool
    why: str


def run(loaded: LoadedRecipe, *, only: Sequence[str] = (), quiet: bool = False) -> RunResult:
    """Run all stages of a recipe, or those named in ``only``.

    Raises :class:`TutelageError` for any error that the user can fix; finished stages stay finished.
    """
    with at_work(loaded.recipe.run) as device:
        _check_names(only, list(loaded.recipe.stages))
        names = [stage for stage in loaded.recipe.stages if not only or stage in only]
        work = begin(loaded, names, device, Display(quiet))
        for name in names:
            if not work.is_done(name):
                if only:
                    _check_inputs(work.builder, name, only)
                work.make(name)
        if collectives.rank() == 0:
            _publish_report(work.builder, work.store)
        work.display.say(f"all done: {work.store.out}")
    return RunResult(work.store.out, work.builder.artefacts)


@contextmanager
def at_work(settings: RunSettings) -> Iterator[torch.device]:
    """The device of this process, within a process group that is closed at the end."""
    device = find_device(settings.device)
    joined = collectives.join(device)
    if device.type == "cuda" and joined:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    _set_threads(settings)
    try:
        yield device
    except BaseException:
        collectives.leave(wait=False)
        raise
    collectives.leave()


@dataclass(frozen=True)
class Work:
    """A recipe and the stages to run, the same on all ranks."""

    builder: Builder
    store: Store
    text: str
    """The recipe, stored with its artefacts."""
    device: torch.device
    display: Display

    def is_done(self, name: str) -> bool:
        """Whether a stage's artefact is complete; reports it if so."""
        artefact = self.builder.artefacts[name]
        if self._fault(name):
            return False
        self.display.say(f"{name}: done ({artefact.folder.name})")
        if collectives.rank() == 0:
            artefact.tidy()
        return True

    def make(self, name: str) -> None:
        """Make a stage whose inputs are finished. Raises :class:`HeldError` while another process makes it."""
        artefact, display = self.builder.artefacts[name], self.display
        fault = self._fault(name)
        if collectives.rank() > 0:
            _make(self.builder, name, Workplace(self.device, display))
            return
        with artefact.lock(display.say):
            if collectives.world() == 1 and artefact.fault() is None:
                return  # another process finished it in the meantime
            if artefact.declared:
                display.say(f"{name}: {fault}; it is made again")
            display.say(f"{name}: {self.builder.recipe.stages[name].kind} → {artefact.folder}")
            artefact.reopen()
            artefact.begin(self.text)
            _make(self.builder, name, Workplace(self.device, display))

    def _fault(self, name: str) -> str:
        """Decided once, on rank 0: a slower rank could find a changed state."""
        return collectives.from_first((self.builder.artefacts[name].fault() or "") if collectives.rank() == 0 else "")


def begin(loaded: LoadedRecipe, names: Sequence[str], device: torch.device, display: Display) -> Work:
    """Assign all artefacts, check the inputs of the stages ``names``, and store the recipe."""
    recipe = loaded.recipe
    store = Store(Path(recipe.out_folder()))
    builder = Builder(loaded, display.say)
    builder.assign(store)
    text = resolved(moved(recipe, loaded.base, store.recipes_folder.resolve()))
    if collectives.rank() == 0:
        _writable(store)
        store.tidy()
        kept = [*builder.artefacts.values(), *builder.shared.values()]
        builder.check_class_names(names)
        preflight(builder, [name for name in names if builder.artefacts[name].manifest() is None])
        # Only now: a recipe that is refused must not become the newest, by which `clean` decides.
        store.remember(recipe.name, text, (artefact.key for artefact in kept))
    collectives.barrier()
    return Work(builder, store, text, device, display)


def _make(builder: Builder, name: str, work: Workplace) -> None:
    """Make one artefact; full disks and lack of memory become errors with a remedy."""
    try:
        builder.runner(name).run(work)
    except StoppedError:
        raise
    except torch.OutOfMemoryError as error:
        raise _out_of_memory(name, str(error)) from error
    except MemoryError as error:
        raise _out_of_memory(name, str(error)) from error
    except RuntimeError as error:
        text = str(error)
        if "can't allocate memory" in text or "out of memory" in text.lower():
            raise _out_of_memory(name, text) from error
        raise
    except ValueError as error:
        if "Expected more than 1 value per channel" not in str(error):
            raise
        raise TutelageError(
            "batch-norm-single-value",
            f"stage {name!r}: batch norm cannot train on one value per channel (a batch, or micro-batch, of one)",
            "use a batch of at least two images per micro-batch and process, or a decoder that does not pool the "
            "whole image, e.g. lraspp, fpn or segformer",
        ) from error
    except OSError as error:
        if error.errno in (28, 122, 27):  # no space, quota, file too large
            place = error.filename or builder.artefacts[name].folder
            raise RunError(
                "disk-full",
                f"stage {name!r}: the disk is full ({error.strerror}): {place}",
                "free some space (`tutelage clean` removes unused artefacts) and run the same command again",
            ) from error
        raise


def _out_of_memory(name: str, text: str) -> RunError:
    return RunError(
        "out-of-memory",
        f"stage {name!r}: out of memory ({text.splitlines()[0] if text else 'no details'})",
        "use a smaller batch or crop, accumulate: 2 or more, or precision: bf16",
    )


def plan(loaded: LoadedRecipe) -> list[Planned]:
    """The actions of :func:`run` with their reasons. Reads the data's lists and fingerprints; writes nothing."""
    builder = Builder(loaded)
    builder.assign(Store(Path(loaded.recipe.out_folder())))
    result = []
    for name, stage in loaded.recipe.stages.items():
        artefact = builder.artefacts[name]
        fault = artefact.fault()
        why = "done" if fault is None else fault
        if fault is not None and artefact.manifest() is None:
            steps = artefact.checkpoints(2, lambda text: None).steps()
            started = artefact.folder.is_dir()
            why = f"goes on after step {steps[-1]}" if steps else "was begun" if started else "is new"
        result.append(Planned(name, stage.kind, artefact, fault is not None, why))
    return result


def _check_names(only: Sequence[str], known: Sequence[str]) -> None:
    unknown = [name for name in only if name not in known]
    if unknown:
        raise RunError("unknown-stage", f"no stage {unknown[0]!r} in the recipe", f"stages: {', '.join(known)}")


def _check_inputs(builder: Builder, name: str, only: Sequence[str]) -> None:
    """Raise :class:`RunError` when a needed stage is not selected and its artefact is missing or damaged."""
    for needed in stages_before(builder.recipe, name):
        fault = None if needed in only else builder.artefacts[needed].fault()
        if fault is not None:
            raise RunError(
                "stage-unfinished",
                f"stage {name!r} needs stage {needed!r}: {fault}",
                f"add --only {needed}, or run all stages",
            )


def _set_threads(run_settings: RunSettings) -> None:
    if run_settings.threads is not None:
        torch.set_num_threads(run_settings.threads)


def _writable(store: Store) -> None:
    try:
        store.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(
            "run-folder", f"cannot create run folder: {store.out} ({error.strerror})", "choose another with out=..."
        ) from None
    if not os.access(store.out, os.W_OK):
        raise RunError("run-folder", f"run folder is not writable: {store.out}", "choose another with out=...")


def _publish_report(builder: Builder, store: Store) -> None:
    """Copy the newest report to the top of the run folder."""
    for name, stage in builder.recipe.stages.items():
        artefact = builder.artefacts[name]
        if stage.kind == "report" and artefact.fault() is None:
            store.publish_report(artefact)
