"""The cache of a teacher's answers: what a step takes with and without it, and how far replayed answers are off.

``python -m benchmarks.teacher_cache [TEACHER.safetensors]``: the second part needs a trained net with CamVid's classes.
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.common import in_turns, street_data
from benchmarks.distillation import CPU, stepper_of
from tutelage.data.augmentation import AugmentSettings, Geometry, take_image
from tutelage.data.batch import Batch, Geometries, View, warp
from tutelage.data.dataset import Dataset
from tutelage.data.draws import generator
from tutelage.data.settings import ColourSettings, ViewSettings
from tutelage.data.stream import Stream, sample_name
from tutelage.engine.allocator import keep_freed_memory
from tutelage.engine.contract import TaskInfo
from tutelage.methods.distillation.cache import TeacherCache, compress, error_bound
from tutelage.methods.pixel_kd import PixelKD
from tutelage.nets.build import build
from tutelage.nets.segmentor import Segmentor
from tutelage.nets.settings import NetSettings
from tutelage.nets.storage import load_segmentor

# As in recipes/camvid/ladder.yaml.
BATCH, CROP, STEPS = 8, (192, 192), 600
COLOUR = ColourSettings(brightness=0.3, contrast=0.3, saturation=0.3, hue=0.05)
STUDENT = NetSettings(encoder="tf_efficientnet_lite0", decoder="deeplabv3plus", width=64)
TEACHER = NetSettings(encoder="tf_efficientnet_lite2", decoder="deeplabv3plus")
TOPS = (1, 2, 4, 8)
SCALES = (0.5, 0.75, 1.0, 1.25, 1.5)


@torch.no_grad()
def asked(teacher: Segmentor, dataset: Dataset, index: int, precision: str = "bf16") -> Tensor:
    """Logits (K, M, N) for a whole image."""
    image = torch.from_numpy(dataset.image(index).copy())[None].float().div_(255.0).permute(0, 3, 1, 2)
    teacher.precision = precision  # type: ignore[assignment]
    return teacher(image.contiguous(memory_format=torch.channels_last)).logits[0]


def batches_of(dataset: Dataset, scale: tuple[float, float], colour: ColourSettings, count: int) -> list[Batch]:
    """The first batches of a stream."""
    augment = AugmentSettings(crop=CROP, scale=scale, flip=0.5)
    stream = Stream("labeled", [dataset], 0, BATCH, {"weak": ViewSettings(colour=colour)}, augment)
    return list(stream.batches(0, count, 1, 0, 1, CPU))


def steps(dataset: Dataset, rounds: int) -> None:
    """A step with the teacher and with its cache, images ready, and after how many steps a cache has paid."""
    (batch,) = batches_of(dataset, (0.5, 1.5), COLOUR, 1)
    ways = {}
    numbers = {sample_name(dataset, number): number for number in range(len(dataset))}
    for name in ("live", "cached"):
        nets = {
            "student": build(STUDENT, len(dataset.classes), seed=0),
            "teacher": build(TEACHER, len(dataset.classes), seed=1),
        }
        method = PixelKD(nets, PixelKD.Settings(), TaskInfo(len(dataset.classes), size=lambda: CROP))
        ways[name] = stepper_of(method, {"labeled": batch})
        if name == "cached":
            records = {it: compress(asked(method.teacher, dataset, numbers[it]), 4) for it in batch.samples}
            method.cache = TeacherCache(records.__getitem__, len(dataset.classes), 1.0)
    times = in_turns(ways, rounds)
    started = time.perf_counter()
    for number in range(8):
        records_MN = compress(asked(method.teacher, dataset, number), 4)
    making = (time.perf_counter() - started) / 8 * len(dataset)
    live, cached = (statistics.median(times[name]) for name in ("live", "cached"))
    ratios = [a / b for a, b in zip(times["live"], times["cached"], strict=True)]
    print(
        f"\n## A step of pixel KD with the teacher and with its cache (batch {BATCH}, {CROP[0]}x{CROP[1]}, "
        "EfficientNet-Lite2 to Lite0, bf16, images ready)\n\n"
        "| teacher | cache | ratio | range | to make the cache | has paid after | on the disk |\n"
        "| --- | --- | --- | --- | --- | --- | --- |\n"
        f"| {live:.3g} s | {cached:.3g} s | **{statistics.median(ratios):.2f}** | {min(ratios):.2f}-{max(ratios):.2f} "
        f"| {making:.3g} s ({len(dataset)} images) | {math.ceil(making / max(live - cached, 1e-9))} steps "
        f"| {records_MN.nbytes * len(dataset) / 2**20:.0f} MiB |"
    )


def compression(teacher: Segmentor, dataset: Dataset, images: int) -> None:
    """What keeping the likeliest classes costs by itself: same image, same grid."""
    print(
        "\n## Compression alone (whole images, as they are)\n\n"
        "| kept | bytes a position | sum of abs(p - p~), mean | bound, mean | largest | its bound |\n"
        "| --- | --- | --- | --- | --- | --- |"
    )
    logits = [asked(teacher, dataset, number) for number in range(images)]
    for top in TOPS:
        wrong, bounds = [], []
        for it in logits:
            records = compress(it, top)
            cache = TeacherCache({"it": records}.__getitem__, len(it), 1.0)
            grid = (it.shape[1], it.shape[2])
            whole = Geometries.stack([Geometry.crop(grid, grid, (0, 0), grid, False)])
            cached_teacher = cache.logits(["it"], whole, grid)[0]
            wrong.append((cached_teacher.softmax(0) - it.softmax(0)).abs().sum(0))
            bounds.append(torch.from_numpy(error_bound(records, len(it))))
        error, bound = torch.stack(wrong), torch.stack(bounds)
        worst = error.flatten().argmax()
        print(
            f"| {top} | {3 * top} | {error.mean():.2g} | {bound.mean():.2g} | {error.max():.2g} "
            f"| {bound.flatten()[worst]:.2g} |"
        )


def differences(teacher: Segmentor, dataset: Dataset, count: int, top: int = 4) -> None:
    """Live and replayed answers under the recipe's augmentation, by scale."""
    numbers = {sample_name(dataset, number): number for number in range(len(dataset))}
    known: dict[str, Tensor] = {}

    def logits_of(name: str) -> Tensor:
        if name not in known:
            known[name] = asked(teacher, dataset, numbers[name])
        return known[name]

    cache = TeacherCache(lambda name: compress(logits_of(name), top), len(dataset.classes), 1.0)
    print(
        f"\n## Live and replayed answers, {top} classes kept (crops of {CROP[0]}x{CROP[1]}, {count * BATCH} a row)\n\n"
        "| scale | colours | KL(live, replayed) | KL(live, plain) | same class | live right | replayed right |\n"
        "| --- | --- | --- | --- | --- | --- | --- |"
    )
    rows = [((scale, scale), "plain") for scale in SCALES]
    rows += [((0.5, 1.5), "plain"), ((1.0, 1.0), "changed"), ((0.5, 1.5), "changed")]
    for scale, colours in rows:
        found = [
            compared(teacher, batch["weak"], cache, batch.samples, plain["weak"])
            for batch, plain in zip(
                batches_of(dataset, scale, COLOUR if colours == "changed" else ColourSettings(), count),
                batches_of(dataset, scale, ColourSettings(), count),
                strict=True,
            )
        ]
        kl, shift, same, live, replayed = torch.tensor(found).mean(0).tolist()
        name = f"{scale[0]}" if scale[0] == scale[1] else f"{scale[0]}-{scale[1]}"
        print(
            f"| {name} | {colours} | {kl:.3f} | {shift:.3f} | {100 * same:.1f} % | {100 * live:.1f} % "
            f"| {100 * replayed:.1f} % |"
        )


@torch.no_grad()
def compared(
    teacher: Segmentor, view: View, cache: TeacherCache, samples: tuple[str, ...], plain: View
) -> tuple[float, float, float, float, float]:
    """Mean KL from live to replayed answers and to live ones in plain colours, share of equal classes, both accuracies.

    On the teacher's grid, over positions inside the image; accuracies over those with a label.
    """
    live = teacher(view.image).logits
    grid = (live.shape[2], live.shape[3])
    cached_teacher, calm = cache.logits(samples, view.geometry, grid), teacher(plain.image).logits
    inside = warp(torch.ones(len(live), 1, 1), view.geometry, grid) > 0

    def divergence(other: Tensor) -> float:
        p = live.softmax(1)
        return float((p * (live.log_softmax(1) - other.log_softmax(1))).sum(1)[inside].mean())

    label = torch.nn.functional.interpolate(view.label[:, None].float(), grid, mode="nearest-exact")[:, 0].long()
    labelled = label != 255
    said, recalled = live.argmax(1), cached_teacher.argmax(1)
    return (
        divergence(cached_teacher),
        divergence(calm),
        float((said == recalled)[inside].float().mean()),
        float((said == label)[labelled].float().mean()),
        float((recalled == label)[labelled].float().mean()),
    )


def origins(teacher: Segmentor, dataset: Dataset, images: int, top: int = 4) -> None:
    """Which part of a view's geometry it is that live and replayed answers differ by."""
    print(
        f"\n## Where the difference comes from ({images} images in plain colours)\n\n"
        "| view | KL(live, replayed) | same class |\n| --- | --- | --- |"
    )
    chosen = range(0, len(dataset), len(dataset) // images)
    for name, crop, every, flip, scale in (
        ("the image itself", False, 1, False, 1.0),
        ("mirrored", False, 1, True, 1.0),
        ("cut at multiples of 32 pixels: other surroundings, no interpolation", True, 32, False, 1.0),
        ("cut anywhere", True, 1, False, 1.0),
        ("at half the scale", False, 1, False, 0.5),
        ("at 1.5 times the scale", False, 1, False, 1.5),
    ):
        found = []
        for index in chosen:
            draw = generator(0, "origins", "crop", index)
            image = dataset.image(index)
            source = (image.shape[0], image.shape[1])
            size = CROP if crop else (round(source[0] * scale), round(source[1] * scale))
            scaled = source if crop else size
            top_left = [every * int(draw.integers((a - b) // every + 1)) for a, b in zip(scaled, size, strict=True)]
            geometry = Geometry.crop(source, scaled, (top_left[0], top_left[1]), size, flip)
            seen = torch.from_numpy(take_image(image, geometry).copy())[None].float().div_(255.0).permute(0, 3, 1, 2)
            with torch.no_grad():
                live = teacher(seen.contiguous(memory_format=torch.channels_last)).logits
            records = compress(asked(teacher, dataset, index), top)
            cache = TeacherCache({"it": records}.__getitem__, len(dataset.classes), 1.0)
            cached_teacher = cache.logits(["it"], Geometries.stack([geometry]), (live.shape[2], live.shape[3]))
            log_p, log_q = live.log_softmax(1), cached_teacher.log_softmax(1)
            found.append(
                (
                    float((log_p.exp() * (log_p - log_q)).sum(1).mean()),
                    float((live.argmax(1) == cached_teacher.argmax(1)).float().mean()),
                )
            )
        divergence, same = torch.tensor(found).mean(0).tolist()
        print(f"| {name} | {divergence:.3f} | {100 * same:.1f} % |")


def main(rounds: int = 7, count: int = 4) -> None:
    """Print the tables."""
    keep_freed_memory()
    data, name = street_data()
    print(f"\n{name}")
    steps(data["train"], rounds)
    given = [Path(argument) for argument in sys.argv[1:] if argument.endswith(".safetensors")]
    if given:
        teacher, _ = load_segmentor(given[0])
        teacher.eval().to(memory_format=torch.channels_last)
        compression(teacher, data["train"], 2 * BATCH)
        differences(teacher, data["train"], count)
        origins(teacher, data["train"], 24)


if __name__ == "__main__":
    main()
