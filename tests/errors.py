"""Expect an error by its code and by the facts that it names, not by its sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tutelage.errors import TutelageError


@contextmanager
def raises_code(code: str, *facts: object) -> Iterator[pytest.ExceptionInfo[TutelageError]]:
    """Expect a TutelageError with this code whose message or remedy contains each fact: a file, a key, a number."""
    with pytest.raises(TutelageError) as error:
        yield error
    assert error.value.code == code, error.value
    for fact in facts:
        assert str(fact) in str(error.value)
