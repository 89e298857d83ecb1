"""Content of a checkpoint: every tensor of the method and of its optimizers, and the run's progress.

Schedules and random numbers are functions of the step and need no saving.
"""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tutelage.engine.collectives import world
from tutelage.engine.contract import Method
from tutelage.errors import RunError

# Versions that affect nets, draws and decoded images.
_LIBRARIES = ("tutelage", "torch", "timm", "segmentation-models-pytorch", "numpy", "pillow")
_METHOD, _OPTIMIZER = "method", "optimizer"


def environment(device: torch.device) -> dict[str, Any]:
    """Facts that must be equal for a resumed run to be byte-equal to an uninterrupted one."""
    return {
        **{name: importlib.metadata.version(name) for name in _LIBRARIES},
        "python": platform.python_version(),
        "machine": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "processes": world(),
    }


def pack(method: Method, optimizers: Mapping[str, torch.optim.Optimizer]) -> dict[str, Tensor]:
    """All tensors of a run under flat names, on the CPU, in contiguous memory layout."""
    tensors = {f"{_METHOD}.{name}": value for name, value in method.learned_state().items()}
    for name, optimizer in optimizers.items():
        for index, state in optimizer.state_dict()["state"].items():
            tensors.update({f"{_OPTIMIZER}.{name}.{index}.{key}": value for key, value in state.items()})
    # Cloned: tied parameters share memory, which the file format does not allow.
    return {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}


def write(path: Path, method: Method, optimizers: Mapping[str, torch.optim.Optimizer]) -> None:
    """Write the tensors of a run to a safetensors file."""
    save_file(pack(method, optimizers), path)


def restore(path: Path, method: Method, optimizers: Mapping[str, torch.optim.Optimizer]) -> None:
    """Load the tensors of :func:`write`.

    Raises :class:`RunError` if the file belongs to another method or other nets.
    """
    tensors = load_file(path)
    prefix = f"{_METHOD}."
    try:
        method.load_learned_state({n.removeprefix(prefix): v for n, v in tensors.items() if n.startswith(prefix)})
    except RuntimeError as error:
        raise RunError(
            "checkpoint-mismatch",
            f"checkpoint does not match the method or its nets: {path} ({error})",
            "remove the stage's folder to train from the start",
        ) from None
    for name, optimizer in optimizers.items():
        _restore_optimizer(name, optimizer, tensors)


def _restore_optimizer(name: str, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    prefix = f"{_OPTIMIZER}.{name}."
    for full_name, value in tensors.items():
        if full_name.startswith(prefix):
            index, _, key = full_name.removeprefix(prefix).partition(".")
            parameter = parameters[int(index)]
            if value.shape == parameter.shape:
                # Keep the parameter's memory layout (channels last): fused kernels read both together.
                value = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
            state.setdefault(int(index), {})[key] = value
    content = optimizer.state_dict()
    optimizer.load_state_dict({"state": state, "param_groups": content["param_groups"]})
