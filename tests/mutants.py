"""Plant faults in a copy of the package, one at a time, and check that the tests notice each.

    python -m tests.mutants [pattern ...]      all mutants, or those whose file or reason contains one of the patterns

The mutants are listed in tests/mutation/: a file, its old text, the new text, the tests to run, and the fault in a
line. The repository is copied to a temporary folder, so the working tree never changes. The named tests must pass
without a fault; then each mutant is planted, its tests run, and the result is printed: killed (a test fails), SURVIVES
(all pass) or explained (all pass, and the list states why no test can notice it). The last lines give the rate and the
survivors. The exit status is 0 where none survives, 1 where one does, and 2 where the list or the tests themselves are
wrong. All take about half an hour on two cores; tests/test_mutants.py checks within a second that the list still fits
the code.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pytest

from tests.mutation import engine, evaluation, losses, report, runs
from tests.mutation.mutant import ROOT, Mutant

MUTANTS: tuple[Mutant, ...] = (*losses.MUTANTS, *evaluation.MUTANTS, *engine.MUTANTS, *runs.MUTANTS, *report.MUTANTS)

_FORK = multiprocessing.get_context("fork")
_LIBRARIES = (
    "torch",
    "torch.distributed",
    "torch.testing",
    "numpy.testing",
    "pydantic",
    "safetensors.torch",
    "hypothesis",
)
_LEFT_OUT = shutil.ignore_patterns(".*", "__pycache__", "_build", "runs.local", "*.egg-info")


def chosen(patterns: Sequence[str]) -> list[Mutant]:
    """The mutants whose file or reason contains one of the patterns; all without a pattern."""
    texts = {one: f"{one.file} {one.why}".lower() for one in MUTANTS}
    return [one for one in MUTANTS if not patterns or any(pattern.lower() in texts[one] for pattern in patterns)]


def faults(mutants: Sequence[Mutant]) -> list[str]:
    """Errors of the list itself: texts that do not occur exactly once, tests that do not exist."""
    found = []
    for one in mutants:
        try:
            one.mutated((ROOT / one.path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            found.append(str(error))
        found += [
            f"{one.path}: {test} does not exist"
            for test in one.test_ids
            if not (ROOT / test.partition("::")[0]).is_file()
        ]
    return found


class Copy:
    """A copy of the repository in which faults are planted."""

    def __init__(self, root: Path) -> None:
        self.root = root
        shutil.copytree(ROOT, root, ignore=_LEFT_OUT)

    def failure(self, tests: Sequence[str], seconds: float = 300) -> str:
        """The output of the tests where one of them fails or does not end in time; empty where all pass."""
        output = self.root / ".output"
        child = _FORK.Process(target=_run_tests, args=(self.root, output, tests))
        child.start()
        child.join(seconds)
        if child.is_alive():
            os.killpg(child.ident or 0, signal.SIGKILL)
            child.join()
            return f"not finished after {seconds} seconds"
        text = output.read_text(encoding="utf-8")
        if child.exitcode not in (0, 1):
            raise SystemExit(f"the tests could not be run (status {child.exitcode}):\n{text}")
        return text if child.exitcode else ""

    def survives(self, mutant: Mutant) -> bool:
        """Whether the tests of a mutant pass in spite of its fault."""
        file = self.root / mutant.path
        source = file.read_text(encoding="utf-8")
        try:
            self._put(file, mutant.mutated(source))
            return not self.failure(mutant.test_ids)
        finally:
            self._put(file, source)

    def _put(self, file: Path, source: str) -> None:
        file.write_text(source, encoding="utf-8")
        # Python compares a compiled file by size and whole second, which two versions may share.
        for compiled in (file.parent / "__pycache__").glob(f"{file.stem}.*.pyc"):
            compiled.unlink()


def _run_tests(root: Path, output: Path, tests: Sequence[str]) -> None:
    """Run pytest in this forked process: libraries are imported already, the package is imported from ``root``."""
    os.setsid()
    with open(output, "w", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(root)
    os.environ["PYTHONPATH"] = str(root)
    sys.path.insert(0, str(root))
    # Processes that tests start must not import this script, and nothing may come from the working tree.
    sys.modules["__main__"] = ModuleType("__main__")
    for name in [name for name in sys.modules if name.partition(".")[0] in ("tests", "tutelage")]:
        del sys.modules[name]
    where = Path(importlib.import_module("tutelage").__file__ or "")
    assert where.is_relative_to(root), f"the tests would import {where}"
    status = pytest.main(["-x", "-q", "-p", "no:cacheprovider", *tests])
    sys.stdout.flush()
    os._exit(int(status))


def main(patterns: Sequence[str] = ()) -> int:
    """Run the chosen mutants; print the result of each, and the rate."""
    mutants = chosen(patterns)
    wrong = faults(mutants)
    if wrong or not mutants:
        print("\n".join(wrong) or f"no mutant's file or reason contains {' or '.join(patterns)}")
        return 2
    os.environ["OMP_NUM_THREADS"] = "1"
    for library in _LIBRARIES:
        importlib.import_module(library)
    with tempfile.TemporaryDirectory() as folder:
        copy = Copy(Path(folder) / "copy")
        output = copy.failure(sorted({test for one in mutants for test in one.test_ids}), seconds=1800)
        if output:
            print(f"{output[-4000:]}\nthe tests fail without a fault; fix them first")
            return 2
        survivors, explained = [], 0
        for one in mutants:
            start = time.perf_counter()
            survives = copy.survives(one)
            fate = "killed" if not survives else "explained" if one.equivalent else "SURVIVES"
            if not survives and one.equivalent:
                fate = "killed, although it is explained"
            print(f"{fate:<9} {time.perf_counter() - start:5.1f} s  {one.file}: {one.why}", flush=True)
            explained += survives and bool(one.equivalent)
            survivors += [one] if survives and not one.equivalent else []
    killed = len(mutants) - len(survivors) - explained
    print(f"\n{killed} of {len(mutants)} killed, {explained} explained, {len(survivors)} survive")
    for one in survivors:
        print(f"  {one.path}: {one.why}\n    - {one.old}\n    + {one.new}")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
