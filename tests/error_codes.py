"""Errors are told apart by their code, and by names and numbers in the message; sentences may change."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tutelage.errors import TutelageError


@contextmanager
def raises_code(code: str, *parts: str) -> Iterator[pytest.ExceptionInfo[TutelageError]]:
    """Expect an error with this code; every part is in its message or its remedy."""
    with pytest.raises(TutelageError) as caught:
        yield caught
    assert caught.value.code == code
    whole = f"{caught.value.message} {caught.value.remedy}"
    assert all(re.search(re.escape(part), whole) for part in parts), whole
