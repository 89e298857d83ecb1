"""One fault of the package, and the tests that must notice it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Mutant:
    """``old`` text of a file, which occurs once, and the ``new`` text that is wrong."""

    file: str
    """Below ``tutelage``, without the ending: ``losses/segmentation``."""
    old: str
    new: str
    tests: str
    """Below ``tests``, without the ending, separated by spaces: ``losses/test_segmentation``; ``::name`` for one."""
    why: str
    """The fault, in a line."""
    equivalent: str = ""
    """Why no test can notice it; empty: a test must."""

    @property
    def path(self) -> str:
        """The file's path from the root of the repository."""
        return f"tutelage/{self.file}.py"

    @property
    def test_ids(self) -> list[str]:
        """The tests as pytest takes them, from the root of the repository."""
        named = (one.partition("::") for one in self.tests.split())
        return [f"tests/{file}.py{separator}{name}" for file, separator, name in named]

    def mutated(self, source: str) -> str:
        """``source`` with the fault. ValueError where the old text does not occur exactly once."""
        found = source.count(self.old)
        if found != 1:
            raise ValueError(f"{self.path} contains {found} times, not once: {self.old!r}")
        return source.replace(self.old, self.new)
