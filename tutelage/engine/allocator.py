"""The C library's allocator, told to keep what was freed.

A training step frees and takes the same large tensors again and again. glibc hands such blocks back to the system each
time, which then has to clear every page anew; benchmarks/RESULTS.md has what that costs a step on a CPU. Kept blocks
are used again at once.
"""

from __future__ import annotations

import ctypes
import functools

# Parameters of mallopt(3). Blocks above 32 MiB still go back: kept, they would leave holes that nothing else fits into.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
_PAD, _LARGE = 64 << 20, 32 << 20


@functools.cache
def keep_freed_memory() -> bool:
    """Let this process keep freed blocks for its next ones; whether that could be had (glibc only)."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # no glibc: another system, or musl
        return False
    settings = ((_MMAP_THRESHOLD, _LARGE), (_TRIM_THRESHOLD, -1), (_TOP_PAD, _PAD))
    return all(mallopt(ctypes.c_int(name), ctypes.c_int(value)) for name, value in settings)
