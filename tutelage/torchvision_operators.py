"""Lets torchvision be imported beside a CPU build of torch.

There is no CPU build of torchvision in the registries, and the ordinary one cannot load its compiled operators
beside a CPU torch. Importing it then fails, because its Python code describes the operators ``nms`` and ``qnms``
whose schemas nobody has registered. Neither is used here (we need transforms and model definitions only), so
their schemas are registered first; where torchvision's own operators do load, they bring the same definitions
and this module does nothing.

Import this module before the first import of torchvision, timm or segmentation_models_pytorch.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}


def _operators_load() -> bool:
    """Whether torchvision's compiled operators can be loaded into this torch; loads them if so."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return False
    for library in sorted(Path(spec.origin).parent.glob("_C*.so")) + sorted(Path(spec.origin).parent.glob("_C*.pyd")):
        try:
            torch.ops.load_library(str(library))  # type: ignore[no-untyped-call]
        except OSError:
            continue
        return True
    return False


# The library object must live as long as the process: its destructor takes the registration back.
_library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
if not _operators_load():
    for _name, _schema in _SCHEMAS.items():
        if not hasattr(torch.ops.torchvision, _name):
            _library.define(_schema)  # type: ignore[no-untyped-call]
