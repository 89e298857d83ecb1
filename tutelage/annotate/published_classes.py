"""Numbers that papers give for Cityscapes' 19 classes, brought to the classes of a task by their names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tutelage.data.catalogue.facts import class_list
from tutelage.data.dataset import plain
from tutelage.errors import TutelageError


def by_class(
    published: Mapping[str, Sequence[float]], chosen: str | Sequence[float] | None, classes: Sequence[str], what: str
) -> Tensor | None:
    """Numbers (K), float64, of the task's classes: published ones by their key, or the user's own; null: ``None``.

    Raises :class:`TutelageError`, naming ``what``, for a list of another length, or classes that the papers
    do not have.
    """
    if chosen is None:
        return None
    if not isinstance(chosen, str):
        if len(chosen) != len(classes):
            raise TutelageError(
                "class-weights-length",
                f"{len(chosen)} numbers under {what} for {len(classes)} classes",
                "give one per class",
            )
        return torch.tensor(list(chosen), dtype=torch.float64)
    known = {plain(name): value for name, value in zip(class_list("cityscapes").names, published[chosen], strict=True)}
    unknown = [name for name in classes if plain(name) not in known]
    if unknown:
        raise TutelageError(
            "class-weights-length",
            f"{what}: {chosen} has numbers for the classes of Cityscapes, and none for {', '.join(unknown)}",
            f"give a list of {len(classes)} numbers",
        )
    return torch.tensor([known[plain(name)] for name in classes], dtype=torch.float64)
