"""Setting the C library's allocator to keep freed memory.

A training step frees and allocates the same large tensors again and again. glibc returns such blocks to the system
each time, and the system must clear every page again; benchmarks/RESULTS.md has the cost of a step on a CPU. Kept
blocks are reused at once.
"""

from __future__ import annotations

import ctypes
import functools

# Parameters of mallopt(3). Blocks above 32 MiB are still returned: kept, they would leave unusable holes.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
_PAD, _LARGE = 64 << 20, 32 << 20


@functools.cache
def keep_freed_memory() -> bool:
    """Let this process reuse freed blocks; returns whether that is supported (glibc only)."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # no glibc: another system, or musl
        return False
    settings = ((_MMAP_THRESHOLD, _LARGE), (_TRIM_THRESHOLD, -1), (_TOP_PAD, _PAD))
    return all(mallopt(ctypes.c_int(name), ctypes.c_int(value)) for name, value in settings)
