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


@pytest.mark.parametrize("refused", [-3, -1, -2])
def test_one_refused_setting_is_a_refusal(monkeypatch: pytest.MonkeyPatch, refused: int) -> None:
    """Of the threshold above which blocks are mapped, of that above which free memory is returned, and of the pad."""
    given: dict[int, int] = {}

    def mallopt(parameter: ctypes.c_int, value: ctypes.c_int) -> int:
        given[parameter.value] = value.value
        return int(parameter.value != refused)

    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(mallopt=mallopt))
    assert not keep_freed_memory()
    keep_freed_memory.cache_clear()
    refused = 0
    assert keep_freed_memory()
    assert given == {-3: 32 << 20, -1: -1, -2: 64 << 20}, "memory is never returned at once"
