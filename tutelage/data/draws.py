"""Random draws that are a pure function of their position.

A draw is identified by a seed, a stream, a component (``"sample"``, ``"scale"``, ``"crop"``, ``"flip"``, ``"colour"``)
and a position in the stream. No global generator is used: every worker, rank or resumed run draws the same numbers for
the same position, and two streams with the same key share them.
"""

from __future__ import annotations

import hashlib

import numpy as np


def key(*parts: object) -> int:
    """128-bit hash of a sequence of numbers and strings."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little")


def generator(seed: int, stream: str, component: str, position: int, attempt: int = 0) -> np.random.Generator:
    """Random generator of one component at one position of one stream."""
    return np.random.Generator(np.random.Philox(key=key(seed, stream, component, position, attempt)))
