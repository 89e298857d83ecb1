"""Optimizers and learning rates: parameter groups and schedules."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from tutelage.engine.settings import OptimizerSettings, ScheduleSettings

_NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm, nn.modules.instancenorm._InstanceNorm)


def parameter_groups(nets: Sequence[nn.Module], settings: OptimizerSettings) -> list[dict[str, Any]]:
    """Trainable parameters by learning rate and weight decay; each group stores its full rate as ``base_lr``."""
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    seen: set[int] = set()
    for net in nets:
        for name, module, parameter_name, parameter in _owned(net):
            if not parameter.requires_grad or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            in_encoder = name.split(".")[0] == "encoder"
            # LayerNorm2d and similar layers are recognised by name: libraries define their own.
            plain_norm = isinstance(module, _NORMS) or "norm" in type(module).__name__.lower()
            decays = settings.decay_norm_and_bias or not (plain_norm or parameter_name == "bias" or parameter.ndim < 2)
            groups.setdefault((in_encoder, decays), []).append(parameter)
    result = []
    for (in_encoder, decays), parameters in sorted(groups.items()):
        rate = settings.lr * (settings.encoder_lr_ratio if in_encoder else 1.0)
        decay = settings.weight_decay if decays else 0.0
        result.append({"params": parameters, "lr": rate, "base_lr": rate, "weight_decay": decay})
    return result


def _owned(net: nn.Module) -> Iterator[tuple[str, nn.Module, str, nn.Parameter]]:
    for name, module in net.named_modules():
        for parameter_name, parameter in module.named_parameters(recurse=False):
            yield name, module, parameter_name, parameter


def build_optimizer(nets: Sequence[nn.Module], settings: OptimizerSettings) -> torch.optim.Optimizer:
    """An optimizer over the trainable parameters of ``nets``."""
    groups = parameter_groups(nets, settings)
    if settings.kind == "sgd":
        # Not fused: torch's fused SGD fails on a group in which some parameters got their first gradient later than
        # others, as in a net that is trained only from some step on.
        return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum, foreach=True)
    kind = torch.optim.AdamW if settings.kind == "adamw" else torch.optim.Adam
    return kind(groups, lr=settings.lr, betas=settings.betas, fused=True)


def set_rate(optimizer: torch.optim.Optimizer, schedule: ScheduleSettings, step: int, total: int) -> None:
    """Set every group's rate by the schedule, from its full rate and a zero-based step."""
    for group in optimizer.param_groups:
        group["lr"] = schedule.rate(group["base_lr"], step, total)
