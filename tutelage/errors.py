"""Errors for the person who reads them: what is wrong, where, and how to fix it."""

from __future__ import annotations

import errno


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


def explained(error: Exception) -> TutelageError:
    """The error itself, or one with a code for an error of the operating system or of tutelage."""
    if isinstance(error, TutelageError):
        return error
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        place = "" if error.filename is None else f": {error.filename}"
        text = f"the disk is full{place} ({error.strerror})"
        return TutelageError("disk-full", text, "free some space and give the same command again")
    if isinstance(error, OSError) and error.filename is not None:
        reason = f"{error.filename} ({error.strerror})"
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            text = f"no permission: {reason}"
            return TutelageError("permission-denied", text, "change its permissions, or name another place")
        if error.errno in (errno.EEXIST, errno.ENOTDIR, errno.EISDIR):
            text = f"expected a folder but found a file, or a file but found a folder: {reason}"
            return TutelageError("path-conflict", text, "name another place")
    text = f"{type(error).__name__}: {error}"
    return TutelageError(
        "unexpected-error", text, "this may be a bug in tutelage; run the command again with --debug for the traceback"
    )
