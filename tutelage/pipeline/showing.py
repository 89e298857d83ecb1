"""Pictures of exactly what the nets see: the batches of every stream, after geometry, colours and blur.

Nothing is trained or loaded for it; only pseudo labels, copies of images and weights must have been made before.
"""

# Legend: H W pixels of a view.

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tutelage.data.batch import Batch, Geometries, View
from tutelage.data.dataset import Classes
from tutelage.data.labels import IGNORE
from tutelage.data.settings import StreamSettings
from tutelage.data.stream import Stream
from tutelage.errors import RunError
from tutelage.pipeline.builder import Builder, Say
from tutelage.pipeline.contact_sheet import Bytes, Group, SampleBlock, SheetCell, Swatch, draw_sheet
from tutelage.pipeline.keys import seed_of, stage_content
from tutelage.recipe.choice import ON_TARGET, chosen_on_target
from tutelage.recipe.reading import LoadedRecipe
from tutelage.recipe.references import listed
from tutelage.recipe.schema import AnnotateStage, TrainStage, TransformStage
from tutelage.runs.atomic import writing
from tutelage.runs.store import Store, content_key

_LEGEND_CLASSES = 40


def show(
    read: LoadedRecipe,
    out: Path,
    *,
    stages: Sequence[str] | None = None,
    count: int = 8,
    position: int = 0,
    say: Say = print,
) -> list[Path]:
    """Write one sheet for each stream of each train stage (or those in ``stages``): ``out/STAGE-STREAM.png``.

    It shows ``count`` samples from ``position`` of the stream on (step s begins at position s * batch). Streams of
    pseudo labels, copies or weights that are not there yet are left out, and said to be. Raises :class:`RunError` for
    names that are no train stage, and :class:`DataError` for files that cannot be read.
    """
    builder = Builder(read, say)
    chosen = _train_stages(builder, stages)
    if count < 1 or position < 0:
        raise RunError(f"{count} samples from position {position} cannot be shown", "give a count above 0, from 0 on")
    _assign_made(builder, [stage for _, stage in chosen])
    files = []
    for name, stage in chosen:
        for stream_name, stream in _streams(builder, name, stage):
            path = out / f"{name}-{stream_name}.png"
            with writing(path) as partial:
                _sheet(builder, name, stage, stream, position, count).save(partial, "PNG")
            files.append(path)
    return files


def _train_stages(builder: Builder, names: Sequence[str] | None) -> list[tuple[str, TrainStage]]:
    found = {name: stage for name, stage in builder.recipe.stages.items() if isinstance(stage, TrainStage)}
    unknown = [name for name in names or () if name not in found]
    if unknown:
        kind = "is no train stage" if unknown[0] in builder.recipe.stages else "is not in the recipe"
        raise RunError(f"stage {unknown[0]!r} {kind}", f"train stages: {', '.join(found) or 'none'}")
    return [(name, stage) for name, stage in found.items() if not names or name in names]


def _made(builder: Builder, settings: StreamSettings) -> list[str]:
    """The stages whose files a stream reads, directly or through others: pseudo labels, copies, weights."""
    found: dict[str, None] = {}
    waiting = [*listed(settings.data), *([] if settings.weights is None else [settings.weights])]
    for reference in waiting:
        stage = builder.recipe.stages.get(reference)
        if stage is not None:
            found[reference] = None
            if isinstance(stage, AnnotateStage | TransformStage):
                waiting.append(stage.data)
    return list(found)


def _assign_made(builder: Builder, stages: Sequence[TrainStage]) -> None:
    """Give the stages whose files are read their artefacts; a key needs those of all stages before it."""
    wanted = {name for stage in stages for settings in stage.streams.values() for name in _made(builder, settings)}
    store = Store(Path(builder.recipe.out_folder()))
    for name, stage in builder.recipe.stages.items():
        if not wanted:
            return
        builder.artefacts[name] = store.artefact(name, content_key(stage_content(builder, stage)))
        wanted.discard(name)


def _streams(builder: Builder, name: str, stage: TrainStage) -> Iterator[tuple[str, Stream]]:
    """The stage's streams that can be read, made ready to hand out samples one by one."""
    for stream_name, settings in stage.streams.items():
        lacking = [
            (reference, fault)
            for reference in _made(builder, settings)
            if reference in builder.artefacts and (fault := builder.artefacts[reference].fault()) is not None
        ]
        if lacking:
            reference, fault = lacking[0]
            builder.say(f"{name}, stream {stream_name}: left out, it needs the stage {reference!r} ({fault})")
            continue
        alone = stage.model_copy(update={"streams": {stream_name: settings}})
        stream = builder.streams(alone, seed_of(builder, stage))[stream_name]
        # Batches of one: what a position holds is a matter of the position alone.
        loader = replace(stream.loader, workers=0, ahead=1)
        yield stream_name, replace(stream, batch=1, loader=loader)


def _sheet(builder: Builder, name: str, stage: TrainStage, stream: Stream, position: int, count: int) -> Image.Image:
    classes = builder.classes
    blocks = []
    seen: set[int] = set()
    padded = ignored = False
    for batch in stream.batches(position, position + count, 1, 0, 1, torch.device("cpu")):
        blocks.append(_block(classes, batch))
        for view in batch.views.values():
            padded = padded or not bool(view.valid.all())
            if "label" in view.maps:
                seen.update(np.unique(view.label.numpy()).tolist())
                ignored = ignored or bool(((view.label == IGNORE) & view.valid).any())
    legend = _legend(classes, seen, ignored, padded)
    settings = stage.streams[stream.name]
    batch_size = settings.batch
    marked = f"; weights are {ON_TARGET}" if chosen_on_target(builder.recipe, stage) else ""
    subtitle = (
        f"{' + '.join(listed(settings.data))}: {count} samples from position {position} on (step "
        f"{position // batch_size} of the training, in batches of {batch_size}); {len(stream)} in a round{marked}"
    )
    return draw_sheet(f"{name}: stream {stream.name}, method {stage.method.name}", subtitle, blocks, legend)


def _block(classes: Classes, batch: Batch) -> SampleBlock:
    """One sample: its views, those of one geometry side by side with the maps that they share."""
    groups: list[tuple[Geometries, list[str]]] = []
    for name, view in batch.views.items():
        mates = next((names for geometry, names in groups if geometry is view.geometry), None)
        if mates is None:
            groups.append((view.geometry, [name]))
        else:
            mates.append(name)
    title = f"#{int(batch.positions[0])}   {batch.samples[0]}"
    return SampleBlock(title, tuple(_group(classes, batch, names) for _, names in groups))


def _group(classes: Classes, batch: Batch, names: Sequence[str]) -> Group:
    first = batch[names[0]]
    padded = ~first.valid[0].numpy()
    cells = [SheetCell(name, _photograph(batch[name]), padded) for name in names]
    for key, values in first.maps.items():
        if key == "label":
            cells.append(_label_cell(classes, values[0], padded))
        elif values.ndim == 3:
            cells.append(_share_cell(key, values[0], padded))
    return Group(describe_geometry(first.geometry), tuple(cells))


def _photograph(view: View) -> Bytes:
    """(H, W, 3) bytes of what the net gets, before it normalises."""
    image: Bytes = view.image[0].permute(1, 2, 0).mul(255).round().to(torch.uint8).numpy()
    return image


def _label_cell(classes: Classes, label_HW: Tensor, padded: np.ndarray) -> SheetCell:
    ids = label_HW.numpy()
    table = np.zeros((256, 3), dtype=np.uint8)
    table[: len(classes)] = classes.palette
    ignored = (ids == IGNORE) & ~padded
    present = np.unique(ids[ids != IGNORE])
    noun = "class" if len(present) == 1 else "classes"
    share = ignored.sum() / max(1, (~padded).sum())
    title = f"label: {len(present)} {noun}" + (f", {_percent(share)} ignored" if share else "")
    return SheetCell(title, table[ids], padded, ignored, smooth=False)


def _share_cell(key: str, values_HW: Tensor, padded: np.ndarray) -> SheetCell:
    """A map of weights or confidences: black is 0, white is 1."""
    values = values_HW.float().numpy()
    grey = (values * 255).round().clip(0, 255).astype(np.uint8)
    shown = values[~padded]
    title = f"{key}: mean {shown.mean():.2f}, white is 1" if shown.size else key
    return SheetCell(title, np.repeat(grey[..., None], 3, axis=2), padded, smooth=False)


def describe_geometry(geometry: Geometries) -> tuple[str, str]:
    """Scale and flip, and the part of the source, that a batch's first view shows, in words."""
    matrix = geometry.matrix[0].numpy()
    height, width = geometry.size
    step_x, step_y = abs(matrix[0, 0]), matrix[1, 1]
    flipped = matrix[0, 0] < 0
    left, top = matrix[0, 2] - (width * step_x if flipped else 0), matrix[1, 2]
    rows, columns = geometry.source[0].tolist()
    right, bottom = min(left + width * step_x, columns), min(top + height * step_y, rows)
    # Sides are scaled to whole pixels: a difference below 2 % is no distortion that anyone asked for.
    alike = abs(step_x / step_y - 1) < 0.02
    scale = f"{1 / step_x:.2f}" if alike else f"{1 / step_x:.2f} across, {1 / step_y:.2f} down"
    return (
        f"scale {scale}{', flipped' if flipped else ''}, {width}x{height} pixels",
        f"of {columns}x{rows}: x {left:.0f} to {right:.0f}, y {top:.0f} to {bottom:.0f}",
    )


def _legend(classes: Classes, seen: set[int], ignored: bool, padded: bool) -> list[Swatch]:
    """All classes, or, of many, those on the sheet; the hatchings that occur."""
    entries = []
    if seen:
        every = len(classes) <= _LEGEND_CLASSES
        pairs = zip(classes.names, classes.palette, strict=True)
        entries = [Swatch(name, colour) for index, (name, colour) in enumerate(pairs) if every or index in seen]
    if ignored:
        entries.append(Swatch("ignored"))
    if padded:
        entries.append(Swatch("padding (nothing of the image)", padded=True))
    return entries


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.01 else "below 1 %"
