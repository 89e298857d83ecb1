"""The cache of a teacher's outputs: a separate artefact, shared by all stages with the same teacher and images.

Its key contains the teacher, the images and the size they are scaled to, the temperature, the number of classes kept
and the precision. Seeds, students and crops have no effect: a ladder makes it once. The recipe, and so the stage's
key, states whether a stage uses a cache. It is never chosen by timing at run time, since results would then depend on
the machine's load; ``tutelage plan`` measures both ways and reports the cheaper one.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError

from tutelage.data.augmentation import Geometry, take_image
from tutelage.data.dataset import Dataset
from tutelage.data.stream import Stream, sample_name
from tutelage.engine import collectives
from tutelage.errors import DataError, RecipeError
from tutelage.methods.distillation.cache import TeacherCache, compress, error_bound
from tutelage.methods.settings.common import CacheableSettings, CacheSettings
from tutelage.nets.segmentor import Precision, Segmentor
from tutelage.pipeline.display import Display
from tutelage.recipe.stages.train import TrainStage
from tutelage.runs.atomic import writing
from tutelage.runs.store import Artefact

FORMAT = 1
KIND = "teacher_cache"
"""The artefact's kind."""


def chosen(stage: TrainStage) -> CacheSettings | None:
    """The cache settings of a stage; ``None``: no cache."""
    found: CacheSettings | None = getattr(stage.method_settings(), "cache", None)
    return found


def possible(stage: TrainStage) -> CacheSettings | None:
    """The stage's cache settings, or possible ones; ``None`` where its method does not support a cache."""
    settings = stage.method_settings()
    if not isinstance(settings, CacheableSettings):
        return None
    try:
        return settings.cache or type(settings).model_validate({**settings.model_dump(), "cache": {}}).cache
    except ValidationError:
        return None


def temperature(stage: TrainStage) -> float:
    """The temperature of the probabilities that a stage's method uses."""
    settings = stage.method_settings()
    assert isinstance(settings, CacheableSettings)
    return settings.cache_temperature()


def cached_teacher(stage: TrainStage) -> tuple[str, str]:
    """The role of the cached net, and the stream of its images."""
    chosen = stage.spec.cached_teacher
    assert chosen is not None
    return chosen


def content(stage: TrainStage, teacher: str, data: list[str], classes: int) -> dict[str, Any]:
    """Everything that determines the outputs, given the keys of teacher and data."""
    cache = chosen(stage)
    assert cache is not None
    return {
        "kind": KIND,
        "format": FORMAT,
        "teacher": teacher,
        "data": data,
        "classes": classes,
        "resize": _resize(stage),
        "temperature": temperature(stage),
        "top": cache.top,
        "precision": stage.precision,
    }


def _resize(stage: TrainStage) -> tuple[int, int] | None:
    """The size that images are scaled to before cropping, for the cached view."""
    stream = stage.streams[cached_teacher(stage)[1]]
    view = stream.views.get("weak")
    return (stream.augment if view is None or view.augment is None else view.augment).resize


def samples_of(stream: Stream) -> dict[str, tuple[Dataset, int]]:
    """The images of a stream in order, by their names in its batches.

    Raises :class:`RecipeError` where two images share a name.
    """
    result: dict[str, tuple[Dataset, int]] = {}
    for dataset in stream.datasets:
        for index, sample in enumerate(dataset.samples):
            name = sample_name(dataset, index)
            other = result.setdefault(name, (dataset, index))
            if other[0].samples[other[1]].image != sample.image:
                raise RecipeError(
                    "duplicate-name",
                    f"stream {stream.name!r}: two images have the name {name}, which a cache does not allow: "
                    f"{other[0].samples[other[1]].image} and {sample.image}",
                    "rename one of the splits, or write cache: null",
                )
    return result


class Teacher:
    """A teacher applied to whole images, scaled as for the student at scale 1."""

    def __init__(self, stage: TrainStage, net: Segmentor, device: torch.device) -> None:
        cache = possible(stage)
        assert cache is not None
        self.top = cache.top
        self.temperature = temperature(stage)
        self.resize = _resize(stage)
        self.precision: Precision = stage.precision
        self.layout = torch.channels_last if stage.channels_last else torch.contiguous_format
        self.device = device
        self.net: Segmentor = net.to(device, memory_format=self.layout)  # type: ignore[call-overload]

    @torch.no_grad()
    def __call__(self, dataset: Dataset, index: int) -> np.ndarray:
        """The records (M, N) of image ``index``."""
        image = dataset.image(index)
        source = (image.shape[0], image.shape[1])
        size = self.resize or source
        seen = np.array(take_image(image, Geometry.crop(source, size, (0, 0), size, False)))
        image_1HW3 = torch.from_numpy(seen)[None].to(self.device).float().div_(255.0)
        with self.net.inferring(self.precision):
            logits_1KMN = self.net(image_1HW3.permute(0, 3, 1, 2).contiguous(memory_format=self.layout)).logits
        return compress(logits_1KMN[0], self.top, self.temperature)

    def cache(self, read: Callable[[str], np.ndarray]) -> TeacherCache:
        """The cached outputs, for a method."""
        return TeacherCache(read, self.net.classes, self.temperature)


def ready(
    artefact: Artefact, settings: dict[str, Any], teacher: Teacher, stream: Stream, display: Display
) -> TeacherCache:
    """The cache in ``artefact``; made or completed first where necessary.

    Raises :class:`tutelage.runs.lock.HeldError` while another process makes it.
    """
    samples = samples_of(stream)
    paths = {name: artefact.answers / f"{number:06d}.npy" for number, name in enumerate(samples)}
    fault = collectives.from_first((artefact.fault() or "") if collectives.rank() == 0 else "")
    if fault and collectives.rank():
        collectives.barrier()  # rank 0 has removed damaged files
        _make(teacher, samples, paths, stream, display)
    elif fault:
        with artefact.lock(display.say):
            if artefact.declared:
                display.say(f"teacher cache: {fault}; damaged files are made again")
            artefact.reopen()
            artefact.begin(json.dumps(settings, indent=2) + "\n")
            collectives.barrier()
            display.say(f"teacher cache → {artefact.folder}")
            seconds = _make(teacher, samples, paths, stream, display)
            files = [path for path in paths.values() if path.is_file()]
            bounds = [error_bound(_read(path), teacher.net.classes).mean() for path in files]
            facts = {"images": len(files), "mean_error_bound": round(float(np.mean(bounds)), 6)}
            artefact.finish(KIND, files, facts)
            size = sum(path.stat().st_size for path in files)
            display.say(f"  {len(files)} images in {seconds:.0f} s, {size / 2**20:.1f} MiB")
    collectives.barrier()
    if collectives.rank() == 0:
        bound = artefact.facts()["mean_error_bound"]
        display.say(
            f"the teacher's outputs are read from {artefact.folder.name}; compression changes the probabilities of a "
            f"pixel by at most {bound:.2g} in all, on average"
        )
    return teacher.cache(lambda name: _read(paths[name]))


def _make(
    teacher: Teacher, samples: dict[str, tuple[Dataset, int]], paths: dict[str, Path], stream: Stream, display: Display
) -> float:
    """Compute this process's share of the missing images; returns the seconds taken."""
    started = time.perf_counter()
    mine = list(samples)[collectives.rank() :: collectives.world()]
    with display.bar("teacher cache", len(mine)) as progress:
        for number, name in enumerate(mine):
            if not _whole(paths[name]):
                try:
                    records = teacher(*samples[name])
                except DataError:
                    if stream.loader.on_unreadable == "error":
                        raise
                    continue  # the stream skips it, too
                with writing(paths[name]) as partial:
                    np.save(partial, records)
            progress(number + 1, len(mine))
    collectives.barrier()
    return time.perf_counter() - started


def _whole(path: Path) -> bool:
    try:
        _read(path)
    except (OSError, ValueError):
        return False
    return True


def _read(path: Path) -> np.ndarray:
    return np.asarray(np.load(path, mmap_mode="r"))


def trial(teacher: Teacher, stream: Stream, steps: int) -> tuple[TeacherCache, float]:
    """A cache in memory of the images of the first ``steps`` steps, and the seconds per image."""
    samples = samples_of(stream)
    names = {str(stream.load(position)["sample"]) for position in range(steps * stream.batch)}
    teacher(*samples[min(names)])  # the first pass of a net is slow
    started = time.perf_counter()
    known = {name: teacher(*samples[name]) for name in sorted(names)}
    return teacher.cache(known.__getitem__), (time.perf_counter() - started) / len(known)


def verdict(live: float, cached: float, making: float, images: int, used: bool) -> str:
    """Both ways as text: seconds per step with and without a cache, and the number of steps until it pays."""
    both = f"{live:.3g} s a step with the teacher, {cached:.3g} s with a cache"
    made = f"{making:.3g} s once for {images} images"
    if cached >= live:
        advice = "a cache does not pay" + ("; `cache: null` is cheaper" if used else "")
    else:
        steps = int(np.ceil(making / (live - cached)))
        advice = f"`cache: {{}}` pays after {steps} steps of all stages that share it"
    return f"{both} and {made}: {advice}"
