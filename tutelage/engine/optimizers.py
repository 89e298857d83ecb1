"""Optimizers and their rates: what may be set, which parameters go in which group, how the rate moves."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator
from torch import nn

from tutelage.settings import Settings

Share = Annotated[float, Field(ge=0, lt=1)]


class OptimizerSettings(Settings):
    """An optimizer. The default suits fine-tuning a pretrained encoder."""

    kind: Literal["sgd", "adamw", "adam"] = "adamw"
    lr: Annotated[float, Field(gt=0)] = 1e-3
    """Learning rate of decoders, heads and everything else that is no encoder."""
    encoder_lr_ratio: Annotated[float, Field(gt=0)] = 1.0
    """The encoder's rate divided by `lr`; below 1 for a pretrained encoder."""
    momentum: Share = 0.9
    """For `sgd`."""
    betas: tuple[Share, Share] = (0.9, 0.999)
    """For `adamw` and `adam`."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-2
    """Share of every weight that is taken off, times the rate (`adam`, `sgd`: as part of the gradient)."""
    decay_norm_and_bias: bool = False
    """Whether weight decay also acts on normalisation parameters and biases."""


class ScheduleSettings(Settings):
    """How the learning rate moves over a stage."""

    kind: Literal["poly", "cosine", "constant"] = "poly"
    power: Annotated[float, Field(gt=0)] = 0.9
    """For `poly`: rate x (1 - step/steps)^power."""
    warmup: Annotated[int, Field(ge=0)] = 0
    """Steps over which the rate rises linearly to its value."""
    warmup_ratio: Annotated[float, Field(ge=0, le=1)] = 1e-3
    """Where the rise starts, as a share of the rate."""
    floor: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Smallest share of the rate, at the end."""
    least_lr: Annotated[float, Field(ge=0)] = 0.0
    """Smallest rate, at the end, for all parameters alike, in place of a share (`floor`)."""
    lag: Annotated[int, Field(ge=0)] = 0
    """Steps by which the whole course is late. Published codes that set the rate after the step have 1."""
    horizon: Annotated[int, Field(gt=0)] | None = None
    """Steps that the course is laid out for; null: the stage's. Published codes may stop long before its end."""

    @model_validator(mode="after")
    def _one_end(self) -> ScheduleSettings:
        if self.floor and self.least_lr:
            raise ValueError("floor is a share of the rate and least_lr a rate: give one of them")
        return self

    def rate(self, full: float, step: int, total: int) -> float:
        """The rate at a zero-based step, of a full one above 0."""
        if not self.least_lr:
            return full * self.factor(step, total)
        return full * self._factor(step, total, min(self.least_lr / full, 1.0))

    def factor(self, step: int, total: int) -> float:
        """The rate at a zero-based step, as a share of the full one; ``least_lr`` is left out."""
        return self._factor(step, total, self.floor)

    def _factor(self, step: int, total: int, floor: float) -> float:
        total, step = self.horizon or total, max(step - self.lag, 0)
        if step < self.warmup:
            return self.warmup_ratio + (1.0 - self.warmup_ratio) * step / self.warmup
        done = min((step - self.warmup) / max(total - self.warmup, 1), 1.0)
        if self.kind == "constant":
            return 1.0
        left = (1.0 - done) ** self.power if self.kind == "poly" else 0.5 * (1.0 + math.cos(math.pi * done))
        return floor + (1.0 - floor) * left

    @model_serializer(mode="wrap")
    def _without_nothing(self, written: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """All settings but those after `floor` that are not there, so that keys of stages without them stay equal."""
        content: dict[str, Any] = written(self)
        for name in ("lag", "least_lr", "horizon"):
            if not getattr(self, name):
                content.pop(name, None)
        return content


_NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm, nn.modules.instancenorm._InstanceNorm)


def parameter_groups(nets: Sequence[nn.Module], settings: OptimizerSettings) -> list[dict[str, Any]]:
    """Trainable parameters by learning rate and weight decay; each group remembers its full rate as ``base_lr``."""
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    seen: set[int] = set()
    for net in nets:
        for name, module, parameter_name, parameter in _owned(net):
            if not parameter.requires_grad or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            in_encoder = name.split(".")[0] == "encoder"
            # LayerNorm2d and their like are recognised by name: libraries define their own.
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
        # Not fused: torch's fused SGD fails on a group in which some parameters had their first gradient later
        # than others, which is what a net that is trained from some step on looks like.
        return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum, foreach=True)
    kind = torch.optim.AdamW if settings.kind == "adamw" else torch.optim.Adam
    return kind(groups, lr=settings.lr, betas=settings.betas, fused=True)


def set_rate(optimizer: torch.optim.Optimizer, schedule: ScheduleSettings, step: int, total: int) -> None:
    """Set every group's rate to what the schedule makes of its full one at a zero-based step."""
    for group in optimizer.param_groups:
        group["lr"] = schedule.rate(group["base_lr"], step, total)
