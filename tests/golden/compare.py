"""How golden numbers are compared: values relative to the largest, gradients relative to the largest alone."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def tensor(values: NDArray) -> Tensor:
    """A golden array as a tensor."""
    return torch.from_numpy(np.ascontiguousarray(values))


def labels(values: NDArray, ignore: int = 255) -> Tensor:
    """Golden labels with their ignore value as ours."""
    return tensor(np.where(values == ignore, 255, values))


def assert_values(ours: Tensor | float, theirs: NDArray, relative: float = 1e-4, absolute: float = 1e-6) -> None:
    """|ours - theirs| <= absolute + relative * max |theirs|; ours is finite where theirs is a mean over nothing."""
    mine = np.asarray(ours.detach() if isinstance(ours, Tensor) else ours, dtype=np.float64)
    assert mine.shape == theirs.shape
    assert np.isfinite(mine).all()
    given = np.isfinite(theirs)
    bound = absolute + relative * np.abs(theirs[given]).max(initial=0.0)
    assert np.abs(mine[given] - theirs[given]).max(initial=0.0) <= bound


def assert_gradient(ours: Tensor, theirs: NDArray, relative: float = 1e-3) -> None:
    """|ours - theirs| <= relative * max |theirs|, no absolute part."""
    assert_values(ours, theirs, relative, 1e-30)
