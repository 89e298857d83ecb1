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
from functools import cached_property, lru_cache
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from tutelage.data.augmentation import AugmentSettings, Geometry, draw_geometry, take_image, take_map, take_valid
from tutelage.data.batch import Batch, Geometries, RawBatch, RawView
from tutelage.data.cache import ImageCache
from tutelage.data.colour import draw_colour
from tutelage.data.dataset import Dataset
from tutelage.data.draws import generator
from tutelage.data.labels import IGNORE
from tutelage.data.randaugment import Cut, alter, draw_alteration
from tutelage.data.rare_classes import RareClassSampler, SamplerSettings, SmallClassSampler, SmallClassSettings, centred
from tutelage.data.settings import ViewSettings
from tutelage.data.statistics import read_statistics
from tutelage.errors import DataError

SHARED = "shared"
_REPLACEMENTS = 20


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
    repeat: Sequence[int] | Literal["equal"] = ()
    draws_of: str | None = None
    sampler: SamplerSettings | None = None

    def __post_init__(self) -> None:
        if not sum(map(len, self.datasets)):
            raise DataError(f"stream {self.name!r} has no images", "check its data set's list or folder")
        if not self.labels:
            self.datasets = [dataset.without_labels() for dataset in self.datasets]
        repeats = self._repeats()
        if len(repeats) != len(self.datasets):
            raise DataError(
                f"stream {self.name!r}: {len(repeats)} numbers under repeat for {len(self.datasets)} data sets",
                "give one number for each data set",
            )
        pairs = [
            np.tile(np.stack([np.full(len(d), i), np.arange(len(d))], 1), (r, 1))
            for i, (d, r) in enumerate(zip(self.datasets, repeats, strict=True))
        ]
        if self.sampler is not None and not all(dataset.labeled for dataset in self.datasets):
            raise DataError(
                f"stream {self.name!r}: its sampler counts classes in masks, and not all of its images have one",
                "take `sampler` out, or give a stream of images with masks (or pseudo labels) a sampler",
            )
        self._index = np.concatenate(pairs)
        self._key = self.draws_of or self.name
        self._cache = ImageCache(self.loader.cache, self.loader.cache_folder)

    def _repeats(self) -> Sequence[int]:
        """How often each data set comes in a round."""
        if self.repeat == "equal":
            sizes = [len(dataset) for dataset in self.datasets]
            return [max(round(max(sizes) / max(size, 1)), 1) for size in sizes]
        return self.repeat or [1] * len(self.datasets)

    def __len__(self) -> int:
        """Samples in one round."""
        return len(self._index)

    def sample_at(self, position: int) -> tuple[int, int]:
        """Which (dataset, sample) stands at a position: every round visits every sample once, in a new order.

        With a sampler of rare classes there are no rounds: images are drawn, class by class.
        """
        if isinstance(self._samples, RareClassSampler):
            dataset, sample = self._index[self._samples.draw(self.seed, self._key, position)[1]]
            return int(dataset), int(sample)
        round_, place = divmod(position, len(self._index))
        dataset, sample = self._index[_permutation(self.seed, self._key, round_, len(self._index))[place]]
        return int(dataset), int(sample)

    @cached_property
    def _samples(self) -> RareClassSampler | SmallClassSampler | None:
        """The sampler; the masks are read when it is first asked for, once for a data set."""
        if self.sampler is None:
            return None
        statistics = [read_statistics(dataset) for dataset in self.datasets]
        ends = np.cumsum([0, *map(len, self.datasets)])
        rows = ends[self._index[:, 0]] + self._index[:, 1]
        pixels_NC = np.concatenate([each.classes for each in statistics])[rows]
        if isinstance(self.sampler, SmallClassSettings):
            return SmallClassSampler(self.sampler, pixels_NC)
        area_N = np.concatenate([each.sizes[:, :2].prod(1) for each in statistics])[rows]
        return RareClassSampler(self.sampler, pixels_NC, area_N)

    def _geometry(
        self, augment: AugmentSettings, size: tuple[int, int], label: np.ndarray | None, key: str, position: int
    ) -> Geometry:
        """What a view shows at a position, with the sampler's say in it; the first try is that without a sampler."""
        geometry = draw_geometry(augment, size, label, self.seed, key, position)
        samples = self._samples
        if isinstance(samples, SmallClassSampler) and label is not None:
            point = samples.point(label, self.seed, self._key, position)
            return geometry if point is None else centred(geometry, point)
        if isinstance(samples, RareClassSampler) and label is not None:
            wanted, _ = samples.draw(self.seed, self._key, position)
            for attempt in range(1, samples.settings.tries):
                if samples.shows(wanted, take_map(label, geometry)):
                    break
                geometry = draw_geometry(augment, size, label, self.seed, f"{key}/try {attempt}", position)
        return geometry

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
            if record.weight is not None:
                maps["weight"] = self._cache.weight(data, sample)
                if maps["weight"].shape != image.shape[:2]:
                    raise DataError(
                        f"image and weights differ in size: {record.image} and {record.weight}",
                        "the images have changed: run the fit stage again",
                    )
        crops: dict[str, Cut] = {}
        cuts: dict[str, Cut] = {}
        colours = {}
        for view, settings in self.views.items():
            cut = SHARED if settings.augment is None else view
            if cut not in crops:
                key = self._key if cut == SHARED else f"{self._key}/{view}"
                augment = settings.augment or self.augment
                geometry = self._geometry(augment, image.shape[:2], maps.get("label"), key, position)
                crops[cut] = Cut(
                    take_image(image, geometry),
                    take_valid(geometry),
                    {n: take_map(v, geometry, IGNORE if n == "label" else 0) for n, v in maps.items()},
                    geometry,
                )
            if settings.randaugment is None and settings.cutout is None:
                cuts[cut] = crops[cut]
            else:
                chances = (settings.randaugment, settings.cutout, crops[cut].geometry.size)
                alteration = draw_alteration(*chances, self.seed, f"{self._key}/{view}", position)
                cuts[view] = alter(crops[cut], maps, alteration)
                cut = view
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
        _ = self._samples  # the masks are read before workers start, and not by each of them
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
