"""Errors for the person who reads them: what is wrong, where, and how to fix it."""

from __future__ import annotations


class TutelageError(Exception):
    """An error that the user can fix.

    ``code`` is stable and listed in ``docs/errors.md``; ``message`` states what is wrong and names the file and the
    key; ``remedy`` states the fix. The command line prints all three without a traceback and exits with status 1.
    """

    def __init__(self, code: str, message: str, remedy: str = "") -> None:
        super().__init__(code, message, remedy)  # all three, so that a copy from another process is equal
        self.code = code
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message}\n  remedy: {self.remedy}" if self.remedy else self.message


class DataError(TutelageError):
    """A file of a data set is missing, unreadable, or has invalid content."""


class RecipeError(TutelageError):
    """A recipe, or an override on the command line, is invalid."""

    faults: tuple[tuple[str, str, str], ...] = ()
    """Where, code and text of each error, where there are several."""


class RunError(TutelageError):
    """A run folder, lock or artefact is not in the state that the command needs."""
