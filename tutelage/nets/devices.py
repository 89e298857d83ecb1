"""Devices and their abilities."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from tutelage.errors import RunError


def find_device(name: str) -> torch.device:
    """The device ``name``; ``auto``: the GPU if there is one. Raises :class:`RunError` for an unavailable device."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise RunError("device-unavailable", f"cannot use device {name!r}: {reason}", "use auto or cpu") from None
    return device


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Disable autocast on ``device``; no effect on devices without autocast (meta)."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()
