"""Opening a data set from its recipe settings: a folder, the procedural city, or a public data set."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from tutelage.data.catalogue import CatalogueSettings, open_catalogue
from tutelage.data.dataset import Classes, Dataset
from tutelage.data.folder import FolderSettings, FolderSplit, open_folder
from tutelage.data.toycity import CLASSES, PALETTE, generate
from tutelage.settings import Ref, Settings

Side = Annotated[int, Field(ge=16)]


class ToycitySettings(Settings):
    """Procedural street scenes, rendered into a folder on first use (no download)."""

    kind: Literal["toycity"]
    root: Annotated[str, Ref("file")]
    """Output folder of the scenes, relative to the recipe."""
    splits: dict[str, Annotated[int, Field(gt=0)]]
    """Split name → number of scenes."""
    size: tuple[Side, Side] = (128, 256)
    """Height and width in pixels."""
    domain: Literal["day", "dusk"] = "day"
    """`day`, or `dusk`: the same streets in other light, with other colours and another camera."""
    seed: int = 0
    """Random seed of the streets."""
    bridge: dict[str, str | None] = {}
    """Class of this data → class of the task (several may merge), or null to ignore the class."""


DataSettings = Annotated[FolderSettings | ToycitySettings | CatalogueSettings, Field(discriminator="kind")]


def open_data(
    settings: FolderSettings | ToycitySettings | CatalogueSettings,
    base: Path,
    say: Callable[[str], None] = lambda text: None,
) -> Mapping[str, Dataset]:
    """Open the splits of a data set; ``base`` is the recipe's folder, ``say`` prints a progress line.

    Raises :class:`DataError` as :func:`open_folder`, :func:`open_catalogue` and :func:`toycity.generate` do.
    """
    if isinstance(settings, FolderSettings):
        return open_folder(settings, base)
    if isinstance(settings, CatalogueSettings):
        return open_catalogue(settings, base)
    root = (base / settings.root).resolve()
    total = sum(settings.splits.values())
    if not (root / "toycity.json").is_file():
        say(f"rendering {total} scenes of the toy city ({settings.domain}) into {root}")
    generate(root, settings.splits, settings.size, settings.domain, settings.seed)
    folder = FolderSettings(
        root=str(root),
        classes=list(CLASSES),
        palette=[(red, green, blue) for red, green, blue in PALETTE],
        splits={name: FolderSplit(list=f"{name}.txt") for name in settings.splits},
    )
    return open_folder(folder, base)


def task_classes(named: list[str] | None, first: Dataset) -> Classes:
    """The task's class list: ``named``, with the colours of the first data set where names agree; else its classes."""
    if named is None:
        return first.classes
    palette = dict(zip(first.classes.names, first.classes.palette, strict=True))
    plain = Classes(tuple(named))
    return Classes(plain.names, tuple(palette.get(n, colour) for n, colour in zip(named, plain.palette, strict=True)))
