"""Errors for the person who reads them at night: what is wrong, where, and what would be right."""

from __future__ import annotations


class TutelageError(Exception):
    """A fault that the user can mend.

    ``message`` says what is wrong and names the file and the key; ``remedy`` says what would be right. The
    command line prints both without a traceback and exits with status 1.
    """

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message}\n  remedy: {self.remedy}" if self.remedy else self.message


class DataError(TutelageError):
    """A file of a data set is missing, unreadable or holds what it must not hold."""


class RecipeError(TutelageError):
    """A recipe, or an override on the command line, says something that cannot be meant."""


class RunError(TutelageError):
    """A run folder, lock or artefact is not in the state that the command needs."""
