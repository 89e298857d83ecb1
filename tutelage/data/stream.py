"""Streams: endless sequences of batches that are functions of the position.

The sample, geometry and colours at position p of a stream are functions of (seed, stream, p) alone. A global step takes
the next ``batch`` positions and distributes them over micro-batches and ranks; the number of workers has no effect. A
run that stops at step n therefore resumes at step n without skipping or repeating samples and without saved state.
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
    """Settings of batch preparation; none of them changes the content of the batches."""

    workers: int = 0
    """Worker processes; 0: one thread of the training process."""
    ahead: int = 2
    """Number of batches prepared ahead of the current step."""
    cache: Literal["none", "memory", "disk"] = "none"
    cache_folder: str | None = None
    on_unreadable: Literal["error", "skip"] = "error"


@lru_cache(maxsize=8)
def _permutation(seed: int, stream: str, round_: int, length: int) -> np.ndarray:
    return generator(seed, stream, "sample", round_).permutation(length)


def sample_name(dataset: Dataset, index: int) -> str:
    """Name of sample ``index`` of a data set in batches."""
    return f"{dataset.name}:{dataset.samples[index].name}"


@dataclass
class Stream:
    """An endless sequence of batches over pooled data sets.

    Raises :class:`DataError`: ``empty-dataset``, ``stream-repeat``, ``sampler-labels``.
    """

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
            raise DataError(
                "dataset-empty", f"stream {self.name!r} has no images", "check the list or folder of its data set"
            )
        if not self.labels:
            self.datasets = [dataset.without_labels() for dataset in self.datasets]
        repeats = self._repeats()
        if len(repeats) != len(self.datasets):
            raise DataError(
                "invalid-value",
                f"stream {self.name!r}: repeat has {len(repeats)} numbers, expected {len(self.datasets)}",
                "give one number per data set",
            )
        pairs = [
            np.tile(np.stack([np.full(len(d), i), np.arange(len(d))], 1), (r, 1))
            for i, (d, r) in enumerate(zip(self.datasets, repeats, strict=True))
        ]
        if self.sampler is not None and not all(dataset.labeled for dataset in self.datasets):
            raise DataError(
                "sampler-labels",
                f"stream {self.name!r}: sampler needs masks, but not all images have one",
                "remove `sampler`, or use images with masks (or pseudo labels)",
            )
        self._index = np.concatenate(pairs)
        self._key = self.draws_of or self.name
        self._cache = ImageCache(self.loader.cache, self.loader.cache_folder)

    def _repeats(self) -> Sequence[int]:
        """Number of repetitions of each data set in one round."""
        if self.repeat == "equal":
            sizes = [len(dataset) for dataset in self.datasets]
            return [max(round(max(sizes) / max(size, 1)), 1) for size in sizes]
        return self.repeat or [1] * len(self.datasets)

    def __len__(self) -> int:
        """Number of samples in one round."""
        return len(self._index)

    def sample_at(self, position: int) -> tuple[int, int]:
        """Indices (dataset, sample) at a position: every round visits every sample once, in a new random order.

        A rare-class sampler has no rounds: it draws an image for each position.
        """
        if isinstance(self._samples, RareClassSampler):
            dataset, sample = self._index[self._samples.draw(self.seed, self._key, position)[1]]
            return int(dataset), int(sample)
        round_, place = divmod(position, len(self._index))
        dataset, sample = self._index[_permutation(self.seed, self._key, round_, len(self._index))[place]]
        return int(dataset), int(sample)

    @cached_property
    def _samples(self) -> RareClassSampler | SmallClassSampler | None:
        """The sampler; reads the masks on first access, once per data set."""
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
        """Draw the geometry of a view at a position; the sampler may redraw or move the crop."""
        geometry = draw_geometry(augment, size, label, self.seed, key, position)
        samples = self._samples
        if isinstance(samples, SmallClassSampler) and label is not None:
            point = samples.point(label, self.seed, self._key, position)
            return geometry if point is None else centred(geometry, point)
        if isinstance(samples, RareClassSampler) and label is not None:
            class_, _ = samples.draw(self.seed, self._key, position)
            for attempt in range(1, samples.settings.tries):
                if samples.shows(class_, take_map(label, geometry)):
                    break
                geometry = draw_geometry(augment, size, label, self.seed, f"{key}/try {attempt}", position)
        return geometry

    def view_size(self) -> tuple[int, int]:
        """Height and width of the first view; without a crop, those of the image at position 0."""
        first = next(iter(self.views.values()))
        crop = (first.augment or self.augment).crop
        if crop is not None:
            return crop
        cuts: Any = self.load(0)["cuts"]
        height, width = next(iter(cuts.values()))[0].shape[:2]
        return int(height), int(width)

    def load(self, position: int) -> dict[str, object]:
        """Read and augment the sample at one position; a pure function of the position.

        Raises :class:`DataError` if a file cannot be read. With ``on_unreadable: skip`` a sample drawn by position
        replaces it; the error ``unreadable-image`` is raised after 20 replacements that cannot be read either.
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
            "image-unreadable",
            f"stream {self.name!r}: cannot read {_REPLACEMENTS} samples in a row (position {position})",
            "run `tutelage check`, which lists the unreadable files, and replace them",
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
                    "size-mismatch",
                    f"image and mask differ in size: {record.image} is {image.shape[1]}x{image.shape[0]}, "
                    f"{record.label} is {maps['label'].shape[1]}x{maps['label'].shape[0]}",
                    "export both at one size; `tutelage check` lists all such pairs with likely reasons",
                )
            if record.confidence is not None:
                maps["confidence"] = self._cache.confidence(data, sample)
            if record.weight is not None:
                maps["weight"] = self._cache.weight(data, sample)
                if maps["weight"].shape != image.shape[:2]:
                    raise DataError(
                        "artefact-mismatch",
                        f"image and weights differ in size: {record.image} and {record.weight}",
                        "run the fit stage again: the images have changed",
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
                operations = (settings.randaugment, settings.cutout, crops[cut].geometry.size)
                alteration = draw_alteration(*operations, self.seed, f"{self._key}/{view}", position)
                cuts[view] = alter(crops[cut], maps, alteration)
                cut = view
            colours[view] = (cut, draw_colour(settings.colour, self.seed, f"{self._key}/{view}", position))
        return {"cuts": cuts, "colours": colours, "position": position, "sample": sample_name(data, sample)}

    def collate(self, items: Sequence[dict]) -> RawBatch:
        """Stack the samples of one micro-batch. Raises :class:`DataError`: ``batch-sizes``, ``batch-maps``."""
        cuts = {}
        for name in items[0]["cuts"]:
            parts = [item["cuts"][name] for item in items]
            shapes = {part[0].shape for part in parts}
            if len(shapes) > 1:
                raise DataError(
                    "size-mismatch",
                    f"stream {self.name!r}: images of a batch differ in size ({sorted(shapes)[:2]} ...)",
                    "set augment.crop of the stream, or batch: 1",
                )
            if len({tuple(part[2]) for part in parts}) > 1:
                unshared = " or a ".join(sorted(_unshared(parts)))
                raise DataError(
                    "batch-maps",
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
        """Positions of one rank in one micro-batch of a step.

        A micro-batch counts as further ranks: slice ``micro * world + rank`` of the step's ``batch`` positions.
        Raises :class:`DataError` (``batch-division``) if ``accumulate * world`` does not divide ``batch``.
        """
        slices = accumulate * world
        if self.batch % slices:
            raise DataError(
                "batch-size",
                f"stream {self.name!r}: batch must be a multiple of {slices} ({accumulate} micro-batches x {world} "
                f"processes), got {self.batch}",
                f"set a multiple of {slices}, e.g. batch: {max(self.batch // slices, 1) * slices}",
            )
        size = self.batch // slices
        start = step * self.batch + (micro * world + rank) * size
        return range(start, start + size)

    def batches(
        self, first_step: int, steps: int, accumulate: int, rank: int, world: int, device: torch.device
    ) -> Iterator[Batch]:
        """Yield the batches of one rank from ``first_step`` to ``steps``, one per micro-batch, on ``device``."""
        plan = [
            self.positions(step, micro, accumulate, rank, world)
            for step in range(first_step, steps)
            for micro in range(accumulate)
        ]
        _ = self._samples  # read the masks once, before the workers start
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
            collate_fn=self._collate_or_error,
            pin_memory=device.type == "cuda",
            # The loader draws a base seed; with its own generator the global one is not used.
            generator=torch.Generator().manual_seed(0),
        )
        for ready in loader:
            if isinstance(ready, DataError):
                raise ready
            yield ready

    def _collate_or_error(self, items: Sequence[dict | DataError]) -> RawBatch | DataError:
        """Collate in a worker; errors are returned, because torch wraps a raised one into a traceback."""
        samples = []
        for item in items:
            if isinstance(item, DataError):
                return item
            samples.append(item)
        try:
            return self.collate(samples)
        except DataError as error:
            return error


def _unshared(parts: Sequence[tuple]) -> set[str]:
    """Names of maps that only some of the parts have."""
    names = [set(part[2]) for part in parts]
    return set.union(*names) - set.intersection(*names)


class _Positions(TorchDataset):
    """A stream as a torch data set."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream

    def __getitem__(self, position: int) -> dict[str, object] | DataError:
        try:
            return self.stream.load(position)
        except DataError as error:
            return error
