"""Freed memory is kept for the next tensors, so that the system need not clear every page anew."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

_TAKE_AND_FREE = """
import resource, sys
import torch
from tutelage.engine.allocator import keep_freed_memory
torch.set_num_threads(1)
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(32 << 20)  # 128 MiB, freed at once
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(sum(faults() for _ in range(5)))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator of glibc is meant")
def test_blocks_are_used_again() -> None:
    def page_faults(word: str) -> int:
        command = [sys.executable, "-c", _TAKE_AND_FREE, word]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    assert page_faults("keep") * 10 < page_faults("leave")
