"""Queues of teacher vectors: fixed memory, written in turn.

Legend: K classes (one queue each), N slots, C channels, F rows to write.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tutelage.losses.relations import unit

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def random_rows(rows: int, channels: int) -> Tensor:
    """Gaussian directions: what a queue holds before anything is remembered."""
    return unit(torch.randn(rows, channels))


def distinct(total: int, count: int, generator: torch.Generator) -> Tensor:
    """``count`` distinct numbers below ``total`` in random order, on the generator's device; at most ``total``."""
    return torch.randperm(total, generator=generator, device=generator.device)[:count]


def enqueue(queue_KNC: Tensor, pointer_K: Tensor, rows_KFC: Tensor, number_K: Tensor, wraps: bool) -> None:
    """Write the first ``number_K`` of the rows of each class at its pointer, in place, without a host synchronisation.

    At the end of the queue writing goes on at its beginning; with ``wraps`` false all rows of such an overflow go to
    the last slots and the pointer to 0, as published (there also when the queue is filled exactly).
    """
    slots = queue_KNC.shape[1]
    step_F = torch.arange(rows_KFC.shape[1], device=queue_KNC.device)
    if wraps:
        first_K, next_K = pointer_K, (pointer_K + number_K) % slots
    else:
        over_K = (pointer_K + number_K >= slots) & (number_K > 0)
        first_K = torch.where(over_K, slots - number_K, pointer_K)
        next_K = torch.where(over_K, 0, pointer_K + number_K)
    slot_KF = (first_K[:, None] + step_F) % slots
    valid_KF = step_F < number_K[:, None]
    # Invalid rows write back the present value: slots are distinct (as long as F <= N), so the order does not matter.
    first_row_K = slots * torch.arange(queue_KNC.shape[0], device=queue_KNC.device)
    row = (first_row_K[:, None] + slot_KF).flatten()
    queue = queue_KNC.view(-1, queue_KNC.shape[2])
    new = torch.where(valid_KF.flatten()[:, None], rows_KFC.flatten(0, 1).to(queue.dtype), queue[row])
    queue.index_copy_(0, row, new)
    pointer_K.copy_(next_K)
