"""Streams: endless sequences of batches in which position decides everything.

Position p of a stream shows one sample under one geometry in one set of colours, all of them functions of
(seed, stream, p) alone. A global step takes the next ``batch`` positions and deals them out to micro-batches and
ranks; how many workers prepare them changes nothing. So a run that stops at step n goes on at step n: nothing is
skipped, nothing is read twice, and there is no state to save.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from tutelage.data.augmentation import AugmentSettings, Geometry, draw_geometry, take_image, take_map, take_valid
from tutelage.data.cache import ImageCache
from tutelage.data.colour import ColourSettings, draw_colour
from tutelage.data.dataset import Dataset
from tutelage.data.draws import generator
from tutelage.data.labels import IGNORE
from tutelage.data.views import Batch, Geometries, RawBatch, RawView
from tutelage.errors import DataError
from tutelage.settings import Settings

SHARED = "shared"
_REPLACEMENTS = 20


class ViewSettings(Settings):
    """One view of a sample."""

    colour: ColourSettings = ColourSettings()
    """Random changes of colour and sharpness."""
    augment: AugmentSettings | None = None
    """A geometry of its own; null: the one that the stream's views share."""


class StreamSettings(Settings):
    """A stream of training batches."""

    data: str | list[str]
    """Data set(s): `name/split`, `name`, or the name of an `annotate` stage (pseudo labels); several are pooled."""
    batch: Annotated[int, Field(gt=0)] = 8
    """Images per step, over all micro-batches and processes together."""
    augment: AugmentSettings = AugmentSettings()
    """Geometry that the views share."""
    views: dict[str, ViewSettings] = {}
    """Settings of the views that the method asks for; a view left out is as the method says, mostly plain."""
    draws_of: str | None = None
    """Name of another stream whose random draws this one shares (same order, same crops)."""
    repeat: list[Annotated[int, Field(gt=0)]] | None = None
    """For pooled data sets: how often each is repeated in one round."""


@dataclass(frozen=True)
class LoaderSettings:
    """How batches are prepared; nothing of this changes what they hold."""

    workers: int = 0
    """Worker processes; 0: a thread of the training process."""
    ahead: int = 2
    """Batches that are prepared ahead of the step that needs them."""
    cache: Literal["none", "memory", "disk"] = "none"
    cache_folder: str | None = None
    on_unreadable: Literal["error", "skip"] = "error"


@lru_cache(maxsize=8)
def _permutation(seed: int, stream: str, round_: int, length: int) -> np.ndarray:
    return generator(seed, stream, "sample", round_).permutation(length)


def sample_name(dataset: Dataset, index: int) -> str:
    """What batches call image ``index`` of a data set."""
    return f"{dataset.name}:{dataset.samples[index].name}"


@dataclass
class Stream:
    """An endless sequence of batches over pooled datasets."""

    name: str
    datasets: Sequence[Dataset]
    seed: int
    batch: int
    views: Mapping[str, ViewSettings]
    augment: AugmentSettings = field(default_factory=AugmentSettings)
    labels: bool = True
    """Whether masks are read at all."""
    loader: LoaderSettings = field(default_factory=LoaderSettings)
    repeat: Sequence[int] = ()
    draws_of: str | None = None

    def __post_init__(self) -> None:
        if not sum(map(len, self.datasets)):
            raise DataError(f"stream {self.name!r} has no images", "check its data set's list or folder")
        if not self.labels:
            self.datasets = [dataset.without_labels() for dataset in self.datasets]
        repeats = self.repeat or [1] * len(self.datasets)
        if len(repeats) != len(self.datasets):
            raise DataError(
                f"stream {self.name!r}: {len(repeats)} numbers under repeat for {len(self.datasets)} data sets",
                "give one number for each data set",
            )
        pairs = [
            np.tile(np.stack([np.full(len(d), i), np.arange(len(d))], 1), (r, 1))
            for i, (d, r) in enumerate(zip(self.datasets, repeats, strict=True))
        ]
        self._index = np.concatenate(pairs)
        self._key = self.draws_of or self.name
        self._cache = ImageCache(self.loader.cache, self.loader.cache_folder)

    def __len__(self) -> int:
        """Samples in one round."""
        return len(self._index)

    def sample_at(self, position: int) -> tuple[int, int]:
        """Which (dataset, sample) stands at a position: every round visits every sample once, in a new order."""
        round_, place = divmod(position, len(self._index))
        dataset, sample = self._index[_permutation(self.seed, self._key, round_, len(self._index))[place]]
        return int(dataset), int(sample)

    def view_size(self) -> tuple[int, int]:
        """Height and width of what the first view shows; without a crop, of the first position's image."""
        first = next(iter(self.views.values()))
        crop = (first.augment or self.augment).crop
        if crop is not None:
            return crop
        cuts: Any = self.load(0)["cuts"]
        height, width = next(iter(cuts.values()))[0].shape[:2]
        return int(height), int(width)

    def load(self, position: int) -> dict[str, object]:
        """Everything that a worker makes of one position; a pure function of it.

        Raises :class:`DataError` when a file cannot be read, unless such samples are to be skipped: then another
        sample, drawn by position, takes the place.
        """
        chosen = self.sample_at(position)
        for attempt in range(_REPLACEMENTS):
            try:
                return self._cut(position, *chosen)
            except DataError:
                if self.loader.on_unreadable == "error":
                    raise
                draw = generator(self.seed, self._key, "replacement", position, attempt)
                other, place = self._index[draw.integers(len(self._index))]
                chosen = (int(other), int(place))
        raise DataError(
            f"stream {self.name!r}: {_REPLACEMENTS} samples in a row cannot be read (position {position})",
            "run `tutelage check` on the data",
        )

    def _cut(self, position: int, dataset: int, sample: int) -> dict[str, object]:
        data = self.datasets[dataset]
        record = data.samples[sample]
        image = self._cache.image(data, sample)
        maps = {}
        if self.labels and record.label is not None:
            maps["label"] = self._cache.label(data, sample)
            if maps["label"].shape != image.shape[:2]:
                raise DataError(
                    f"image and mask differ in size: {record.image} is {image.shape[1]}x{image.shape[0]}, "
                    f"{record.label} is {maps['label'].shape[1]}x{maps['label'].shape[0]}",
                    "run `tutelage check`; it lists all such pairs and likely reasons",
                )
            if record.confidence is not None:
                maps["confidence"] = self._cache.confidence(data, sample)
        cuts: dict[str, tuple[np.ndarray, np.ndarray, dict[str, np.ndarray], Geometry]] = {}
        colours = {}
        for view, settings in self.views.items():
            cut = SHARED if settings.augment is None else view
            if cut not in cuts:
                key = self._key if cut == SHARED else f"{self._key}/{view}"
                geometry = draw_geometry(
                    settings.augment or self.augment, image.shape[:2], maps.get("label"), self.seed, key, position
                )
                cuts[cut] = (
                    take_image(image, geometry),
                    take_valid(geometry),
                    {n: take_map(v, geometry, IGNORE if n == "label" else 0) for n, v in maps.items()},
                    geometry,
                )
            colours[view] = (cut, draw_colour(settings.colour, self.seed, f"{self._key}/{view}", position))
        return {"cuts": cuts, "colours": colours, "position": position, "sample": sample_name(data, sample)}

    def collate(self, items: Sequence[dict]) -> RawBatch:
        """Samples of one micro-batch as one batch."""
        cuts = {}
        for name in items[0]["cuts"]:
            parts = [item["cuts"][name] for item in items]
            shapes = {part[0].shape for part in parts}
            if len(shapes) > 1:
                raise DataError(
                    f"stream {self.name!r}: images of different sizes cannot share a batch ({sorted(shapes)[:2]} ...)",
                    "set augment.crop for the stream, or batch: 1",
                )
            if len({tuple(part[2]) for part in parts}) > 1:
                unshared = " or a ".join(sorted(_unshared(parts)))
                raise DataError(
                    f"stream {self.name!r}: some samples have a {unshared}, others do not "
                    f"({', '.join(item['sample'] for item in items)})",
                    "pool only data sets that have the same maps, or use the images as unlabelled data",
                )
            cuts[name] = RawView(
                torch.from_numpy(np.stack([part[0] for part in parts])),
                torch.from_numpy(np.stack([part[1] for part in parts])),
                {key: torch.from_numpy(np.stack([part[2][key] for part in parts])) for key in parts[0][2]},
                Geometries.stack([part[3] for part in parts]),
            )
        views = {
            view: (items[0]["colours"][view][0], np.array([item["colours"][view][1] for item in items]))
            for view in items[0]["colours"]
        }
        return RawBatch(cuts, views, torch.tensor([i["position"] for i in items]), tuple(i["sample"] for i in items))

    def positions(self, step: int, micro: int, accumulate: int, rank: int, world: int) -> range:
        """The positions that one rank handles in one micro-batch of a step.

        A micro-batch is one more rank: slice ``micro * world + rank`` of the step's ``batch`` positions.
        Raises :class:`DataError` when the batch cannot be dealt out evenly.
        """
        slices = accumulate * world
        if self.batch % slices:
            raise DataError(
                f"stream {self.name!r}: batch {self.batch} cannot be dealt to {accumulate} micro-batches x {world} "
                "processes",
                f"choose a batch that {slices} divides, e.g. {max(self.batch // slices, 1) * slices}",
            )
        size = self.batch // slices
        start = step * self.batch + (micro * world + rank) * size
        return range(start, start + size)

    def batches(
        self, first_step: int, steps: int, accumulate: int, rank: int, world: int, device: torch.device
    ) -> Iterator[Batch]:
        """The batches of one rank from ``first_step`` to ``steps``, micro-batch by micro-batch, on ``device``."""
        plan = [
            self.positions(step, micro, accumulate, rank, world)
            for step in range(first_step, steps)
            for micro in range(accumulate)
        ]
        source = self._by_processes(plan, device) if self.loader.workers else self._by_thread(plan)
        for raw in source:
            yield raw.render(device)

    def _by_thread(self, plan: Sequence[range]) -> Iterator[RawBatch]:
        def make(positions: range) -> RawBatch:
            return self.collate([self.load(position) for position in positions])

        with ThreadPoolExecutor(1, thread_name_prefix=f"stream-{self.name}") as pool:
            pending = [pool.submit(make, positions) for positions in plan[: self.loader.ahead]]
            try:
                for number in range(len(plan)):
                    ready = pending.pop(0)
                    if number + self.loader.ahead < len(plan):
                        pending.append(pool.submit(make, plan[number + self.loader.ahead]))
                    yield ready.result()
            finally:
                for waiting in pending:
                    waiting.cancel()

    def _by_processes(self, plan: Sequence[range], device: torch.device) -> Iterator[RawBatch]:
        loader: DataLoader = DataLoader(
            _Positions(self),
            batch_sampler=[list(positions) for positions in plan],
            num_workers=self.loader.workers,
            prefetch_factor=self.loader.ahead,
            collate_fn=self._collate_or_fault,
            pin_memory=device.type == "cuda",
            # The loader draws a base seed; a generator of its own keeps it away from the global one.
            generator=torch.Generator().manual_seed(0),
        )
        for ready in loader:
            if isinstance(ready, DataError):
                raise ready
            yield ready

    def _collate_or_fault(self, items: Sequence[dict | DataError]) -> RawBatch | DataError:
        """In a worker a fault is a result: raised there, its message would arrive wrapped into a traceback."""
        samples = []
        for item in items:
            if isinstance(item, DataError):
                return item
            samples.append(item)
        try:
            return self.collate(samples)
        except DataError as fault:
            return fault


def _unshared(parts: Sequence[tuple]) -> set[str]:
    """The names of maps that only some of the parts have."""
    names = [set(part[2]) for part in parts]
    return set.union(*names) - set.intersection(*names)


class _Positions(TorchDataset):
    """A stream as torch's loader wants to see it."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream

    def __getitem__(self, position: int) -> dict[str, object] | DataError:
        try:
            return self.stream.load(position)
        except DataError as fault:
            return fault
