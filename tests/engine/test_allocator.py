"""Freed memory is kept where the C library can be told so, and nothing happens elsewhere."""

from __future__ import annotations

import ctypes
import platform
from types import SimpleNamespace

import pytest

from tutelage.engine.allocator import keep_freed_memory


@pytest.fixture(autouse=True)
def _ask_again() -> None:
    keep_freed_memory.cache_clear()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator of glibc is meant")
def test_glibc_takes_the_settings() -> None:
    assert keep_freed_memory()
    assert keep_freed_memory()


def test_another_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace())
    assert not keep_freed_memory()


def test_a_refusal_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(mallopt=lambda parameter, value: 0))
    assert not keep_freed_memory()
