"""Pictures of the nets' exact inputs: the batches of every stream, after geometry, colours and blur.

No net is loaded; only pseudo labels, copies of images and weights must have been made before.
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
from tutelage.data.stream import Stream
from tutelage.errors import RunError
from tutelage.pipeline.builder import Builder, Say
from tutelage.pipeline.contact_sheet import Bytes, Group, SampleBlock, SheetCell, Swatch, draw_sheet
from tutelage.pipeline.stages.train import TrainRunner
from tutelage.recipe.base import listed
from tutelage.recipe.leaks import ON_TARGET, chosen_on_target
from tutelage.recipe.loading import LoadedRecipe
from tutelage.runs.atomic import writing
from tutelage.runs.store import Store

_LEGEND_CLASSES = 40


def show(
    loaded: LoadedRecipe,
    out: Path,
    *,
    stages: Sequence[str] | None = None,
    count: int = 8,
    position: int = 0,
    say: Say = print,
) -> list[Path]:
    """Write one sheet for each stream of each train stage (or those in ``stages``): ``out/STAGE-STREAM.png``.

    A sheet shows ``count`` samples from ``position`` of the stream on (step s begins at position s * batch). Streams of
    pseudo labels, copies or weights that are not made yet are skipped, with a message. Raises :class:`RunError` for
    names of other stages, and :class:`DataError` for files that cannot be read.
    """
    builder = Builder(loaded, say)
    runners = _runners(builder, stages)
    if count < 1 or position < 0:
        text = f"invalid range: {count} samples from position {position}"
        raise RunError("invalid-range", text, "expected a count above 0 and a position from 0 on")
    made = [made for runner in runners for name in runner.stage.streams for made in _made(runner, name)]
    builder.assign(Store(Path(builder.recipe.out_folder())), until=made)
    files = []
    for runner in runners:
        for name, stream in _streams(runner):
            path = out / f"{runner.name}-{name}.png"
            with writing(path) as partial:
                _sheet(runner, stream, position, count).save(partial, "PNG")
            files.append(path)
    return files


def _runners(builder: Builder, names: Sequence[str] | None) -> list[TrainRunner]:
    stages = builder.recipe.stages
    found = [name for name, stage in stages.items() if stage.trains]
    unknown = [name for name in names or () if name not in found]
    if unknown:
        kind = "is not a train stage" if unknown[0] in stages else "is not in the recipe"
        text = f"stage {unknown[0]!r} {kind}"
        raise RunError("unknown-stage", text, f"train stages: {', '.join(found) or 'none'}")
    return [builder.runner(name) for name in found if not names or name in names]  # type: ignore[misc]


def _made(runner: TrainRunner, stream: str) -> list[str]:
    """The stages whose files a stream reads, directly or indirectly: pseudo labels, copies, weights."""
    stages = runner.builder.recipe.stages
    settings = runner.stage.streams[stream]
    found: dict[str, None] = {}
    waiting = [*listed(settings.data), *([] if settings.weights is None else [settings.weights])]
    for reference in waiting:
        stage = stages.get(reference)
        if stage is not None:
            found[reference] = None
            if stage.makes == "data" and stage.origin is not None:
                waiting.append(stage.origin)
    return list(found)


def _streams(runner: TrainRunner) -> Iterator[tuple[str, Stream]]:
    """The readable streams, in batches of one."""
    artefacts = runner.builder.artefacts
    for name in runner.stage.streams:
        lacking = [(it, fault) for it in _made(runner, name) if (fault := artefacts[it].fault()) is not None]
        if lacking:
            reference, fault = lacking[0]
            text = f"{runner.name}, stream {name}: skipped; it needs the stage {reference!r} ({fault})"
            runner.builder.say(text)
            continue
        stream = runner.streams(names=[name])[name]
        # A sample depends only on its position.
        loader = replace(stream.loader, workers=0, ahead=1)
        yield name, replace(stream, batch=1, loader=loader)


def _sheet(runner: TrainRunner, stream: Stream, position: int, count: int) -> Image.Image:
    stage, classes = runner.stage, runner.builder.classes
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
    marked = f"; weights are {ON_TARGET}" if chosen_on_target(runner.builder.recipe, stage) else ""
    subtitle = (
        f"{' + '.join(listed(settings.data))}: {count} samples from position {position} on (step "
        f"{position // batch_size} of the training, in batches of {batch_size}); {len(stream)} in a round{marked}"
    )
    return draw_sheet(f"{runner.name}: stream {stream.name}, method {stage.method.name}", subtitle, blocks, legend)


def _block(classes: Classes, batch: Batch) -> SampleBlock:
    """One sample: views of one geometry side by side, with their common maps."""
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
    """(H, W, 3) bytes of the net's input before normalisation."""
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
    """Scale, flip and source region of a batch's first view, as text."""
    matrix = geometry.matrix[0].numpy()
    height, width = geometry.size
    step_x, step_y = abs(matrix[0, 0]), matrix[1, 1]
    flipped = matrix[0, 0] < 0
    left, top = matrix[0, 2] - (width * step_x if flipped else 0), matrix[1, 2]
    rows, columns = geometry.source[0].tolist()
    right, bottom = min(left + width * step_x, columns), min(top + height * step_y, rows)
    # Sides are rounded to whole pixels: a difference below 2 % is rounding, not distortion.
    alike = abs(step_x / step_y - 1) < 0.02
    scale = f"{1 / step_x:.2f}" if alike else f"{1 / step_x:.2f} across, {1 / step_y:.2f} down"
    return (
        f"scale {scale}{', flipped' if flipped else ''}, {width}x{height} pixels",
        f"of {columns}x{rows}: x {left:.0f} to {right:.0f}, y {top:.0f} to {bottom:.0f}",
    )


def _legend(classes: Classes, seen: set[int], ignored: bool, padded: bool) -> list[Swatch]:
    """All classes, or only those on the sheet if there are many; the hatchings that occur."""
    entries = []
    if seen:
        every = len(classes) <= _LEGEND_CLASSES
        pairs = zip(classes.names, classes.palette, strict=True)
        entries = [Swatch(name, colour) for index, (name, colour) in enumerate(pairs) if every or index in seen]
    if ignored:
        entries.append(Swatch("ignored"))
    if padded:
        entries.append(Swatch("padding (outside the image)", padded=True))
    return entries


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.01 else "below 1 %"
