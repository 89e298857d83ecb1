"""Opening a public data set in the folder where the user unpacked it.

Opening a data set only determines which splits exist; the files of a split are found when it is first accessed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from pydantic import model_validator

from tutelage.data.catalogue.facts import expected_counts, fact
from tutelage.data.catalogue.files import Files, missing
from tutelage.data.catalogue.layouts import KINDS, Layout, variants
from tutelage.data.dataset import Dataset
from tutelage.errors import DataError
from tutelage.settings import Ref, Settings

Kind = Literal[
    "cityscapes",
    "gta5",
    "synthia",
    "voc_aug",
    "camvid",
    "ade20k",
    "coco_stuff",
    "potsdam",
    "vaihingen",
    "city_osm_paris",
    "city_osm_chicago",
    "loveda",
    "dark_zurich",
    "acdc",
]


class CatalogueSettings(Settings):
    """A public data set in the layout of its official archives."""

    kind: Kind
    """Name of the data set."""
    root: Annotated[str, Ref("file")]
    """Folder with the unpacked archives, relative to the recipe."""
    variant: str | None = None
    """Packaging, label files, bands or condition; null: the first of the list. cityscapes: ids, train_ids; voc_aug: aug
    (all masks of train_aug from SegmentationClassAug), voc (VOC's own masks if available); camvid: segnet, original,
    tsic; coco_stuff: 171, 182; potsdam: irrg, rgb, irrg_tiles, rgb_tiles; vaihingen: irrg, irrg_tiles,
    irrg_tiles_official; city_osm_*: clips, images; loveda: all, urban, rural; dark_zurich (of train): night, twilight,
    day, all; acdc: all, fog, night, rain, snow."""
    splits: dict[str, str] = {}
    """Additional splits, or replacements of official ones: split name → list file, relative to `root`."""
    group: str | None = None
    """Regular expression with one group, searched in the image's name: its sequence or tile. Null: that of the data
    set."""
    bridge: dict[str, str | None] = {}
    """Class of this data → class of the task (several may merge), or null to ignore the class."""

    @model_validator(mode="after")
    def _known_variant(self) -> CatalogueSettings:
        if self.variant is not None and self.variant not in variants(self.kind):
            known = ", ".join(variants(self.kind))
            raise ValueError(f"unknown variant {self.variant!r} of {self.kind}; use one of: {known}")
        return self


class MissingSplitError(DataError, KeyError):
    """A split does not exist (``unknown-split``), or its files are missing (``split-missing``)."""


class Splits(Mapping[str, Dataset]):
    """The available splits of a data set; each is opened on first access.

    Access to another split raises :class:`MissingSplitError`.
    """

    def __init__(
        self,
        kind: str,
        variant: str,
        makers: Mapping[str, Callable[[], Dataset]],
        absent: Mapping[str, MissingSplitError],
    ) -> None:
        self.kind, self.variant = kind, variant
        self._makers, self._absent = makers, absent
        self._opened: dict[str, Dataset] = {}

    def __getitem__(self, name: str) -> Dataset:
        if name not in self._makers:
            raise self._absent.get(name) or MissingSplitError(
                "unknown-split",
                f"{fact(self.kind, 'title')} has no split {name!r}",
                f"use one of: {', '.join(self)}; or add your own list under data.<name>.splits",
            )
        if name not in self._opened:
            self._opened[name] = self._makers[name]()
        return self._opened[name]

    def __contains__(self, name: object) -> bool:
        return name in self._makers

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)


def open_catalogue(settings: CatalogueSettings, base: Path) -> Splits:
    """Open a public data set; ``base`` is the recipe's folder.

    Raises :class:`DataError`: ``missing-folder``; ``dataset-layout`` if no split is found under the root;
    ``missing-list`` for a user's list. Opening a split raises ``missing-file`` for the first missing image. A missing
    mask is recorded, and raised when it is read.
    """
    root = (base / settings.root).resolve()
    if not root.is_dir():
        raise DataError(
            "folder-missing",
            f"data folder not found: {root}",
            "fix data.<name>.root (relative to the recipe's folder)",
        )
    variant = settings.variant or variants(settings.kind)[0]
    found = _find_layout(root, KINDS[settings.kind][variant])
    if found is None and not settings.splits:
        raise _nothing_found(settings.kind, variant, root)
    layout, home = found or (KINDS[settings.kind][variant][0], root)
    files = Files(settings.kind, layout, home, root, settings.group)
    makers: dict[str, Callable[[], Dataset]] = {}
    absent = {}
    for name, sources in layout.splits.items():
        lacking = missing(home, sources)
        if lacking is None:
            makers[name] = partial(files.dataset, name, sources)
        else:
            absent[name] = MissingSplitError(
                "split-missing",
                f"{fact(settings.kind, 'title')}: files of split {name!r} not found: {home / lacking}",
                sources[0].hint,
            )
    for name, list_name in settings.splits.items():
        list_file = next((folder / list_name for folder in (root, home) if (folder / list_name).is_file()), None)
        if list_file is None:
            raise DataError(
                "file-missing", f"list file not found: {root / list_name}", f"fix data.<name>.splits.{name}"
            )
        makers[name] = partial(files.listed_dataset, name, list_file)
    return Splits(settings.kind, variant, makers, absent)


def report_counts(kind: str, splits: Mapping[str, Dataset], variant: str | None = None) -> list[str]:
    """One line for each split: its number of images, the expected number, and the number without mask.

    ``variant`` is that of ``splits`` if it comes from :func:`open_catalogue`; ``None`` is the default variant.
    """
    expected = expected_counts(kind, splits.variant if isinstance(splits, Splits) else variant)
    lines = []
    for name, dataset in splits.items():
        of = f" ({expected[name]} expected)" if name in expected else ""
        lines.append(f"{name}: {len(dataset)} images{of}{_lacking(dataset)}")
    return lines


def _find_layout(root: Path, layouts: Iterable[Layout]) -> tuple[Layout, Path] | None:
    """The first packaging with any complete split, and its base folder."""
    for layout in layouts:
        for folder in layout.folders:
            home = root / folder
            if home.is_dir() and any(missing(home, sources) is None for sources in layout.splits.values()):
                return layout, home
    return None


def _lacking(dataset: Dataset) -> str:
    without = sum(sample.label is None for sample in dataset.samples)
    if not without:
        return ""
    return ", no masks" if without == len(dataset) else f", {without} without mask"


def _nothing_found(kind: str, variant: str, root: Path) -> DataError:
    layout = KINDS[kind][variant][0]
    lines = [
        f"  {name}: {' + '.join((source.image, *source.masks[:1], *source.lists[:1]))}"
        for name, sources in layout.splits.items()
        for source in sources
    ]
    home = root / layout.folders[0]
    first = missing(home, next(iter(layout.splits.values())))
    others = ", ".join(name for name in variants(kind) if name != variant)
    return DataError(
        "dataset-layout",
        f"{fact(kind, 'title')} (variant {variant}) not found; first missing: {home / str(first)}",
        f"set data.<name>.root to the folder with the unpacked official archives ({fact(kind, 'licence')}; nothing is "
        "downloaded automatically):\n" + "\n".join(lines) + (f"\n  other variants: {others}" if others else ""),
    )
