"""All communication between processes, with one convention: gradients and statistics are averaged.

Without a process group every function here is the identity, so that no other module checks whether the run is
distributed. Do not call any function inside a branch that depends on data: all ranks must call it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn


def active() -> bool:
    """Whether there is a process group."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if active() else 0


def world() -> int:
    """The number of processes."""
    return dist.get_world_size() if active() else 1


def join(device: torch.device) -> bool:
    """Join the processes that ``torchrun`` started, over NCCL on GPUs, else gloo; returns whether there are any."""
    if active() or int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return active()
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=timedelta(minutes=30))
    return True


def leave(wait: bool = True) -> None:
    """Leave the process group, if any, once every process has finished with it.

    Do not ``wait`` after an error: the others may be in the middle of a step and never arrive.
    """
    if active():
        if wait:
            dist.barrier()
        dist.destroy_process_group()


def barrier() -> None:
    """Wait until every process has called this."""
    if active():
        dist.barrier()


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """The sum of a tensor over ranks (the same tensor without a process group). Not differentiable."""
    if active():
        tensor = tensor.detach().clone()
        dist.all_reduce(tensor)
    return tensor


def gather_rows(rows: Tensor) -> Tensor:
    """Rows (n, ...) of all ranks, in the order of ranks; n may differ. Not differentiable."""
    if not active():
        return rows
    counts = torch.zeros(world(), dtype=torch.int64, device=rows.device)
    counts[rank()] = rows.shape[0]
    dist.all_reduce(counts)
    longest = int(counts.max())
    padded = rows.new_zeros(longest, *rows.shape[1:])
    padded[: rows.shape[0]] = rows.detach()
    parts = [torch.empty_like(padded) for _ in range(world())]
    dist.all_gather(parts, padded)
    return torch.cat([part[: int(n)] for part, n in zip(parts, counts, strict=True)])


def gather_equal(rows: Tensor) -> Tensor:
    """Rows (n, ...) of all ranks, in the order of ranks; n is the same everywhere. Not differentiable."""
    if not active():
        return rows
    parts = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(world())]
    dist.all_gather(parts, rows.detach().contiguous())
    return torch.cat(parts)


def from_first(text: str) -> str:
    """Rank 0's text, on every rank."""
    if not active():
        return text
    box = [text]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Average gradients over ranks, in one transfer per dtype.

    A parameter without a gradient on some rank counts as zero there; one without a gradient on all ranks keeps none,
    so that its optimizer skips it.
    """
    if not active():
        return
    parameters = list(parameters)
    if not parameters:
        return
    has = torch.tensor([float(p.grad is not None) for p in parameters], device=parameters[0].device)
    dist.all_reduce(has)
    touched = [p for p, count in zip(parameters, has.tolist(), strict=True) if count > 0]
    for dtype in sorted({p.dtype for p in touched}, key=str):
        part = [p for p in touched if p.dtype == dtype]
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in part])
        dist.all_reduce(flat)
        flat /= world()
        for parameter, gradient in zip(part, torch.split(flat, [p.numel() for p in part]), strict=True):
            # Filled in place to keep the parameter's memory layout (channels last).
            if parameter.grad is None:
                parameter.grad = torch.empty_like(parameter)
            parameter.grad.copy_(gradient.view(parameter.shape))


def average_norm_statistics(nets: Sequence[nn.Module]) -> None:
    """Average the running statistics of batch norm over ranks, so that every rank evaluates and saves one net."""
    if not active():
        return
    buffers = [
        buffer
        for net in nets
        for module in net.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        for buffer in (module.running_mean, module.running_var)
        if buffer is not None
    ]
    if not buffers:
        return
    flat = torch.cat([buffer.reshape(-1) for buffer in buffers])
    dist.all_reduce(flat)
    flat /= world()
    for buffer, value in zip(buffers, torch.split(flat, [b.numel() for b in buffers]), strict=True):
        buffer.copy_(value.view(buffer.shape))


def share_first(module: nn.Module) -> None:
    """Give every rank rank 0's parameters and buffers."""
    if active():
        for tensor in (*module.parameters(), *module.buffers()):
            dist.broadcast(tensor.detach(), src=0)
